//! What in the settings lets agents around the hook.

use serde_json::Value;

use super::{WANTED, is_ours, words};

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be, or worth to know.
    Fine,
    /// Something gets around the hook under circumstances, which are said.
    Gap,
    /// The hook does not hold.
    Fault,
}

/// Where settings stand; a later one goes before an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The user's own.
    User,
    /// The project's.
    Project,
    /// The project's on this machine.
    Local,
    /// The administrator's.
    Managed,
}

/// One settings file.
#[derive(Debug, Clone)]
pub struct Source {
    /// Where it stands.
    pub place: Place,
    /// Its path, for people.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// How much it matters.
    pub level: Level,
    /// What.
    pub found: String,
    /// What to do about it.
    pub mend: Option<&'static str>,
}

impl Gap {
    /// A finding.
    pub fn new(level: Level, found: impl Into<String>, mend: Option<&'static str>) -> Self {
        Self { level, found: found.into(), mend }
    }
}

const AGAIN: Option<&str> = Some("run `estoppel hook install --for claude-code`");

/// One of our hooks in the settings.
#[derive(Debug)]
struct Ours<'a> {
    source: &'a Source,
    matcher: Option<&'a str>,
    handler: &'a Value,
}

/// Looks through all settings that hold in a folder; `deadline_ms` is the hook's own.
pub fn examine(sources: &[Source], deadline_ms: u64) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let mut parsed: Vec<(&Source, Value)> = Vec::new();
    for source in sources {
        match serde_json::from_str(&source.text) {
            Ok(value) => parsed.push((source, value)),
            Err(error) => gaps.push(Gap::new(
                Level::Fault,
                format!("{} does not parse, and Claude Code leaves it out: {error}", source.path),
                Some("mend the file"),
            )),
        }
    }
    parsed.sort_by_key(|(source, _)| source.place);
    switched_off(&parsed, &mut gaps);
    for wanted in WANTED {
        event(wanted.event, &parsed, deadline_ms, &mut gaps);
    }
    for (source, settings) in &parsed {
        if settings["permissions"]["defaultMode"] == "bypassPermissions" {
            gaps.push(Gap::new(
                Level::Fine,
                format!(
                    "{}: permissions are bypassed; hooks run all the same, and nobody is asked \
                     between them and the tool",
                    source.path
                ),
                None,
            ));
        }
    }
    gaps
}

/// What turns all hooks off, or ours.
fn switched_off(parsed: &[(&Source, Value)], gaps: &mut Vec<Gap>) {
    let set =
        parsed.iter().rev().find(|(_, settings)| settings["disableAllHooks"].as_bool().is_some());
    if let Some((source, settings)) = set
        && settings["disableAllHooks"] == true
    {
        gaps.push(Gap::new(
            Level::Fault,
            format!("{}: `disableAllHooks` turns the hook off", source.path),
            Some("take `disableAllHooks` out"),
        ));
    }
    for (source, settings) in parsed {
        let managed_only = settings["allowManagedHooksOnly"] == true;
        let theirs = WANTED.iter().any(|wanted| !ours(wanted.event, settings).is_empty());
        if source.place == Place::Managed && managed_only && !theirs {
            gaps.push(Gap::new(
                Level::Fault,
                format!("{}: `allowManagedHooksOnly`, and the hook is not there", source.path),
                Some("put the hook into the managed settings"),
            ));
        }
    }
}

fn groups<'a>(event: &str, settings: &'a Value) -> impl Iterator<Item = (&'a Value, &'a Value)> {
    let groups = settings["hooks"][event].as_array().into_iter().flatten();
    groups.flat_map(|group| {
        let handlers = group["hooks"].as_array().into_iter().flatten();
        handlers.map(move |handler| (group, handler))
    })
}

fn ours<'a>(event: &str, settings: &'a Value) -> Vec<(&'a Value, &'a Value)> {
    groups(event, settings)
        .filter(|(_, handler)| handler["command"].as_str().is_some_and(is_ours))
        .collect()
}

fn event(name: &str, parsed: &[(&Source, Value)], deadline_ms: u64, gaps: &mut Vec<Gap>) {
    let found: Vec<Ours<'_>> = parsed
        .iter()
        .flat_map(|(source, settings)| {
            ours(name, settings).into_iter().map(|(group, handler)| Ours {
                source,
                matcher: group["matcher"].as_str(),
                handler,
            })
        })
        .collect();
    let stops = matches!(name, "PreToolUse" | "UserPromptSubmit");
    let (worst, weaker) = if stops { (Level::Fault, Level::Gap) } else { (Level::Gap, Level::Gap) };
    if found.is_empty() {
        let what = format!("{name}: the hook is not there");
        gaps.push(Gap::new(worst, what, AGAIN));
        return;
    }
    let tools = matches!(name, "PreToolUse" | "PostToolUse");
    let all = |it: &Ours<'_>| matches!(it.matcher, None | Some("" | "*" | ".*"));
    if tools && !found.iter().any(all) {
        let matchers: Vec<&str> = found.iter().filter_map(|it| it.matcher).collect();
        let what = format!("{name}: the matcher `{}` leaves tools out", matchers.join("`, `"));
        gaps.push(Gap::new(worst, what, AGAIN));
    }
    for it in &found {
        for key in ["if", "async", "asyncRewake", "once"] {
            let set = &it.handler[key];
            if !set.is_null() && *set != false {
                let what = format!("{name} in {}: `{key}` weakens the hook", it.source.path);
                gaps.push(Gap::new(worst, what, AGAIN));
            }
        }
        let timeout = it.handler["timeout"].as_f64();
        if let Some(seconds) = timeout
            && seconds * 1e3 <= deadline_ms as f64
        {
            let what = format!(
                "{name} in {}: a timeout of {seconds} s is over before the hook's own of \
                 {deadline_ms} ms, and Claude Code goes on then",
                it.source.path
            );
            gaps.push(Gap::new(worst, what, AGAIN));
        }
        if stops && it.handler["onFailure"] != "block" {
            let what = format!(
                "{name} in {}: without `onFailure: block` Claude Code goes on when the hook cannot \
                 be started",
                it.source.path
            );
            gaps.push(Gap::new(weaker, what, AGAIN));
        }
    }
    for (source, settings) in parsed.iter().filter(|_| name == "PreToolUse") {
        for (_, handler) in groups(name, settings) {
            let command = handler["command"].as_str().unwrap_or("a hook that is no command");
            if !is_ours(command) {
                let what = format!(
                    "{name} in {}: another hook, `{command}`; what it allows, ours still refuses",
                    source.path
                );
                gaps.push(Gap::new(Level::Fine, what, None));
            }
        }
    }
}

