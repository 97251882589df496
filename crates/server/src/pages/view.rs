//! What pages show: texts that deceive nobody, moments, halts and enforcers in words.
//!
//! Names, reasons and gaps come from agents and from strangers (invariant *inert*). Templates escape
//! markup; [`Shown`] is for what markup's escaping leaves alone: control characters, text that turns
//! around its neighbours, and length.

use std::{fmt, time::Duration};

use estoppel_api::Durable;
use estoppel_killswitch::{
    frame::{EnforcerKind, Settlement},
    server::{EnforcerProgress, HaltProgress},
};
use estoppel_model::{Order, OrderBody, OrderId, ScopeSet, Timestamp, Untrusted};

/// Longest name that a page shows, in characters; a longer one is cut and says so.
const NAME_CHARS_MAX: usize = 300;

/// A text of whoever, with everything invisible written as `\u{..}`; templates escape its markup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown(String);

impl Shown {
    /// A name or a scope.
    pub(crate) fn name(text: impl fmt::Display) -> Self {
        Self(Untrusted::new(text.to_string()).inline(NAME_CHARS_MAX))
    }

    /// A text of several lines, such as a reason.
    pub(crate) fn text(text: &str) -> Self {
        let lines: Vec<String> = text
            .lines()
            .map(|line| Untrusted::new(line).inline(estoppel_model::REASON_BYTES_MAX))
            .collect();
        Self(lines.join("\n"))
    }

    pub(crate) fn scope(scope: &ScopeSet) -> Self {
        Self::name(scope)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An instant, with how long ago it was when the page was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Moment {
    /// RFC 3339.
    pub iso: String,
    /// Milliseconds since 1970, for the script.
    pub millis: i64,
    /// Time of day, with the date when it is not of the last day.
    pub clock: String,
    /// `14 s ago`.
    pub ago: String,
    /// `in 9 s`, for an instant to come.
    pub ahead: String,
}

impl Moment {
    pub(crate) fn new(at: Timestamp, now: Timestamp) -> Self {
        let iso = at.to_string();
        let time = at.time_of_day();
        let time = time.split('.').next().unwrap_or_default();
        let distance = now.since(at).max(at.since(now));
        let clock = if distance < Duration::from_secs(86_400) {
            format!("{time} UTC")
        } else {
            format!("{} {time} UTC", iso.split('T').next().unwrap_or_default())
        };
        let millis = at.as_micros() / 1_000;
        let ago = match now.since(at) {
            short if short < Duration::from_secs(1) => "just now".to_owned(),
            long => format!("{} ago", span(long)),
        };
        let ahead = match at.since(now) {
            Duration::ZERO => "now".to_owned(),
            long => format!("in {}", span(long + Duration::from_millis(999))),
        };
        Self { iso, millis, clock, ago, ahead }
    }
}

/// A length of time in at most two units.
fn span(length: Duration) -> String {
    let seconds = length.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match () {
        () if seconds < 60 => format!("{seconds} s"),
        () if minutes < 60 => format!("{minutes} min {} s", seconds % 60),
        () if hours < 48 => format!("{hours} h {} min", minutes % 60),
        () => format!("{days} d {} h", hours % 24),
    }
}

/// A delay as it is measured: `640 µs`, `12 ms`, `1.25 s`.
fn delay(after: Duration) -> String {
    match after.as_micros() {
        micros @ 0..1_000 => format!("{micros} µs"),
        micros @ 1_000..1_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{:.2} s", after.as_secs_f64()),
    }
}

/// `1 enforcer`, `2 enforcers`.
pub(crate) fn counted(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// How a state looks; said by word and shape as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// It is as it should be.
    Done,
    /// It is on its way.
    Going,
    /// Somebody should look.
    Look,
    /// Over.
    Past,
}

impl Tone {
    pub(crate) const fn class(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Going => "going",
            Self::Look => "look",
            Self::Past => "past",
        }
    }
}

/// A halt with how far it has got.
#[derive(Debug, Clone)]
pub(crate) struct HaltView {
    pub id: OrderId,
    pub scope: Shown,
    pub reason: Shown,
    pub by: Shown,
    pub given: Moment,
    /// When the server will release it by itself.
    pub until: Option<Moment>,
    pub in_force: bool,
    pub tone: Tone,
    /// One word on where it stands.
    pub word: &'static str,
    /// A sentence on it.
    pub said: String,
    /// What somebody should know besides.
    pub notes: Vec<String>,
    pub counts: Option<Counts>,
    pub enforcers: Vec<EnforcerView>,
    /// Enforcers that are not listed.
    pub more: usize,
}

/// Over the enforcers whose lease was alive when the halt was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub expected: usize,
    pub refusing: usize,
    pub settled: usize,
    pub by_lease: usize,
    pub gone: usize,
    /// Share that is done, in percent, rounded down: 100 only when all are.
    pub done_percent: usize,
}

