//! Who is watched closely, for detection: the watch orders in force.
//!
//! The switchboard's thread publishes, event handlers read. Both hold the lock for the copy of a
//! pointer alone, so that detection is never on the way of a halt.

use std::sync::{Arc, PoisonError, RwLock};

use estoppel_killswitch::Verdicts;
use estoppel_model::Subject;

/// The orders in force as they were last published. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watched(Arc<RwLock<Arc<Verdicts>>>);

impl Watched {
    /// Publishes what is in force now. A copy of the fold shares everything with it.
    pub(crate) fn publish(&self, verdicts: &Verdicts) {
        let verdicts = Arc::new(verdicts.clone());
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = verdicts;
    }

    /// What is in force, for several questions.
    pub(crate) fn now(&self) -> Arc<Verdicts> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the subject is watched closely.
    pub(crate) fn covers(&self, subject: &Subject) -> bool {
        self.now().watched(subject).is_some()
    }
}
