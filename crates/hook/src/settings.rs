//! Claude Code's settings: putting the hook in, taking it out, and finding what lets agents around it.
//!
//! A settings file is its owner's: everything else in it stays as it is written, in its order. A file
//! that does not parse is not touched; Claude Code itself leaves such a file out as a whole.
//!
//! Sources: <https://code.claude.com/docs/en/hooks>, <https://code.claude.com/docs/en/settings>.

mod diff;
mod gaps;
mod ordered;

use std::path::Path;

use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

pub use self::{
    diff::diff,
    gaps::{Gap, Installed, Level, Place, Source, examine, installed},
};
use ordered::Object;

/// Largest settings that are touched, in bytes.
pub const SETTINGS_BYTES_MAX: usize = 1024 * 1024;
/// What Claude Code gives our hook, in seconds: more than the longest deadline that makes sense
/// between two tools, so that ours is over first.
pub const TIMEOUT_S: u64 = 30;

/// An event that the hook is put in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub event: &'static str,
    /// Whether a matcher chooses among its occurrences.
    matches: bool,
    /// Whether a hook that fails can block it (`onFailure`, from version 2.1.295 on; others leave the
    /// key alone).
    blocks: bool,
}

/// The events that the hook is put in for: those that every version since autumn of 2025 knows, since
/// a name that a version does not know may cost the whole file.
pub const WANTED: [Wanted; 9] = {
    const fn wanted(event: &'static str, matches: bool, blocks: bool) -> Wanted {
        Wanted { event, matches, blocks }
    }
    [
        wanted("PreToolUse", true, true),
        wanted("PostToolUse", true, false),
        wanted("UserPromptSubmit", false, true),
        wanted("Stop", false, false),
        wanted("SubagentStart", false, false),
        wanted("SubagentStop", false, false),
        wanted("SessionStart", false, false),
        wanted("SessionEnd", false, false),
        wanted("PreCompact", false, true),
    ]
};

/// Why settings are not touched.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// They are not what Claude Code reads.
    #[error("the settings do not parse, so nothing is changed")]
    Malformed(#[source] serde_json::Error),
    /// A part is of another type than is documented.
    #[error("`{part}` is not {expected}, so nothing is changed")]
    Shape {
        /// The part.
        part: String,
        /// What it should be.
        expected: &'static str,
    },
    /// They are too large.
    #[error("the settings have {bytes} bytes: at most {SETTINGS_BYTES_MAX}")]
    TooLarge {
        /// Their size.
        bytes: usize,
    },
}

/// The settings with the hook for each event of [`WANTED`], and none of ours beside it.
///
/// # Errors
/// When they do not parse, or `hooks` is of another shape than is documented.
pub fn install(text: &str, command: &str) -> Result<String, SettingsError> {
    change(text, |hooks| {
        for wanted in WANTED {
            let ours = RawValue::from_string(group(wanted, command));
            let mut groups = match hooks.get(wanted.event) {
                Some(groups) => array(wanted.event, groups)?,
                None => Vec::new(),
            };
            groups.push(ours.map_err(SettingsError::Malformed)?);
            hooks.set(wanted.event, ordered::array(&groups, 2)?);
        }
        Ok(())
    })
}

/// The settings without the hook.
///
/// # Errors
/// As [`install`].
pub fn uninstall(text: &str) -> Result<String, SettingsError> {
    change(text, |_| Ok(()))
}

/// Takes ours out, then does more to the hooks that are left.
fn change(
    text: &str,
    more: impl FnOnce(&mut Object) -> Result<(), SettingsError>,
) -> Result<String, SettingsError> {
    if text.len() > SETTINGS_BYTES_MAX {
        return Err(SettingsError::TooLarge { bytes: text.len() });
    }
    let text = if text.trim().is_empty() { "{}" } else { text };
    let mut settings: Object = serde_json::from_str(text).map_err(SettingsError::Malformed)?;
    let shape = |_| SettingsError::Shape { part: "hooks".to_owned(), expected: "an object" };
    let mut hooks: Object = match settings.get("hooks") {
        Some(hooks) => serde_json::from_str(hooks.get()).map_err(shape)?,
        None => Object::default(),
    };
    for event in hooks.keys() {
        let Some(groups) = hooks.get(&event) else { continue };
        let (all, mut left) = (array(&event, groups)?, Vec::new());
        let before = all.len();
        let mut changed = false;
        for group in all {
            match without_ours(&event, &group)? {
                Kept::Whole => left.push(group),
                Kept::Part(group) => {
                    changed = true;
                    left.push(group);
                }
                Kept::Nothing => changed = true,
            }
        }
        if left.is_empty() && before > 0 {
            hooks.remove(&event);
        } else if changed {
            hooks.set(&event, ordered::array(&left, 2)?);
        }
    }
    more(&mut hooks)?;
    if hooks.is_empty() {
        settings.remove("hooks");
    } else {
        settings.set("hooks", hooks.raw(1)?);
    }
    Ok(format!("{}\n", settings.raw(0)?.get()))
}

