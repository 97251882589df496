//! What the owner has decided about detections.

use std::{sync::Arc, time::Duration};

use estoppel_extract::Allowlist;
use serde::{Deserialize, Serialize};

/// What follows from unlisted egress alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EgressMode {
    /// A person is asked.
    #[default]
    Ask,
    /// The session is halted.
    Auto,
}

/// What the owner has decided.
#[derive(Debug, Clone)]
pub struct DetectPolicy {
    /// Where agents may send to; `None` until one is set, and then egress is only learned. An
    /// empty list allows nothing.
    pub allowlist: Option<Arc<Allowlist>>,
    /// What follows from unlisted egress alone.
    pub egress: EgressMode,
    /// How long before a detection others still count as signals beside it.
    pub signal_window: Duration,
    /// Most halts that are given by themselves within an hour.
    pub halts_per_hour_max: u32,
    /// Whom this is about was released lately and is watched closely: see
    /// [`DetectPolicy::tightened`].
    pub watched: bool,
}

impl DetectPolicy {
    /// The policy for those who are watched closely after a release: unlisted egress acts alone,
    /// text with the shape of an injection asks a person however mild it is and with or without an
    /// allowlist, and it is suspect from three quarters of the usual score on.
    #[must_use]
    pub fn tightened(&self) -> Self {
        Self { watched: true, ..self.clone() }
    }
}

impl Default for DetectPolicy {
    fn default() -> Self {
        Self {
            allowlist: None,
            egress: EgressMode::Ask,
            signal_window: Duration::from_secs(60 * 60),
            halts_per_hour_max: 20,
            watched: false,
        }
    }
}
