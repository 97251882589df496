//! Prompt injection by its structure: text that speaks to the model where only data belongs.
//!
//! The text is brought into normal form first (`extract::text`), so that look-alike letters,
//! invisible characters and Base64 hide nothing. Then each pattern that matches adds a [`Reason`]
//! with a weight, and the weights combine as independent chances: `1 - (1 - a)(1 - b)...`. How
//! much it takes depends on the [`Channel`]: orders in a tool's result are out of place, in a
//! user's prompt they are the point.
//!
//! This finds what has the shape of an attack. An ordinary request in the wrong place has no such
//! shape (of BIPIA's, see docs/detection.md, it finds a part); *provenance* is what finds those.

mod patterns;

use estoppel_extract::text::{decoded_spans, normalise};
use serde::{Deserialize, Serialize};

/// Where a text stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// What a tool returned: data from outside.
    ToolResult,
    /// What a model wrote: parameters of a tool, an answer.
    ModelOutput,
    /// What a user asked.
    UserPrompt,
}

impl Channel {
    /// The score from which a text is reported, from the calibration in docs/detection.md.
    pub const fn threshold(self) -> f64 {
        match self {
            Self::ToolResult => 0.6,
            Self::ModelOutput => 0.75,
            Self::UserPrompt => 0.6,
        }
    }

    /// The channel in a sentence.
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::ToolResult => "a tool's result",
            Self::ModelOutput => "a model's output",
            Self::UserPrompt => "a user's prompt",
        }
    }
}

/// What about a text has the shape of an attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It tells the model to put its instructions aside.
    InstructionOverride,
    /// It plays a turn or a role of the conversation's own markup.
    RoleMarker,
    /// It gives the model another part to play.
    Persona,
    /// It speaks to the model as such.
    AddressesModel,
    /// It wants something in, or done to, the model's answer.
    SteersAnswer,
    /// It wants something kept from the user.
    Concealment,
    /// It wants data sent somewhere.
    ExfiltrationOrder,
    /// It asks for the model's instructions or secrets.
    PromptTheft,
    /// It is an image whose address carries data out.
    ImageBeacon,
    /// It is hidden from people and speaks to the model.
    HiddenText,
    /// It holds characters that nobody sees.
    InvisibleText,
    /// It is encoded, and decoded it has the shape of an attack.
    EncodedPayload,
    /// It wants the model to use a tool.
    ToolOrder,
}

impl Reason {
    /// The reason in a sentence.
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::InstructionOverride => "sets instructions aside",
            Self::RoleMarker => "plays a turn of the conversation",
            Self::Persona => "gives the model a part to play",
            Self::AddressesModel => "speaks to the model",
            Self::SteersAnswer => "steers the answer",
            Self::Concealment => "wants something kept from the user",
            Self::ExfiltrationOrder => "orders data to be sent out",
            Self::PromptTheft => "asks for instructions or secrets",
            Self::ImageBeacon => "holds an image that carries data out",
            Self::HiddenText => "is hidden from people",
            Self::InvisibleText => "holds invisible characters",
            Self::EncodedPayload => "is encoded",
            Self::ToolOrder => "orders the use of a tool",
        }
    }
}

/// What was found in one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspection {
    /// From 0 to 1.
    pub score: f64,
    /// Why, each once, heaviest first.
    pub reasons: Vec<Reason>,
}

impl Inspection {
    /// Whether this is reported for a channel.
    pub fn is_suspect(&self, channel: Channel) -> bool {
        self.score >= channel.threshold()
    }

    /// As [`Inspection::is_suspect`], for somebody who is watched closely or not.
    pub(crate) fn is_suspect_of(&self, channel: Channel, watched: bool) -> bool {
        let factor = if watched { WATCHED_THRESHOLD } else { 1.0 };
        self.score >= channel.threshold() * factor
    }
}

/// What of a channel's threshold is enough for those who are watched closely.
const WATCHED_THRESHOLD: f64 = 0.75;

/// How far apart two signals may be to count together, in bytes of the normal form: in a long
/// document everything occurs somewhere.
const TOGETHER_BYTES: usize = 1_500;

/// A pattern's match, or what else speaks for an attack.
#[derive(Debug, Clone, Copy)]
struct Hit {
    reason: Reason,
    weight: f64,
    /// Where, in bytes of the normal form.
    at: usize,
}

/// Inspects a text. The work is linear in its length; callers bound that.
pub fn inspect(text: &str, channel: Channel) -> Inspection {
    let normal = normalise(text);
    let mut hits = patterns::hits(&normal, channel);
    hits.sort_by_key(|hit| hit.at);
    // What is hidden or invisible counts beside whatever the text says, wherever it says it.
    let mut hiding = patterns::hiding(text, &normal);
    let encoded = decoded_spans(text).iter().any(|span| {
        let hits = patterns::hits(&normalise(span), channel);
        hits.iter().any(|hit| hit.weight >= 0.4)
    });
    if encoded {
        hiding.push((Reason::EncodedPayload, 0.5));
    }
    let mut worst = combined(hiding.iter().copied());
    for (index, first) in hits.iter().enumerate() {
        let near = hits
            .iter()
            .skip(index)
            .take_while(|hit| hit.at <= first.at + TOGETHER_BYTES)
            .map(|hit| (hit.reason, hit.weight));
        let inspection = combined(near.chain(hiding.iter().copied()));
        if inspection.score > worst.score {
            worst = inspection;
        }
    }
    worst
}

/// The score of some signals. Of several with one reason the heaviest counts: saying it twice is
/// no second signal.
fn combined(signals: impl Iterator<Item = (Reason, f64)>) -> Inspection {
    let mut signals: Vec<(Reason, f64)> = signals.collect();
    signals.sort_by(|one, other| one.0.cmp(&other.0).then(other.1.total_cmp(&one.1)));
    signals.dedup_by_key(|(reason, _)| *reason);
    signals.sort_by(|one, other| other.1.total_cmp(&one.1).then(one.0.cmp(&other.0)));
    Inspection {
        score: 1.0 - signals.iter().map(|(_, weight)| 1.0 - weight).product::<f64>(),
        reasons: signals.into_iter().map(|(reason, _)| reason).collect(),
    }
}

#[cfg(test)]
mod tests;