/// What is left of a group of hooks without ours.
enum Kept {
    Whole,
    Part(Box<RawValue>),
    Nothing,
}

fn without_ours(event: &str, group: &RawValue) -> Result<Kept, SettingsError> {
    let shape =
        |_| SettingsError::Shape { part: format!("hooks.{event}"), expected: "a list of objects" };
    let mut object: Object = serde_json::from_str(group.get()).map_err(shape)?;
    let Some(handlers) = object.get("hooks") else { return Ok(Kept::Whole) };
    let handlers = array(&format!("{event}.hooks"), handlers)?;
    let before = handlers.len();
    let left: Vec<_> = handlers
        .into_iter()
        .filter(|handler| {
            let handler: Result<Handler, _> = serde_json::from_str(handler.get());
            !handler.is_ok_and(|handler| handler.command.is_some_and(|it| is_ours(&it)))
        })
        .collect();
    if left.len() == before {
        return Ok(Kept::Whole);
    }
    if left.is_empty() {
        return Ok(Kept::Nothing);
    }
    object.set("hooks", ordered::array(&left, 4)?);
    Ok(Kept::Part(object.raw(3)?))
}

#[derive(Deserialize)]
struct Handler {
    #[serde(default)]
    command: Option<String>,
}

fn array(part: &str, raw: &RawValue) -> Result<Vec<Box<RawValue>>, SettingsError> {
    let shape = |_| SettingsError::Shape { part: part.to_owned(), expected: "a list" };
    serde_json::from_str(raw.get()).map_err(shape)
}

/// Our group for an event, as it stands in the file.
fn group(wanted: Wanted, command: &str) -> String {
    let command = to_raw_value(command).map_or_else(|_| "\"\"".to_owned(), |raw| raw.to_string());
    let matcher = if wanted.matches { "\n        \"matcher\": \"*\"," } else { "" };
    let failure = if wanted.blocks { ",\n            \"onFailure\": \"block\"" } else { "" };
    format!(
        "{{{matcher}
        \"hooks\": [
          {{
            \"type\": \"command\",
            \"command\": {command},
            \"timeout\": {TIMEOUT_S}{failure}
          }}
        ]
      }}"
    )
}