/// One enforcer's word.
#[derive(Debug, Clone)]
pub(crate) struct EnforcerView {
    pub name: Shown,
    pub kind: &'static str,
    pub tone: Tone,
    pub word: &'static str,
    /// How long it took, or until when it may act.
    pub timing: String,
    /// When its lease is over, while it is waited for.
    pub lease: Option<Moment>,
    /// What came of it.
    pub details: Vec<Shown>,
}

impl HaltView {
    /// A halt whose confirmations are known.
    pub(crate) fn new(progress: &HaltProgress, now: Timestamp) -> Self {
        let mut view = Self::unconfirmed(&progress.order, progress.in_force, now);
        view.enforcers =
            progress.enforcers.iter().map(|word| EnforcerView::new(word, now)).collect();
        view.more = progress.words.saturating_sub(progress.enforcers.len());
        let HaltProgress { expected, refusing, settled, by_lease, gone, observing, .. } = *progress;
        let done = (settled + by_lease + gone).min(expected) * 100;
        view.counts = done.checked_div(expected).map(|done_percent| Counts {
            expected,
            refusing,
            settled,
            by_lease,
            gone,
            done_percent,
        });
        if !progress.in_force {
            return view;
        }
        let all = counted(expected, "enforcer");
        (view.tone, view.word, view.said) = if let Some(until) = progress.unknown_until {
            let said = format!(
                "{refusing} of {all} refuse, {settled} have ended what was in flight. Until {} others may act that had connected before this server's start.",
                Moment::new(until, now).clock
            );
            (Tone::Going, "Stopping", said)
        } else if expected == 0 {
            let said = "No enforcer was connected when it was given. It is in force for every one that connects.";
            (Tone::Look, "In force", said.to_owned())
        } else if progress.is_over() && gone > 0 {
            let said = format!(
                "{settled} of {all} settled; {gone} refused and were gone before they settled: their lease is over, and what became of their work in flight is not known."
            );
            (Tone::Look, "Stopped", said)
        } else if progress.is_over() {
            let said = match (expected, by_lease) {
                (1, 0) => "The one enforcer refuses, and what was in flight has ended.".to_owned(),
                (_, 0) => format!("All {all} refuse, and what was in flight has ended."),
                _ => format!(
                    "{settled} of {all} settled; {by_lease} did not answer, and their lease is over."
                ),
            };
            (Tone::Done, "Stopped", said)
        } else if progress.all_refuse() {
            let said =
                format!("All {all} refuse new work; {settled} have ended what was in flight.");
            (Tone::Going, "Refusing", said)
        } else {
            let said = format!(
                "{refusing} of {all} refuse new work, {settled} have ended what was in flight."
            );
            (Tone::Going, "Stopping", said)
        };
        if observing > 0 {
            view.tone = Tone::Look;
            view.notes.push(format!(
                "{} only {}: what it reaches goes on.",
                counted(observing, "enforcer"),
                if observing == 1 {
                    "observes and stops nothing"
                } else {
                    "observe and stop nothing"
                },
            ));
        }
        view
    }

