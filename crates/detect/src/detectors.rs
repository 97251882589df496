//! All detectors behind one door.

use estoppel_model::{
    AuditEvent, EntityId, Event, NetworkEvent, PluginRef, ReceivedEvent, Severity, Subject,
    Untrusted,
};
use sha2::{Digest, Sha256};

use crate::{
    DetectPolicy, Detection, Learned,
    detection::INJECTION,
    egress::Egress,
    field,
    injection::{Channel, inspect},
    recent::Recent,
    runaway,
};

/// Most suspicious texts that are remembered, so that one repeated is reported once.
const TEXTS_MAX: usize = 16_384;

/// The detectors and what they remember.
#[derive(Debug, Clone)]
pub struct Detectors {
    egress: Egress,
    /// Subject and hash of each suspicious text.
    texts: Recent<(String, [u8; 32]), ()>,
}

impl Default for Detectors {
    fn default() -> Self {
        Self::new()
    }
}

impl Detectors {
    /// Detectors that have seen nothing.
    pub fn new() -> Self {
        Self { egress: Egress::new(), texts: Recent::new(TEXTS_MAX) }
    }

    /// Looks at an event. What was found before in the same session is not found again.
    pub fn observe(&mut self, event: &ReceivedEvent, policy: &DetectPolicy) -> Vec<Detection> {
        match &event.event {
            Event::Network(network) => {
                let subject = network_subject(network);
                self.egress.observe(event, network, &subject, policy).into_iter().collect()
            }
            Event::Audit(audit) => {
                let mut found = self.injection(event, audit, policy);
                found.extend(runaway::observe(event, audit, &audit_subject(audit)));
                found
            }
        }
    }

    /// Where agents went while no allowlist was set.
    pub const fn learned(&self) -> &Learned {
        &self.egress.learned
    }

    fn injection(
        &mut self,
        event: &ReceivedEvent,
        audit: &AuditEvent,
        policy: &DetectPolicy,
    ) -> Vec<Detection> {
        let subject = audit_subject(audit);
        let fields =
            [(&audit.result, result_channel(audit)), (&audit.params, params_channel(audit))];
        let mut found: Option<(Channel, crate::Inspection, bool)> = None;
        for (value, channel) in fields {
            let Some(value) = value else { continue };
            let text = field::texts(value);
            let inspection = inspect(&text.text, channel);
            if !inspection.is_suspect_of(channel, policy.watched) {
                continue;
            }
            let hash = Sha256::digest(text.text.as_bytes()).into();
            let fresh = self.texts.touch(&(subject.to_string(), hash), || ()).0;
            // One event is one detection: of both fields the worse is named.
            if fresh && found.as_ref().is_none_or(|(_, other, _)| other.score < inspection.score) {
                found = Some((channel, inspection, text.cut));
            }
        }
        let Some((channel, inspection, cut)) = found else { return Vec::new() };
        let severity = match channel {
            Channel::ToolResult if inspection.score >= 0.85 => Severity::High,
            Channel::ToolResult | Channel::ModelOutput => Severity::Medium,
            Channel::UserPrompt => Severity::Low,
        };
        let summary = summary(audit, channel, &inspection, cut);
        vec![Detection::new(INJECTION, severity, subject, event, summary)]
    }
}

fn summary(audit: &AuditEvent, channel: Channel, found: &crate::Inspection, cut: bool) -> String {
    let tool = audit.tool.as_ref().map_or_else(String::new, |tool| {
        format!(" (tool {})", estoppel_model::text::quoted(tool.raw()))
    });
    let reasons: Vec<_> = found.reasons.iter().map(|reason| reason.phrase()).collect();
    let cut = if cut { "; its middle was not inspected" } else { "" };
    format!(
        "{}{tool} reads like orders to the model, score {:.2}: {}{cut}",
        channel.phrase(),
        found.score,
        reasons.join(", ")
    )
}

/// What a result is: a tool's, unless it is plainly a model's answer.
fn result_channel(audit: &AuditEvent) -> Channel {
    let model_call =
        audit.tool.is_none() && (audit.model.is_some() || is_action(audit, MODEL_CALLS));
    if model_call { Channel::ModelOutput } else { Channel::ToolResult }
}

/// What parameters are: the model's own, unless they are what a user said.
fn params_channel(audit: &AuditEvent) -> Channel {
    if audit.tool.is_none() && is_action(audit, PROMPTS) {
        Channel::UserPrompt
    } else {
        Channel::ModelOutput
    }
}

/// Names of actions by which a model is called (OpenTelemetry's GenAI conventions and ours).
const MODEL_CALLS: &[&str] =
    &["chat", "completion", "text_completion", "generate_content", "model_call"];
/// Names of actions that carry what a user said.
const PROMPTS: &[&str] =
    &["chat", "prompt", "user_prompt", "user_message", "invoke_agent", "message"];

fn is_action(audit: &AuditEvent, names: &[&str]) -> bool {
    audit.action.as_ref().is_some_and(|action| names.contains(&action.raw().as_str()))
}

/// A foreign name as an id, where it can be one.
fn named(name: Option<&Untrusted<String>>) -> Option<EntityId> {
    name.and_then(|name| EntityId::new(name.raw()).ok())
}

/// Whom an event is about, as far as it says.
pub fn subject_of(event: &Event) -> Subject {
    match event {
        Event::Audit(audit) => audit_subject(audit),
        Event::Network(network) => network_subject(network),
    }
}

fn audit_subject(audit: &AuditEvent) -> Subject {
    Subject {
        agent: audit.agent_id.clone(),
        session: audit.session_id.clone(),
        user: audit.user_id.clone(),
        task: audit.task_id.clone(),
        tenant: audit.requester_tenant_id.clone(),
        plugin: named(audit.plugin.as_ref())
            .map(|name| PluginRef { name, version: named(audit.plugin_version.as_ref()) }),
        ..Subject::default()
    }
}

fn network_subject(network: &NetworkEvent) -> Subject {
    Subject {
        agent: network.agent_id.clone(),
        session: network.session_id.clone(),
        task: network.task_id.clone(),
        tenant: network.tenant_id.clone(),
        plugin: named(network.plugin.as_ref()).map(|name| PluginRef { name, version: None }),
        ..Subject::default()
    }
}

#[cfg(test)]
mod tests;
