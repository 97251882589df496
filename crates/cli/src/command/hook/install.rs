//! `hook install` and `hook uninstall`: a settings file, its backup, and the hook's own folder.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use estoppel_api::Client;
use estoppel_hook::{
    client::{self, Until},
    config::{self, Config, OnLost},
    settings::{self, SETTINGS_BYTES_MAX},
    wire::Request,
};
use estoppel_model::{Clock as _, EntityId, Secret, SystemClock};
use serde::Serialize;

use super::{canary, state_folder};
use crate::{
    args::{Agent, Connect, InstallArgs, OnLostArg, SettingsArgs, SettingsScope},
    error::{CommandError, Exit, Result},
    output::{Output, inline},
};

/// How long a resident process that is to end may take to say so.
const END_WITHIN: Duration = Duration::from_secs(2);

/// What became of a settings file.
#[derive(Debug, Serialize)]
struct Changed {
    settings: PathBuf,
    changed: bool,
    /// Where the file as it was is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<PathBuf>,
    diff: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    proof: Option<canary::Proof>,
}

/// `estoppel hook install`.
pub(super) fn install(args: &InstallArgs, connect: &Connect, output: &Output) -> Result {
    let state = state_folder(args.settings.state.as_deref())?;
    let command = command(&args.settings, &state)?;
    let file = SettingsFile::open(&args.settings)?;
    let after = file.changed_by(|text| settings::install(text, &command))?;
    if args.settings.plan {
        return file.planned(&after, output);
    }
    let config = configure(args, connect, &state)?;
    let changed = Changed {
        backup: file.replace(&after)?,
        changed: file.before.as_deref() != Some(&*after),
        diff: settings::diff(file.text(), &after),
        proof: Some(canary::prove(&file.path, &state, &config)?),
        settings: file.path,
    };
    let holds = changed.proof.as_ref().is_some_and(canary::Proof::holds);
    output.answer(&changed, said)?;
    Ok(if holds { ExitCode::SUCCESS } else { Exit::Unhealthy.into() })
}

