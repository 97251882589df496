//! What a server is started with. Read from files and the environment by the binary alone.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use estoppel_connect::Pager;
use estoppel_detect::EgressMode;
use estoppel_eventlog::{OnSync, Options, WorkerCommand};
use estoppel_model::{Clock, SystemClock};

use crate::{PublicUrl, RedisConfig, StartError, TlsFiles, moment::AtMoment, release::TwoPersons};

/// What unlisted egress alone leads to, once an allowlist is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EgressResponse {
    /// A person is asked.
    #[default]
    Ask,
    /// The session is halted.
    Auto,
}

impl EgressResponse {
    pub(crate) const fn mode(self) -> EgressMode {
        match self {
            Self::Ask => EgressMode::Ask,
            Self::Auto => EgressMode::Auto,
        }
    }
}

/// What a server is started with.
#[derive(Clone)]
pub struct ServerConfig {
    /// Data folder; made if it is not there.
    pub data: PathBuf,
    /// Address of the API; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The certificate of the API; `None`: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// With TLS, take plain HTTP at a free port of 127.0.0.1, too: for children of this server.
    pub plain_for_children: bool,
    /// Address at which metrics, health and readiness are told to anybody; port 0 takes a free one.
    pub metrics_listen: Option<SocketAddr>,
    /// Where people reach the pages, when it is not the address that is listened on.
    pub public_url: Option<PublicUrl>,
    /// Most streams of enforcers at the same time.
    pub streams_max: usize,
    /// How long an enforcer may go on without an answer.
    pub lease: Duration,
    /// Whom people are to call, shown with every refusal; at most 300 bytes.
    pub contact: Option<String>,
    /// Which halts need two persons to be released.
    pub two_persons: TwoPersons,
    /// How often the kill switch is drilled by itself; `None`: never.
    pub drill_every: Option<Duration>,
    /// What unlisted egress alone leads to.
    pub egress: EgressResponse,
    /// Most halts that detections may give by themselves in an hour.
    pub automatic_halts_per_hour: u32,
    /// What the gateways do, for `status`.
    pub gateway_mode: String,
    /// Folder of playbooks that replace the built-in ones of the same name.
    pub playbooks: Option<PathBuf>,
    /// Room for evidence, in bytes.
    pub evidence_bytes_max: u64,
    /// How to start the SQL worker.
    pub sql_worker: WorkerCommand,
    /// Memory of the SQL worker.
    pub sql_memory_bytes: u64,
    /// How long one query may take.
    pub sql_time: Duration,
    /// Where pages go.
    pub pager: Option<Pager>,
    /// The Redis that mirrors the kill switch.
    pub redis: Option<RedisConfig>,
    /// Called at each [`Moment`](crate::Moment) of what must outlast a crash; how the crash tests
    /// choose theirs.
    pub at_moment: Option<AtMoment>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerConfig")
            .field("data", &self.data)
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

impl ServerConfig {
    /// The defaults, for a data folder and an SQL worker.
    pub fn new(data: PathBuf, sql_worker: WorkerCommand) -> Self {
        Self {
            data,
            listen: SocketAddr::from(([127, 0, 0, 1], 7600)),
            tls: None,
            plain_for_children: false,
            metrics_listen: None,
            public_url: None,
            streams_max: streams_max(),
            lease: Duration::from_secs(15),
            contact: None,
            two_persons: TwoPersons::default(),
            drill_every: None,
            egress: EgressResponse::Ask,
            automatic_halts_per_hour: 20,
            gateway_mode: "observe".to_owned(),
            playbooks: None,
            evidence_bytes_max: 100 << 30,
            sql_worker,
            sql_memory_bytes: 1 << 30,
            sql_time: Duration::from_secs(30),
            pager: None,
            redis: None,
            at_moment: None,
            clock: Arc::new(SystemClock),
        }
    }

    pub(crate) const fn egress_response(&self) -> &'static str {
        match self.egress {
            EgressResponse::Ask => "ask",
            EgressResponse::Auto => "auto",
        }
    }

    pub(crate) fn event_log_options(&self, on_sync: OnSync) -> Options {
        Options {
            on_sync: Some(on_sync),
            clock: Arc::clone(&self.clock),
            worker_memory_bytes: self.sql_memory_bytes,
            ..Options::new(self.sql_worker.clone())
        }
    }

    /// The text of a playbook that answers a detection: the operator's own, or ours.
    pub(crate) fn playbook(&self, name: &str) -> Result<String, StartError> {
        if let Some(folder) = &self.playbooks {
            let path = folder.join(format!("{name}.yaml"));
            match std::fs::read_to_string(&path) {
                Ok(text) => return Ok(text),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(StartError::File { path, source }),
            }
        }
        Ok(estoppel_playbook::builtin(name).unwrap_or_default().to_owned())
    }
}

/// File descriptors that are kept for people, files and children, however many enforcers come.
const DESCRIPTORS_KEPT: u64 = 1_024;

/// What the process's limit of descriptors leaves for streams; a quarter of a small one.
fn streams_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let left =
        limit.map_or(u64::MAX, |limit| limit.saturating_sub(DESCRIPTORS_KEPT).max(limit / 4));
    usize::try_from(left).unwrap_or(usize::MAX).min(tokio::sync::Semaphore::MAX_PERMITS)
}
