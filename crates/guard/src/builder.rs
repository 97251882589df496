//! How a guard is described and started.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use estoppel_link::{
    EventBuffer, Link, LinkConfig, LinkError, OnLost, Trust, TrustError, breaker::Breakers,
    frame::EnforcerKind,
};
use estoppel_model::{Clock, EntityId, IdError, Limit, Secret, Subject, SystemClock};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use crate::{
    Guard, Mode, Texts,
    guard::Parts,
    in_flight::{InFlight, Stops},
};

/// Describes a guard.
#[derive(Clone)]
#[must_use]
pub struct Builder {
    servers: Vec<Url>,
    token: Option<Secret<String>>,
    base: Subject,
    name: Option<String>,
    state_dir: Option<PathBuf>,
    mode: Mode,
    limit: Limit,
    on_lost: OnLost,
    texts: Texts,
    events: EventBuffer,
    trust: Trust,
    clock: Arc<dyn Clock>,
    lifecycle: Option<(TaskTracker, CancellationToken)>,
}

/// Why a guard cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// An address is none.
    #[error("server `{text}`: write http://HOST:PORT or https://HOST:PORT")]
    Server {
        /// What was given.
        text: String,
    },
    /// A token is needed.
    #[error(
        "no token is given: set ESTOPPEL_TOKEN (`estoppel token create NAME --role agent` makes one)"
    )]
    NoToken,
    /// The agent's name is none.
    #[error("agent: {0}")]
    Agent(#[source] IdError),
    /// A variable of the environment is wrong.
    #[error("{name} is `{value}`: {expected}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A guard runs in the background.
    #[error("no tokio runtime is running here: call this from async code")]
    NoRuntime,
    /// The file of authorities names none.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The link cannot be started.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            token: None,
            base: Subject::default(),
            name: None,
            state_dir: None,
            mode: Mode::default(),
            limit: Limit::default(),
            on_lost: OnLost::default(),
            texts: Texts::default(),
            events: EventBuffer::default(),
            trust: Trust::system(),
            clock: Arc::new(SystemClock),
            lifecycle: None,
        }
    }
}

impl Builder {
    /// Takes what variables say; see [`Guard::from_env`].
    pub(crate) fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, ConnectError> {
        let mut builder = Self::default();
        let set = |name| var(name).filter(|value| !value.is_empty());
        for server in set("ESTOPPEL_URL").unwrap_or_default().split(',').map(str::trim) {
            if !server.is_empty() {
                builder = builder.server(server)?;
            }
        }
        builder.token = set("ESTOPPEL_TOKEN").map(Secret::new);
        if let Some(file) = set("ESTOPPEL_CA") {
            builder = builder.ca_file(Path::new(&file))?;
        }
        builder.state_dir = set("ESTOPPEL_STATE_DIR").map(PathBuf::from);
        if let Some(limits) = set("ESTOPPEL_LIMITS") {
            builder.limit = serde_json::from_str(&limits).map_err(|_| ConnectError::Variable {
                name: "ESTOPPEL_LIMITS",
                value: limits.chars().take(64).collect::<String>().escape_debug().to_string(),
                expected: "write JSON such as {\"steps_max\": 100, \"cost_usd_max\": 5}",
            })?;
        }
        builder.mode = match set("ESTOPPEL_MODE").as_deref() {
            None | Some("enforce") => Mode::Enforce,
            Some("observe") => Mode::Observe,
            Some(other) => {
                return Err(ConnectError::Variable {
                    name: "ESTOPPEL_MODE",
                    value: other.chars().take(32).collect::<String>().escape_debug().to_string(),
                    expected: "write `enforce` or `observe`",
                });
            }
        };
        Ok(builder)
    }