/// The command that is put into the settings, for the shell that runs it; `None` for paths that are
/// no text. Without a state folder it is that of whoever runs it.
pub fn command(program: &Path, role: Option<&str>, state: Option<&Path>) -> Option<String> {
    let mut command = quoted(program.to_str()?);
    if let Some(role) = role {
        command = format!("{command} {role}");
    }
    if let Some(state) = state {
        command = format!("{command} --state {}", quoted(state.to_str()?));
    }
    Some(command)
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Whether a hook's command is ours, wherever it is installed.
fn is_ours(command: &str) -> bool {
    let words = words(command);
    let mut words = words.iter().map(|word| word.rsplit('/').next().unwrap_or_default());
    match words.next() {
        Some("estoppel-hook") => true,
        Some("estoppel") => words.next() == Some("hook"),
        _ => false,
    }
}

/// The first words of a command, as a shell reads them without expanding anything.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut escaped) = (Vec::new(), None, None, false);
    for c in command.chars() {
        match (quote, c) {
            _ if escaped => {
                word.get_or_insert_with(String::new).push(c);
                escaped = false;
            }
            (None | Some('"'), '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_with(String::new);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_with(String::new).push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const COMMAND: &str = "'/opt/e/estoppel-hook' --state '/home/u/state'";

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_hook_is_put_in_for_each_event_and_once() {
        let once = install("", COMMAND).unwrap();
        let settings = parsed(&once);
        for wanted in WANTED {
            let groups = settings["hooks"][wanted.event].as_array().unwrap();
            assert_eq!(groups.len(), 1, "{}", wanted.event);
            assert_eq!(groups[0]["hooks"][0]["command"], COMMAND);
            assert_eq!(groups[0]["hooks"][0]["timeout"], TIMEOUT_S);
        }
        assert_eq!(settings["hooks"]["PreToolUse"][0]["matcher"], "*");
        assert_eq!(settings["hooks"]["PreToolUse"][0]["hooks"][0]["onFailure"], "block");
        assert_eq!(install(&once, COMMAND).unwrap(), once, "again changes nothing");
        let moved = install(&once, "/usr/bin/estoppel-hook --state /x").unwrap();
        assert_eq!(moved.matches("estoppel-hook").count(), WANTED.len(), "{moved}");
        assert_eq!(uninstall(&once).unwrap(), "{}\n");
    }

    const OTHERS: &str = r#"{
  "model": "opus",
  "zeta": {"b": 1, "a": [1,  2]},
  "hooks": {
    "PreToolUse": [
      {
        "matcher": "Bash",
        "hooks": [ { "type": "command", "command": "./mine.sh" } ]
      }
    ],
    "Notification": [{"hooks": [{"type": "command", "command": "beep"}]}]
  },
  "alpha": 1.50
}
"#;

    #[test]
    fn what_is_anothers_stays_as_it_is_written() {
        let installed = install(OTHERS, COMMAND).unwrap();
        for part in [
            "  \"model\": \"opus\",\n  \"zeta\": {\"b\": 1, \"a\": [1,  2]},\n  \"hooks\": {",
            "        \"hooks\": [ { \"type\": \"command\", \"command\": \"./mine.sh\" } ]\n      },",
            "\"Notification\": [{\"hooks\": [{\"type\": \"command\", \"command\": \"beep\"}]}]",
            "  \"alpha\": 1.50\n}\n",
        ] {
            assert!(installed.contains(part), "{part}\n{installed}");
        }
        assert_eq!(parsed(&installed)["hooks"]["PreToolUse"].as_array().unwrap().len(), 2);
        let back = uninstall(&installed).unwrap();
        assert_eq!(parsed(&back), parsed(OTHERS));
        assert_eq!(back, OTHERS, "to the letter, where the file was laid out as most are");
    }

    #[test]
    fn ours_is_taken_out_of_a_group_that_holds_others() {
        let mixed = format!(
            r#"{{"hooks":{{"Stop":[{{"matcher":"","hooks":[{{"type":"command","command":"{COMMAND}"}},{{"type":"command","command":"x"}}]}}]}}}}"#
        );
        let left = parsed(&uninstall(&mixed).unwrap());
        assert_eq!(left["hooks"]["Stop"][0]["hooks"].as_array().unwrap().len(), 1);
        assert_eq!(left["hooks"]["Stop"][0]["hooks"][0]["command"], "x");
    }

    #[test]
    fn what_does_not_parse_is_not_touched() {
        let check = |text: &str, expect: &str| {
            let error = install(text, COMMAND).unwrap_err();
            assert!(error.to_string().contains(expect), "{text}: {error}");
        };
        check("{", "do not parse");
        check("// comment\n{}", "do not parse");
        check("[]", "do not parse");
        check(r#"{"hooks":{},"hooks":{}}"#, "do not parse");
        check(r#"{"hooks":[]}"#, "`hooks` is not an object");
        check(r#"{"hooks":{"Stop":{}}}"#, "`Stop` is not a list");
        check(r#"{"hooks":{"Stop":["x"]}}"#, "list of objects");
        check(&format!("{{}}{}", " ".repeat(SETTINGS_BYTES_MAX)), "at most");
    }

    #[test]
    fn ours_is_known_wherever_it_is() {
        for ours in [
            COMMAND,
            "estoppel-hook",
            "/a/estoppel hook",
            "\"/a b/estoppel-hook\" --state x",
            r"'/it'\''s/estoppel-hook' --state y",
        ] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in ["", "estoppel status", "./not-estoppel-hook", "echo estoppel-hook"] {
            assert!(!is_ours(other), "{other}");
        }
        let path = std::path::Path::new("/it's/estoppel-hook");
        assert!(is_ours(&command(path, None, Some(path)).unwrap()));
        let whole = std::path::Path::new("/a b/estoppel");
        assert!(is_ours(&command(whole, Some("hook"), None).unwrap()));
    }
}
