//! Errors on the wire: problem documents of RFC 9457.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What went wrong, for the caller. What only the operator may see goes to the log instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A stable name of the kind of problem, such as `urn:estoppel:problem:scope`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words; the same for each problem of the kind.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong with this very request.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The active halts, where a release did not say which of them it ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub halts: Vec<crate::HaltSummary>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.detail)
    }
}