    /// Adds a server; several belong to one deployment and are tried in turn.
    ///
    /// # Errors
    /// When it is no HTTP address.
    pub fn server(mut self, url: &str) -> Result<Self, ConnectError> {
        let error = || ConnectError::Server { text: url.escape_debug().to_string() };
        let url: Url = url.parse().map_err(|_| error())?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(error());
        }
        self.servers.push(url);
        Ok(self)
    }

    /// The certificates, in PEM, of those who may vouch for the servers, and nobody else.
    ///
    /// # Errors
    /// When the file names none.
    pub fn ca_file(mut self, file: &Path) -> Result<Self, ConnectError> {
        self.trust = Trust::only(file)?;
        Ok(self)
    }

    /// The agent's token.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(Secret::new(token.into()));
        self
    }

    /// The agent that this process is.
    ///
    /// # Errors
    /// When the name is none that a scope could hold.
    pub fn agent(mut self, name: &str) -> Result<Self, ConnectError> {
        self.base.agent = Some(EntityId::new(name).map_err(ConnectError::Agent)?);
        Ok(self)
    }

    /// All that is known beforehand of who acts in this process.
    pub fn base(mut self, subject: Subject) -> Self {
        self.base = subject;
        self
    }

    /// A name for people; otherwise the agent's name and the process id.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Where orders and events are kept over a restart; one folder for each process. Without one,
    /// they are in memory only.
    pub fn state_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(dir.into());
        self
    }

    /// Whether the guard stops what is to be stopped.
    pub const fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// The most that each task may do; of this and of what `limit` orders say the stricter holds,
    /// bound by bound. A task that is over a bound is stopped here at once, with or without a
    /// server. Without this, orders alone bound.
    pub const fn limits(mut self, limit: Limit) -> Self {
        self.limit = limit;
        self
    }

    /// What happens while the lease is over.
    pub const fn on_lost(mut self, on_lost: OnLost) -> Self {
        self.on_lost = on_lost;
        self
    }

    /// The texts that an agent's user sees.
    pub fn texts(mut self, texts: Texts) -> Self {
        self.texts = texts;
        self
    }

    /// How many events are held while no server answers, and what happens beyond.
    pub const fn events(mut self, events: EventBuffer) -> Self {
        self.events = events;
        self
    }

    /// The clocks, for tests.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Runs the guard's tasks in the caller's tracker, and ends them with the caller's token; by
    /// default it has its own.
    pub fn lifecycle(mut self, tasks: TaskTracker, stop: CancellationToken) -> Self {
        self.lifecycle = Some((tasks, stop.child_token()));
        self
    }

    /// Starts the guard, which connects in the background; see [`Guard::ready`].
    ///
    /// # Errors
    /// When there is no server, no token or no runtime, or the state folder cannot be used; a server
    /// that is away is no error.
    pub fn connect(self) -> Result<Guard, ConnectError> {
        tokio::runtime::Handle::try_current().map_err(|_| ConnectError::NoRuntime)?;
        let (tasks, stop) = self.lifecycle.unwrap_or_default();
        let name = self.name.unwrap_or_else(|| {
            let agent = self.base.agent.as_ref().map_or("agent", EntityId::as_str);
            format!("{agent} (process {})", std::process::id())
        });
        let gaps = match self.mode {
            Mode::Enforce => Vec::new(),
            Mode::Observe => vec!["it observes only and stops nothing".to_owned()],
        };
        let in_flight = Arc::new(InFlight::default());
        let breakers = Arc::new(Breakers::default());
        breakers.set_observes(self.mode == Mode::Observe);
        let look_changed = Arc::new(Notify::new());
        let stops = Stops::new(
            Arc::clone(&in_flight),
            Arc::clone(&breakers),
            Arc::clone(&look_changed),
            self.mode,
            Arc::clone(&self.clock),
        );
        let token = self.token.ok_or(ConnectError::NoToken)?;
        // Sessions and users come as they come: no subjects are named beforehand.
        let config = LinkConfig {
            state_dir: self.state_dir,
            on_lost: self.on_lost,
            gaps,
            events: self.events,
            trust: self.trust,
            in_flight: Some(Arc::new(stops)),
            ..LinkConfig::new(self.servers, token, EnforcerKind::Guard, name)
        };
        let (link, events) = Link::start(config, Arc::clone(&self.clock), &tasks, stop.clone())?;
        Ok(Guard::start(Parts {
            link,
            events,
            in_flight,
            breakers,
            look_changed,
            limit: self.limit,
            clock: self.clock,
            mode: self.mode,
            texts: self.texts,
            base: self.base,
            tasks,
            stop,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(vars: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        |name| Some(vars.iter().find(|(known, _)| *known == name)?.1.to_owned())
    }

    #[test]
    fn the_environment_says_where_and_who() {
        let builder = Builder::from_vars(vars(&[
            ("ESTOPPEL_URL", "http://127.0.0.1:7600, https://two.example"),
            ("ESTOPPEL_TOKEN", "t"),
            ("ESTOPPEL_STATE_DIR", ""),
            ("ESTOPPEL_MODE", "observe"),
        ]))
        .unwrap();
        assert_eq!(builder.servers.len(), 2);
        assert_eq!((builder.mode, builder.state_dir), (Mode::Observe, None));
        let limits = vars(&[("ESTOPPEL_LIMITS", r#"{"steps_max": 100, "cost_usd_max": 5}"#)]);
        let limit = Builder::from_vars(limits).unwrap().limit;
        assert_eq!((limit.steps_max, limit.cost_usd_max), (Some(100), Some(5.0)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |builder: Result<Builder, ConnectError>, expect: &str| {
            let error = builder.and_then(Builder::connect).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        check(Ok(Builder::default().token("t")), "async code");
        let _inside = runtime.enter();
        check(Ok(Builder::default()), "ESTOPPEL_TOKEN");
        check(Ok(Builder::default().token("t")), "ESTOPPEL_URL");
        check(Builder::default().server("127.0.0.1:7600"), "http://HOST:PORT");
        check(Builder::default().server("unix:/x"), "http://HOST:PORT");
        check(Builder::default().agent("a b"), "U+0020");
        check(Builder::from_vars(vars(&[("ESTOPPEL_MODE", "off")])), "`enforce` or `observe`");
        let misspelt = vars(&[("ESTOPPEL_LIMITS", r#"{"step_max": 100}"#)]);
        check(Builder::from_vars(misspelt), "\"steps_max\": 100");
    }
}