/// One of our hooks, as it is installed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Installed {
    /// The whole command.
    pub command: String,
    /// The program that it starts.
    pub program: String,
    /// The state folder that it is given.
    pub state: Option<String>,
}

/// Our hooks in the settings, each command once.
pub fn installed(sources: &[Source]) -> Vec<Installed> {
    let mut found: Vec<Installed> = Vec::new();
    for source in sources {
        let Ok(settings) = serde_json::from_str::<Value>(&source.text) else { continue };
        for wanted in WANTED {
            for (_, handler) in ours(wanted.event, &settings) {
                let command = handler["command"].as_str().unwrap_or_default().to_owned();
                let mut words = words(&command).into_iter();
                let Some(program) = words.next() else { continue };
                let state = words.skip_while(|word| word != "--state").nth(1);
                found.push(Installed { command, program, state });
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::install;

    const COMMAND: &str = "'/opt/estoppel-hook' --state '/s t'";

    fn ours() -> String {
        install("{}", COMMAND).unwrap()
    }

    fn source(place: Place, text: impl Into<String>) -> Source {
        Source { place, path: format!("{place:?}.json"), text: text.into() }
    }

    fn worst(sources: &[Source]) -> Level {
        examine(sources, 5_000).iter().map(|gap| gap.level).max().unwrap_or(Level::Fine)
    }

    #[test]
    fn what_was_just_installed_holds() {
        let sources = [source(Place::User, ours())];
        assert_eq!(examine(&sources, 5_000), []);
        let expect = Installed {
            command: COMMAND.into(),
            program: "/opt/estoppel-hook".into(),
            state: Some("/s t".into()),
        };
        assert_eq!(installed(&sources), [expect]);
    }

    #[test]
    fn each_way_around_the_hook_is_found() {
        let check = |sources: &[Source], level: Level, expect: &str| {
            let gaps = examine(sources, 5_000);
            let found = gaps.iter().any(|gap| gap.level == level && gap.found.contains(expect));
            assert!(found, "{expect}: {gaps:#?}");
        };
        let user = |text: String| source(Place::User, text);
        check(&[user("{}".into())], Level::Fault, "PreToolUse: the hook is not there");
        check(&[user("{}".into())], Level::Gap, "Stop: the hook is not there");
        check(&[user("{".into())], Level::Fault, "does not parse");
        let with = |from: &str, to: &str| vec![user(ours().replacen(from, to, 1))];
        check(&with("\"*\"", "\"Bash|Edit\""), Level::Fault, "`Bash|Edit` leaves tools out");
        check(&with("\"timeout\": 30", "\"timeout\": 5"), Level::Fault, "a timeout of 5 s");
        check(&with("\"timeout\": 30", "\"async\": true"), Level::Fault, "`async` weakens");
        check(&with("\"timeout\": 30", "\"if\": \"Bash(rm *)\""), Level::Fault, "`if` weakens");
        check(&with("\"onFailure\": \"block\"", "\"x\": 1"), Level::Gap, "without `onFailure");
        let off = source(Place::Local, r#"{"disableAllHooks": true}"#);
        check(&[user(ours()), off.clone()], Level::Fault, "turns the hook off");
        let on = source(Place::Managed, r#"{"disableAllHooks": false}"#);
        assert_eq!(worst(&[user(ours()), off, on]), Level::Fine, "the stronger place counts");
        let managed = source(Place::Managed, r#"{"allowManagedHooksOnly": true}"#);
        check(&[user(ours()), managed], Level::Fault, "allowManagedHooksOnly");
        let all = ours().replacen('{', r#"{"allowManagedHooksOnly": true,"#, 1);
        assert_eq!(worst(&[source(Place::Managed, all)]), Level::Fine);
        let other = source(
            Place::Project,
            r#"{"hooks":{"PreToolUse":[{"hooks":[{"type":"command","command":"yes"}]}]},
                "permissions":{"defaultMode":"bypassPermissions"}}"#,
        );
        check(&[user(ours()), other.clone()], Level::Fine, "another hook, `yes`");
        check(&[user(ours()), other], Level::Fine, "permissions are bypassed");
    }
}
