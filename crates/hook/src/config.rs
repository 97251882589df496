//! The hook's configuration: `hook.json` in its state folder, written by `estoppel hook install`.
//!
//! The client reads it at each start and the resident process at its own. It holds no secret: the
//! token is in a file of its own.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Shortest and longest deadline, in milliseconds.
pub const DEADLINE_MS: std::ops::RangeInclusive<u64> = 100..=60_000;
/// Largest configuration, in bytes.
const BYTES_MAX: u64 = 64 * 1024;
const FILE: &str = "hook.json";

/// What a hook does when it cannot find out whether something may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLost {
    /// Refuse.
    #[default]
    Refuse,
    /// Let it go: a halt that was given meanwhile is not seen.
    Allow,
}

/// The configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The servers of one deployment, separated by commas.
    pub servers: String,
    /// The file that holds the token, of role `agent`.
    pub token_file: PathBuf,
    /// Certificates (PEM) of those who may vouch for the servers, and nobody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The agent, for the scope `agent:NAME`.
    pub agent: String,
    /// The user on whose behalf it acts, for the scope `user:NAME`.
    pub user: String,
    /// What happens when no answer can be had.
    #[serde(default)]
    pub on_lost: OnLost,
    /// How long an answer may take, in milliseconds; afterwards it counts as lost.
    #[serde(default = "deadline_ms")]
    pub deadline_ms: u64,
    /// After how many seconds without a request the resident process ends.
    #[serde(default = "idle_seconds")]
    pub idle_seconds: u64,
    /// The binary that serves as the resident process.
    pub binary: PathBuf,
}

/// The deadline by default.
pub const fn deadline_ms() -> u64 {
    5_000
}

/// The idle time by default.
pub const fn idle_seconds() -> u64 {
    3_600
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is none.
    #[error("`{path}` is not there: run `estoppel hook install`")]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("`{path}` cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others could have written it.
    #[error("`{path}` is not yours alone (owner {uid}, mode {mode:o}): chmod 700 its folder")]
    NotOurs {
        /// The file or folder.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its mode.
        mode: u32,
    },
    /// It is no configuration.
    #[error("`{path}` is no configuration of the hook: run `estoppel hook install` again")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A deadline that is none.
    #[error("`{path}`: deadline_ms is {value}: expected {} to {}", DEADLINE_MS.start(), DEADLINE_MS.end())]
    Deadline {
        /// The file.
        path: PathBuf,
        /// Its value.
        value: u64,
    },
}

impl Config {
    /// The configuration's file in a state folder.
    pub fn file(state: &Path) -> PathBuf {
        state.join(FILE)
    }

    /// Reads the configuration of a state folder, which must be this user's alone.
    ///
    /// # Errors
    /// When it is missing, malformed, or others could have written it.
    pub fn read(state: &Path) -> Result<Self, ConfigError> {
        let path = Self::file(state);
        let failed = |source| ConfigError::Read { path: path.clone(), source };
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ConfigError::Missing { path });
            }
            Err(error) => return Err(failed(error)),
        };
        own(state, &std::fs::metadata(state).map_err(failed)?)?;
        own(&path, &metadata)?;
        if metadata.len() > BYTES_MAX {
            return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
        }
        let text = std::fs::read(&path).map_err(failed)?;
        let config: Self = serde_json::from_slice(&text)
            .map_err(|source| ConfigError::Malformed { path: path.clone(), source })?;
        if !DEADLINE_MS.contains(&config.deadline_ms) {
            return Err(ConfigError::Deadline { path, value: config.deadline_ms });
        }
        Ok(config)
    }

    /// How long an answer may take.
    pub const fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }
}

/// Whether nobody else can write it.
fn own(path: &Path, metadata: &std::fs::Metadata) -> Result<(), ConfigError> {
    let (uid, mode) = (metadata.uid(), metadata.mode() & 0o777);
    if uid == rustix::process::geteuid().as_raw() && mode & 0o022 == 0 {
        return Ok(());
    }
    Err(ConfigError::NotOurs { path: path.to_owned(), uid, mode })
}

/// The state folder where none is given: `$XDG_STATE_HOME/estoppel/hook`, else
/// `~/.local/state/estoppel/hook`.
pub fn default_state(var: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let set = |name| var(name).filter(|path: &PathBuf| path.is_absolute());
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    Some(state.join("estoppel/hook"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_wrong_with_a_configuration_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        let error = || Config::read(state).unwrap_err().to_string();
        assert!(error().contains("estoppel hook install"), "{}", error());
        std::fs::write(Config::file(state), "{}").unwrap();
        assert!(error().contains("no configuration"), "{}", error());
        let whole = r#"{"servers":"http://127.0.0.1:1","token_file":"/t","agent":"a","user":"u","binary":"/b"}"#;
        std::fs::write(Config::file(state), whole).unwrap();
        let config = Config::read(state).unwrap();
        assert_eq!((config.on_lost, config.deadline_ms), (OnLost::Refuse, 5_000));
        std::fs::write(Config::file(state), whole.replace("\"agent\"", "\"agnet\"")).unwrap();
        assert!(error().contains("no configuration"), "{}", error());
        let short = whole.replacen('{', r#"{"deadline_ms":1,"#, 1);
        std::fs::write(Config::file(state), short).unwrap();
        assert!(error().contains("100 to 60000"), "{}", error());
        std::fs::write(Config::file(state), whole).unwrap();
        std::fs::set_permissions(state, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(error().contains("not yours alone"), "{}", error());
    }

    #[test]
    fn the_state_folder_is_the_users() {
        let of = |vars: &'static [(&str, &str)]| {
            default_state(|name| {
                Some(PathBuf::from(vars.iter().find(|(known, _)| *known == name)?.1))
            })
        };
        let home = of(&[("HOME", "/home/u")]).unwrap();
        assert_eq!(home, Path::new("/home/u/.local/state/estoppel/hook"));
        let given = of(&[("HOME", "/home/u"), ("XDG_STATE_HOME", "/s")]).unwrap();
        assert_eq!(given, Path::new("/s/estoppel/hook"));
        assert_eq!(of(&[("HOME", "relative")]), None);
    }
}
