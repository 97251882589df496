//! The kill switch for loops that ask scope by scope (row K3):
//! `if kill_switch.check("global") || kill_switch.check("session:abc123") { return }`.

use estoppel_model::{Kind, PluginRef, Scope, Subject};

use crate::Guard;

/// Asks by scope. Cheap to clone.
#[derive(Debug, Clone)]
pub struct KillSwitch {
    guard: Guard,
}

impl KillSwitch {
    pub(crate) const fn new(guard: Guard) -> Self {
        Self { guard }
    }

    /// Whether what the scope names must stop: by a halt of that scope, by a global one, or since
    /// the lease is over. A range of a plugin's versions must stop when any version must.
    ///
    /// A text that is no scope must stop, too: a loop with a misspelt scope would never stop.
    pub fn check(&self, scope: &str) -> bool {
        match scope.parse::<Scope>() {
            Ok(scope) => self.check_scope(&scope),
            Err(error) => {
                tracing::error!(%error, "the kill switch was asked for what is no scope: stop");
                true
            }
        }
    }

    /// As [`KillSwitch::check`], for a scope that has been read.
    pub fn check_scope(&self, scope: &Scope) -> bool {
        self.guard.check(&subject_of(scope, Subject::default())).is_err()
    }
}

/// The subject with the id that the scope names.
pub(crate) fn subject_of(scope: &Scope, mut subject: Subject) -> Subject {
    match scope {
        Scope::Global => {}
        Scope::PluginVersions { name, .. } | Scope::Entity { kind: Kind::Plugin, id: name } => {
            subject.plugin = Some(PluginRef { name: name.clone(), version: None });
        }
        Scope::Entity { kind, id } => {
            let field = match kind {
                Kind::Agent => &mut subject.agent,
                Kind::Session => &mut subject.session,
                Kind::User => &mut subject.user,
                Kind::Task => &mut subject.task,
                Kind::Tenant => &mut subject.tenant,
                Kind::Tool => &mut subject.tool,
                Kind::Component | Kind::Plugin => &mut subject.component,
            };
            *field = Some(id.clone());
        }
    }
    subject
}