    /// A halt of which it is not known who has confirmed it: it was given before this server's start.
    pub(crate) fn unconfirmed(order: &Order, in_force: bool, now: Timestamp) -> Self {
        let until = match order.body {
            OrderBody::Halt { until } => until,
            _ => None,
        };
        let (tone, word, said) = if in_force {
            let said = "Given before this server's last start. Every enforcer that has connected since was given it.";
            (Tone::Done, "In force", said)
        } else {
            (Tone::Past, "Released", "")
        };
        Self {
            id: order.id,
            scope: Shown::scope(&order.scope),
            reason: Shown::text(&order.reason),
            by: Shown::name(&order.issued_by),
            given: Moment::new(order.issued_at, now),
            until: until.map(|until| Moment::new(until, now)),
            in_force,
            tone,
            word,
            said: said.to_owned(),
            notes: Vec::new(),
            counts: None,
            enforcers: Vec::new(),
            more: 0,
        }
    }
}

impl EnforcerView {
    fn new(word: &EnforcerProgress, now: Timestamp) -> Self {
        let settlement = &word.settlement;
        let (tone, said) = if settlement.observed_only {
            (Tone::Look, "only observes")
        } else if word.unsupported {
            (Tone::Done, "refuses the scope")
        } else if word.settled.is_some() {
            let blocked = !settlement.not_interruptible.is_empty();
            (if blocked { Tone::Look } else { Tone::Done }, "settled")
        } else if word.gone {
            (Tone::Look, "gone")
        } else if word.refusing.is_some() {
            (Tone::Going, "refuses")
        } else if word.by_lease {
            (Tone::Done, "stopped by its lease")
        } else {
            (Tone::Going, "no answer yet")
        };
        let mut timing = Vec::new();
        if let Some(reached) = word.refusing {
            timing.push(format!("refusing after {}", delay(reached.after)));
        }
        if let Some(reached) = word.settled {
            timing.push(format!("settled after {}", delay(reached.after)));
        }
        if let Some(until) = word.lease_until.filter(|_| word.gone) {
            timing.push(format!("not settled, lease over {}", Moment::new(until, now).clock));
        }
        if !word.expected {
            timing.push("came later".to_owned());
        }
        let waits = word.refusing.is_none() && !word.by_lease;
        Self {
            name: Shown::name(&word.name),
            kind: kind(word.kind),
            tone,
            word: said,
            timing: timing.join(", "),
            lease: word.lease_until.filter(|_| waits).map(|until| Moment::new(until, now)),
            details: details(settlement, word.witness),
        }
    }
}

fn details(settlement: &Settlement, witness: bool) -> Vec<Shown> {
    let mut details = Vec::new();
    for (count, one) in [
        (settlement.steps_cancelled, "step"),
        (settlement.connections_cut, "connection"),
        (settlement.processes_frozen, "process"),
    ] {
        if count > 0 {
            let verb = match one {
                "step" => "cancelled",
                "connection" => "cut",
                _ => "frozen",
            };
            let what = match (one, count) {
                ("process", 2..) => "processes".to_owned(),
                (one, 1) => one.to_owned(),
                (one, _) => format!("{one}s"),
            };
            details.push(Shown::name(format_args!("{count} {what} {verb}")));
        }
    }
    if let Some(at) = settlement.last_byte_at {
        details.push(Shown::name(format_args!("last byte out {} UTC", at.time_of_day())));
    }
    if let Some(containment) = &settlement.containment {
        details.push(Shown::name(format_args!("containment: {containment}")));
    }
    for work in &settlement.not_interruptible {
        details.push(Shown::name(format_args!("could not interrupt: {work}")));
    }
    if !witness && !settlement.is_empty() {
        details.push(Shown::name("claimed by the agent's own process"));
    }
    details
}

/// The enforcement point's word for people.
pub(crate) const fn kind(kind: EnforcerKind) -> &'static str {
    match kind {
        EnforcerKind::Guard => "guard",
        EnforcerKind::Gateway => "gateway",
        EnforcerKind::Host => "host",
    }
}