/// `estoppel hook uninstall`.
pub(super) fn uninstall(args: &SettingsArgs, output: &Output) -> Result {
    let state = state_folder(args.state.as_deref())?;
    let file = SettingsFile::open(args)?;
    let after = match &file.before {
        Some(_) => file.changed_by(settings::uninstall)?,
        None => String::new(),
    };
    // What is laid out otherwise than we would, and holds nothing of ours, stays as it is.
    let same = |left: &str, right: &str| {
        let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
        parse(left) == parse(right)
    };
    let changes = file.before.is_some() && !same(file.text(), &after);
    let after = if changes { after } else { file.text().to_owned() };
    if args.plan {
        return file.planned(&after, output);
    }
    let changed = Changed {
        backup: if changes { file.replace(&after)? } else { None },
        changed: changes,
        diff: settings::diff(file.text(), &after),
        proof: None,
        settings: file.path,
    };
    if !super::doctor::is_installed() {
        // What is in no settings any more is set up no more.
        for file in [Config::file(&state), state.join("token")] {
            match fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
    }
    // Hooks of other settings start it again.
    end_resident(&state);
    output.answer(&changed, said)?;
    Ok(ExitCode::SUCCESS)
}

fn said(changed: &Changed) -> String {
    let file = inline(&changed.settings.display().to_string());
    let mut lines = vec![match (changed.changed, &changed.backup) {
        (false, _) => format!("{file}: nothing to change"),
        (true, None) => format!("{file}: written"),
        (true, Some(backup)) => {
            let backup = inline(&backup.display().to_string());
            format!("{file}: written; as it was: {backup}")
        }
    }];
    if let Some(proof) = &changed.proof {
        lines.extend(proof.lines());
    }
    lines.join("\n")
}

/// The command for the settings: the small binary beside this one, else this one itself. In settings
/// that others share it is looked up by its name, and has each user's own state.
fn command(args: &SettingsArgs, state: &Path) -> Result<String> {
    let own = std::env::current_exe()?;
    let small = own.with_file_name("estoppel-hook");
    let shared = args.settings.is_none() && args.scope == SettingsScope::Project;
    let is_default = state_folder(None).is_ok_and(|default| default == state);
    let state = Some(state).filter(|_| !is_default);
    let command = match (shared, small.is_file()) {
        (true, _) => settings::command(Path::new("estoppel-hook"), None, state),
        (false, true) => settings::command(&small, None, state),
        (false, false) => settings::command(&own, Some("hook"), state),
    };
    command.ok_or_else(|| {
        CommandError::message(Exit::Usage, "a path of the hook is no text, as settings need it")
    })
}

/// Writes the hook's own configuration, and ends a resident process that has an older one.
fn configure(args: &InstallArgs, connect: &Connect, state: &Path) -> Result<Config> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(state)?;
    fs::set_permissions(state, fs::Permissions::from_mode(0o700))?;
    // A file goes before the environment's token, which may be a person's own.
    let token_file = match (&connect.token_file, &connect.token) {
        (Some(file), _) => std::path::absolute(file)?,
        (None, Some(token)) => {
            let file = state.join("token");
            write_whole(&file, token.as_bytes(), 0o600)?;
            file
        }
        (None, None) => {
            return Err(CommandError::message(Exit::NotAllowed, "no token for the agent is given")
                .hint("`estoppel token create coder --role agent` makes one")
                .hint("then give --token-file FILE, or set ESTOPPEL_TOKEN"));
        }
    };
    agents_own(connect, super::super::token_of(&token_file)?)?;
    let user = match &args.user {
        Some(user) => user.clone(),
        None => account()?,
    };
    let config = Config {
        servers: connect.url.clone(),
        token_file,
        ca_file: connect.ca.as_deref().map(std::path::absolute).transpose()?,
        agent: args.agent.to_string(),
        user: user.to_string(),
        on_lost: match args.on_lost {
            OnLostArg::Refuse => OnLost::Refuse,
            OnLostArg::Allow => OnLost::Allow,
        },
        deadline_ms: args.deadline_ms,
        idle_seconds: args.idle_minutes * 60,
        binary: std::env::current_exe()?,
    };
    super::super::enforcer::servers(connect)?;
    connect.trust()?;
    write_whole(&Config::file(state), &serde_json::to_vec_pretty(&config)?, 0o600)?;
    end_resident(state);
    Ok(config)
}

