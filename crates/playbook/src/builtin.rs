//! The playbooks that come with Estoppel, from the folder `playbooks/`.

/// Row P's containment: halt, freeze, block, capture, page.
pub const PROMPT_INJECTION: &str = include_str!("../../../playbooks/prompt-injection.yaml");

/// Rows R2 and R5: halt, limit, page; preserve, and kill once a lead agrees.
pub const RUNAWAY: &str = include_str!("../../../playbooks/runaway.yaml");

/// Name and text of each playbook that comes with Estoppel.
pub const BUILTIN: [(&str, &str); 2] =
    [("prompt-injection", PROMPT_INJECTION), ("runaway", RUNAWAY)];

/// The text of a playbook that comes with Estoppel.
pub fn builtin(name: &str) -> Option<&'static str> {
    BUILTIN.into_iter().find(|(known, _)| *known == name).map(|(_, source)| source)
}
