//! What gets around the hook on this machine, for `estoppel doctor`.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use estoppel_hook::{
    config::{self, Config, OnLost},
    settings::{self, Gap, Installed, Level, Place, SETTINGS_BYTES_MAX, Source},
};

use super::{canary, state_folder};

/// Where administrators put Claude Code's settings on Linux.
const MANAGED: &str = "/etc/claude-code";

/// Claude Code's folder of the user.
pub(super) fn user_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    set("CLAUDE_CONFIG_DIR").or_else(|| Some(set("HOME")?.join(".claude")))
}

/// Whether any settings that hold in this folder name the hook.
pub(super) fn is_installed() -> bool {
    !settings::installed(&sources().0).is_empty()
}

/// Looks at the settings that hold in this folder, and at the hook that they name. Finds nothing
/// where there are none: then nobody uses a coding agent here.
pub(crate) fn checks() -> Vec<Gap> {
    let (sources, mut gaps) = sources();
    let installed = settings::installed(&sources);
    let state = installed.iter().find_map(|it| it.state.as_ref()).map(PathBuf::from);
    let Ok(state) = state_folder(state.as_deref()) else { return gaps };
    if installed.is_empty() {
        gaps.extend(not_installed(Config::file(&state).exists(), sources.is_empty()));
        return gaps;
    }
    let config = Config::read(&state);
    let deadline_ms = config.as_ref().map_or(config::deadline_ms(), |config| config.deadline_ms);
    gaps.extend(settings::examine(&sources, deadline_ms));
    gaps.extend(installed.iter().filter_map(program));
    match config {
        Ok(config) => gaps.extend(resident(&state, &config)),
        // Without a configuration the hook refuses: a fault, and none that lets anything go.
        Err(error) => gaps.push(Gap::new(Level::Fault, error.to_string(), None)),
    }
    gaps.push(Gap::new(
        Level::Gap,
        "sub-agents: some versions of Claude Code have not called, or not heeded, their hooks",
        Some("try it with your version: docs/coding-agents.md says how"),
    ));
    if gaps.iter().all(|gap| gap.level != Level::Fault) {
        let commands: Vec<&str> = installed.iter().map(|it| it.command.as_str()).collect();
        gaps.insert(0, Gap::new(Level::Fine, commands.join("; "), None));
    }
    gaps
}

/// What it means that no settings name the hook.
fn not_installed(set_up: bool, no_settings: bool) -> Option<Gap> {
    let mend = Some("run `estoppel hook install --for claude-code`");
    if set_up {
        let what = "the hook is set up, and no settings name it any more";
        return Some(Gap::new(Level::Fault, what, mend));
    }
    let what = "Claude Code is used here without the hook: no halt reaches it";
    (!no_settings).then(|| Gap::new(Level::Gap, what, mend))
}

/// The settings that hold in this folder, and what is wrong with reading them.
fn sources() -> (Vec<Source>, Vec<Gap>) {
    let mut paths: Vec<(Place, PathBuf)> = Vec::new();
    paths.extend(user_folder().map(|folder| (Place::User, folder.join("settings.json"))));
    paths.push((Place::Project, PathBuf::from(".claude/settings.json")));
    paths.push((Place::Local, PathBuf::from(".claude/settings.local.json")));
    let managed = Path::new(MANAGED);
    paths.push((Place::Managed, managed.join("managed-settings.json")));
    let parts = std::fs::read_dir(managed.join("managed-settings.d")).into_iter().flatten();
    let mut parts: Vec<PathBuf> = parts.flatten().map(|part| part.path()).collect();
    parts.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    parts.sort();
    paths.extend(parts.into_iter().map(|path| (Place::Managed, path)));
    let (mut sources, mut gaps) = (Vec::new(), Vec::new());
    for (place, path) in paths {
        let shown = path.display().to_string();
        match read(&path) {
            Ok(text) => sources.push(Source { place, path: shown, text }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                gaps.push(Gap::new(Level::Gap, format!("{shown} cannot be read: {error}"), None));
            }
        }
    }
    (sources, gaps)
}

fn read(path: &Path) -> std::io::Result<String> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > SETTINGS_BYTES_MAX as u64 {
        return Err(std::io::Error::other("it is no file of a settings' size"));
    }
    std::fs::read_to_string(path)
}

/// Whether the program of a hook can be started.
fn program(hook: &Installed) -> Option<Gap> {
    let name = &hook.program;
    let paths: Vec<PathBuf> = if name.contains('/') {
        vec![PathBuf::from(name)]
    } else {
        // As the agent's shell looks it up.
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(name)).collect()
    };
    let starts = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
    };
    let what = || format!("`{name}` cannot be started, and then Claude Code may go on");
    let mend = Some("run `estoppel hook install --for claude-code`");
    (!paths.iter().any(starts)).then(|| Gap::new(Level::Fault, what(), mend))
}

/// What the hook is configured to do, and whether it has a server.
fn resident(state: &Path, config: &Config) -> Vec<Gap> {
    let mut gaps = Vec::new();
    if config.on_lost == OnLost::Allow {
        gaps.push(Gap::new(
            Level::Gap,
            "the hook lets agents go when it cannot find out (`on_lost: allow`)",
            Some("run `estoppel hook install` without `--on-lost allow`"),
        ));
    }
    match canary::standing(state, config) {
        Ok(standing) if standing.lease => {
            let server = standing.connected_to.unwrap_or_else(|| "no server".to_owned());
            gaps.push(Gap::new(Level::Fine, format!("the hook is in step with {server}"), None));
        }
        Ok(standing) => {
            let why = standing.problem.unwrap_or_else(|| "none has answered".to_owned());
            let what = format!("the hook has no lease of {}: {why}", config.servers);
            gaps.push(Gap::new(
                Level::Fault,
                what,
                Some("is the server there, and the token good?"),
            ));
        }
        Err(error) => {
            let what = format!("the hook's resident process: {error:#}");
            gaps.push(Gap::new(Level::Fault, what, Some("hook.log in its folder says more")));
        }
    }
    gaps
}