/// Refuses a person's token: the agent, which runs as this user, could release with it.
fn agents_own(connect: &Connect, token: Secret<String>) -> Result<()> {
    let server = connect.url.split(',').next().unwrap_or_default().trim();
    let client = Client::trusting(server, token, &connect.trust()?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Only people may ask this; a server that is away will judge the token later.
    if runtime.block_on(client.status()).is_err() {
        return Ok(());
    }
    let message = "this token is a person's, and the agent could use it";
    Err(CommandError::message(Exit::NotAllowed, message)
        .hint("`estoppel token create coder --role agent` makes one for an agent"))
}

/// The account's name, else its number.
fn account() -> Result<EntityId> {
    let named = ["USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().and_then(|name| EntityId::new(&name).ok()));
    let number = || EntityId::new(&format!("uid-{}", rustix::process::geteuid().as_raw()));
    named.map_or_else(number, Ok).map_err(|error| CommandError::new(Exit::Failed, error))
}

/// Asks the resident process to end, if there is one.
fn end_resident(state: &Path) {
    if let Err(error) = client::ask_running(state, &Request::End, &Until::from_now(END_WITHIN)) {
        tracing::warn!(%error, "the hook's resident process did not answer");
    }
}

/// A settings file as it was read.
struct SettingsFile {
    /// Where it is, behind links.
    path: PathBuf,
    /// Its text; `None` where there is no file yet.
    before: Option<String>,
}

impl SettingsFile {
    fn open(args: &SettingsArgs) -> Result<Self> {
        let Agent::ClaudeCode = args.agent_kind;
        let path = match &args.settings {
            Some(path) => std::path::absolute(path)?,
            None => match args.scope {
                SettingsScope::User => super::doctor::user_folder()
                    .ok_or_else(|| CommandError::message(Exit::Usage, "HOME is not set"))?
                    .join("settings.json"),
                SettingsScope::Project => std::path::absolute(".claude/settings.json")?,
                SettingsScope::Local => std::path::absolute(".claude/settings.local.json")?,
            },
        };
        // Where a link leads, so that whoever keeps settings elsewhere keeps them there.
        let path = fs::canonicalize(&path).unwrap_or(path);
        let before = match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
            Ok(metadata) if !metadata.is_file() || metadata.len() > SETTINGS_BYTES_MAX as u64 => {
                let shown = path.display();
                let message = format!("`{shown}` is no file of at most {SETTINGS_BYTES_MAX} bytes");
                return Err(CommandError::message(Exit::Usage, message));
            }
            Ok(_) => Some(fs::read_to_string(&path).map_err(|error| {
                let error = anyhow::Error::new(error).context(format!("`{}`", path.display()));
                CommandError::new(Exit::Usage, error)
            })?),
        };
        Ok(Self { path, before })
    }

    fn text(&self) -> &str {
        self.before.as_deref().unwrap_or_default()
    }

    fn changed_by(
        &self,
        change: impl FnOnce(&str) -> std::result::Result<String, settings::SettingsError>,
    ) -> Result<String> {
        change(self.text()).map_err(|error| {
            let error = anyhow::Error::new(error).context(format!("`{}`", self.path.display()));
            CommandError::new(Exit::Usage, error).hint("mend the file, then run this again")
        })
    }

    fn planned(self, after: &str, output: &Output) -> Result {
        let diff = settings::diff(self.text(), after);
        let changed = self.before.as_deref() != Some(after) && !diff.is_empty();
        let planned = Changed { settings: self.path, changed, backup: None, diff, proof: None };
        output.answer(&planned, |planned| {
            let file = inline(&planned.settings.display().to_string());
            if !planned.changed {
                return format!("{file}: nothing to change");
            }
            let lines = planned.diff.lines().map(inline).collect::<Vec<_>>();
            format!("{file} would change:\n{}", lines.join("\n"))
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// Puts the text in the file's place, and the file as it was beside it.
    fn replace(&self, after: &str) -> Result<Option<PathBuf>> {
        if self.before.as_deref() == Some(after) {
            return Ok(None);
        }
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let Some(before) = &self.before else {
            // They hold no secret, and those of a project or an administrator are read by others.
            write_whole(&self.path, after.as_bytes(), 0o644)?;
            return Ok(None);
        };
        let mode = fs::metadata(&self.path)?.permissions().mode() & 0o777;
        let at = SystemClock.now().to_string().replace(':', "-");
        let mut backup = self.path.clone().into_os_string();
        backup.push(format!(".{at}.bak"));
        let backup = PathBuf::from(backup);
        write_whole(&backup, before.as_bytes(), mode)?;
        write_whole(&self.path, after.as_bytes(), mode)?;
        Ok(Some(backup))
    }
}

/// Writes a file whole or not at all.
fn write_whole(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let failed = |error: std::io::Error| {
        let error = anyhow::Error::new(error).context(format!("`{}`", path.display()));
        CommandError::new(Exit::Failed, error)
    };
    let mut unfinished = path.to_owned().into_os_string();
    unfinished.push(format!(".{}.new", std::process::id()));
    let written = || -> std::io::Result<()> {
        let mut file =
            fs::File::options().write(true).create_new(true).mode(mode).open(&unfinished)?;
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    written().map_err(|error| {
        let _ = fs::remove_file(&unfinished);
        failed(error)
    })
}

/// The deadline by default is shorter than what the agent gives the hook.
const _: () = assert!(config::deadline_ms() < settings::TIMEOUT_S * 1_000);