/// How safely an order is kept, in words.
pub(crate) const fn durable(durable: Durable) -> &'static str {
    match durable {
        Durable::No => "in memory only: the disk has not answered yet",
        Durable::Node => "on the disk of this server",
        Durable::Ledger => "in the ledger",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(1_770_260_400_000_000 + seconds * 1_000_000)
    }

    #[test]
    fn a_moment_is_said_as_people_say_it() {
        let check = |then: i64, now: i64, ago: &str| {
            let moment = Moment::new(at(then), at(now));
            assert_eq!(moment.ago, ago);
        };
        check(0, 0, "just now");
        check(5, 0, "just now");
        check(0, 14, "14 s ago");
        check(0, 184, "3 min 4 s ago");
        check(0, 7_500, "2 h 5 min ago");
        check(0, 4 * 86_400 + 3_600, "4 d 1 h ago");
        assert_eq!(Moment::new(at(9), at(0)).ahead, "in 9 s");
        assert_eq!(Moment::new(at(0), at(0)).ahead, "now");
        assert_eq!(Moment::new(at(0), at(60)).clock, "03:00:00 UTC");
        assert_eq!(Moment::new(at(0), at(90_000)).clock, "2026-02-05 03:00:00 UTC");
    }

    /// Invariant *inert*.
    #[test]
    fn nothing_invisible_reaches_a_page() {
        assert_eq!(
            Shown::name("a\u{202e}b\nc\u{1b}[2J").to_string(),
            "a\\u{202e}b\\u{a}c\\u{1b}[2J"
        );
        assert_eq!(Shown::text("one\r\ntwo\u{200b}").to_string(), "one\ntwo\\u{200b}");
        assert_eq!(Shown::name("x".repeat(1_000)).to_string().len(), NAME_CHARS_MAX + 3);
    }

    /// K7: a page says what is known of a halt, and what is not.
    #[test]
    fn a_halt_is_said_to_be_what_it_is() {
        let order = Order {
            id: estoppel_model::OrderId::new(),
            scope: "session:a".parse::<estoppel_model::Scope>().unwrap().into(),
            reason: "r".to_owned(),
            issued_by: estoppel_model::Actor::new("alice").unwrap(),
            issued_at: at(0),
            incident: None,
            tenant: None,
            body: OrderBody::Halt { until: None },
        };
        let progress = HaltProgress {
            order: std::sync::Arc::new(order),
            accepted_at: at(0),
            in_force: true,
            expected: 4,
            refusing: 3,
            settled: 3,
            by_lease: 1,
            gone: 0,
            observing: 0,
            unknown_until: None,
            words: 4,
            enforcers: Vec::new(),
        };
        let check = |progress: HaltProgress, tone: Tone, word: &str, said: &str| {
            let view = HaltView::new(&progress, at(5));
            assert_eq!((view.tone, view.word), (tone, word), "{}", view.said);
            assert!(view.said.contains(said), "{}", view.said);
        };
        check(progress.clone(), Tone::Done, "Stopped", "1 did not answer, and their lease is over");
        let gone = HaltProgress { refusing: 4, by_lease: 0, gone: 1, ..progress.clone() };
        check(gone, Tone::Look, "Stopped", "1 refused and were gone before they settled");
        let unknown = HaltProgress { unknown_until: Some(at(9)), ..progress.clone() };
        check(unknown, Tone::Going, "Stopping", "Until 03:00:09 UTC others may act");
        let none = HaltProgress { expected: 0, refusing: 0, settled: 0, by_lease: 0, ..progress };
        let unknown = HaltProgress { unknown_until: Some(at(9)), ..none.clone() };
        check(unknown, Tone::Going, "Stopping", "Until");
        check(none, Tone::Look, "In force", "No enforcer was connected");
    }

    #[test]
    fn delays_are_said_in_the_unit_that_fits() {
        let said = [640, 12_300, 1_250_000].map(|micros| delay(Duration::from_micros(micros)));
        assert_eq!(said, ["640 µs", "12 ms", "1.25 s"]);
    }
}
