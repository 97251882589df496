//! What a test needs of the machine, and where it puts things.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc::sync_channel},
    time::{Duration, Instant},
};

use estoppel_host::{CgroupMode, Containment, Freezer, Mode, Prepared, Processes, RunConfig};
use estoppel_model::{EntityId, Subject};

use crate::{agents, orders::Script};

/// How long anything may take that should take milliseconds.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Whether agents can be confined here, by confining one.
pub(crate) fn permits() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("not root".to_owned());
    }
    let place = Place::new();
    let prepared = Prepared::new(place.config(&["sleep", "1000"])).map_err(|it| it.to_string())?;
    let agent = prepared.start(&Script::free(), Mode::Enforce).map_err(|it| it.to_string())?;
    let containment: Containment = agent.containment().clone();
    agent.processes().kill(SOON).map_err(|it| it.to_string())?;
    if containment.freezer == Freezer::Cgroup { Ok(()) } else { Err(containment.to_string()) }
}

pub(crate) fn subject() -> Subject {
    Subject::session(EntityId::new("real").unwrap())
}

/// A folder that agents can write to.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("estoppel-host-").tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command in its strongest confinement, with this test program as the shim.
    pub(crate) fn config(&self, command: &[&str]) -> RunConfig {
        let mut config = RunConfig::new(command.iter().map(OsString::from).collect(), subject());
        config.shim =
            vec![std::env::current_exe().unwrap().into(), estoppel_host::shim::SUBCOMMAND.into()];
        config
    }

    /// This test program as an agent: copied to where another uid can execute it.
    pub(crate) fn agent(&self, arguments: &[&str]) -> RunConfig {
        let copy = self.path("agent");
        if !copy.exists() {
            fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let copy = copy.to_str().unwrap();
        self.config(&[&[copy, agents::SUBCOMMAND], arguments].concat())
    }

    /// A shell script as the agent, in this folder.
    pub(crate) fn script(&self, script: &str) -> RunConfig {
        let script = format!("cd {}; {script}", self.folder.path().display());
        self.config(&["sh", "-c", &script])
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Waits until a file ends with a line feed, and returns it.
    pub(crate) fn await_line(&self, name: &str) -> String {
        until(|| Some(self.read(name)).filter(|text| text.ends_with('\n')))
    }

    /// Waits until a file has more bytes than now.
    pub(crate) fn await_growth(&self, name: &str) {
        let before = self.read(name).len();
        until(|| (self.read(name).len() > before).then_some(()));
    }

    /// Whether a file stays as it is for a while. Nothing tells that something will *not* happen.
    pub(crate) fn stays(&self, name: &str) -> bool {
        let before = self.read(name);
        pause(Duration::from_millis(150));
        self.read(name) == before
    }
}

pub(crate) fn pause(time: Duration) {
    let (_open, nothing) = sync_channel::<()>(0);
    let _ = nothing.recv_timeout(time);
}

/// Looks again and again until there is something; panics when there is nothing soon.
pub(crate) fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < SOON, "nothing within {SOON:?}");
        pause(Duration::from_millis(2));
    }
}

/// What [`start`] has started.
static STARTED: Mutex<Vec<Arc<Processes>>> = Mutex::new(Vec::new());

/// Starts without a supervisor.
pub(crate) fn start(config: RunConfig) -> estoppel_host::Agent {
    let agent = Prepared::new(config).unwrap().start(&Script::free(), Mode::Enforce).unwrap();
    STARTED.lock().unwrap().push(agent.processes());
    agent
}

/// Kills what a test has left, also one that failed.
pub(crate) fn end_agents() {
    for processes in STARTED.lock().unwrap().drain(..) {
        processes.kill(SOON).unwrap();
    }
}

/// Both ways to hold processes.
pub(crate) fn each_freezer(place: &Place, script: &str) -> [RunConfig; 2] {
    let mut without = place.script(script);
    without.cgroup = CgroupMode::None;
    [place.script(script), without]
}

pub(crate) fn exists(path: &Path) -> bool {
    path.try_exists().unwrap()
}
