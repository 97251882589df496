//! Why a command fails: one error, its causes, hints, and the exit code that scripts rely on.

use std::process::ExitCode;

use estoppel_api::ClientError;

/// Exit codes, documented in docs/exit-codes.md; the numbers never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The command failed.
    Failed = 1,
    /// The arguments or the configuration are wrong (clap's own code, too).
    Usage = 2,
    /// No server answered.
    Unreachable = 3,
    /// The token is missing, unknown, or its role is not enough.
    NotAllowed = 4,
    /// There is no such thing.
    NotFound = 5,
    /// It contradicts what is there, such as a release that does not say which halts it ends.
    Conflict = 6,
    /// The halt is in force, but not everybody had settled when the wait was over.
    NotSettled = 7,
    /// A verification found damage.
    Damaged = 8,
    /// A check found something that must be mended, or a drill did not pass.
    Unhealthy = 9,
    /// The halt is carried out; some enforcers fell silent and are stopped by their leases.
    ByLease = 10,
    /// The halt is carried out but for work that cannot be interrupted.
    NotInterruptible = 11,
    /// A second person must approve what was asked for.
    Pending = 12,
    /// The halt is carried out; some enforcers refused and were gone before they settled.
    Unsettled = 13,
    /// The wait was broken off by Ctrl-C; what was waited for goes on.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A command that failed.
#[derive(Debug)]
pub(crate) struct CommandError {
    pub(crate) exit: Exit,
    pub(crate) error: anyhow::Error,
    pub(crate) hints: Vec<String>,
}

impl CommandError {
    /// A failure with this exit code.
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into(), hints: Vec::new() }
    }

    /// A failure said in words.
    pub(crate) fn message(exit: Exit, message: impl Into<String>) -> Self {
        Self::new(exit, anyhow::Error::msg(message.into()))
    }

    /// Adds what to do about it.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl From<ClientError> for CommandError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Url { .. } => {
                Self::new(Exit::Usage, error).hint("set ESTOPPEL_URL or --url, such as http://127.0.0.1:7600")
            }
            ClientError::Unreachable { .. } if is_unknown_authority(&error) => {
                Self::new(Exit::Unreachable, error)
                    .hint("for a private CA set ESTOPPEL_CA or --ca to its certificate")
            }
            ClientError::Unreachable { .. } => Self::new(Exit::Unreachable, error)
                .hint("is `estoppel serve` running there? set ESTOPPEL_URL or --url for another address")
                .hint("on an agent's own host, `estoppel halt --local` works without any server"),
            ClientError::Refused(problem) => {
                let exit = match problem.status {
                    401 | 403 => Exit::NotAllowed,
                    404 => Exit::NotFound,
                    409 => Exit::Conflict,
                    503 => Exit::Unreachable,
                    _ => Exit::Failed,
                };
                let mut refused = Self::message(exit, problem.detail.clone());
                refused.hints.extend(problem.hint.clone());
                refused.hints.extend(problem.halts.iter().map(|halt| {
                    format!("active: {} {} by {} since {}: {}", halt.id, halt.scope, halt.activated_by, halt.timestamp, crate::output::inline(&halt.reason))
                }));
                refused
            }
            ClientError::Answer { .. } => Self::new(Exit::Failed, error)
                .hint("is the address that of an Estoppel server, of the same version?"),
        }
    }
}

/// Whether nobody whom we trust vouches for the server. The library tells it in words alone.
fn is_unknown_authority(error: &ClientError) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(current) = cause {
        let words = current.to_string();
        // The second: somebody of the same name as one whom we trust.
        if ["UnknownIssuer", "BadSignature"].iter().any(|word| words.contains(word)) {
            return true;
        }
        cause = current.source();
    }
    false
}

impl From<std::io::Error> for CommandError {
    fn from(error: std::io::Error) -> Self {
        Self::new(Exit::Failed, error)
    }
}

impl From<serde_json::Error> for CommandError {
    fn from(error: serde_json::Error) -> Self {
        Self::new(Exit::Failed, error)
    }
}

/// A command's result.
pub(crate) type Result<T = ExitCode> = std::result::Result<T, CommandError>;
