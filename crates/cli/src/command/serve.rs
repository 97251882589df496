//! `serve` and `config`.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use estoppel_api::Role;
use estoppel_connect::{
    Channel, Endpoint, Format, Http, HttpLimits, Pager, Plaintext, RetryPolicy, RoutingKey,
};
use estoppel_eventlog::WorkerCommand;
use estoppel_model::{EntityId, Secret};
use estoppel_server::{EgressResponse, RedisConfig, Running, Server, ServerConfig, TlsFiles};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{enforcer, hidden, supervisor, watchdog::Watchdog};
use crate::{
    args::{ConfigCommand, ServeArgs},
    config::{Config, ConfigError, PageFormat, Paging, Response},
    error::{CommandError, Exit, Result},
    output::Output,
    span::Span,
};

/// Longest time between two heartbeats.
const BEAT_MAX: Duration = Duration::from_secs(1);
/// First and longest pause before a gateway that ended is started again.
const RESTART: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

impl From<ConfigError> for CommandError {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Usage, error)
            .hint("`estoppel config show` prints every key with its default")
    }
}

/// `estoppel config`.
pub(crate) fn config(command: &ConfigCommand, output: &Output) -> Result {
    match command {
        ConfigCommand::Check { file } => {
            let config = Config::read(file)?;
            pager(&config)?;
            file_redis(&config)?;
            output.answer(&config, |_| format!("{} is good", file.display()))?;
        }
        ConfigCommand::Show => {
            let text = toml::to_string_pretty(&Config::default())
                .map_err(|error| CommandError::new(Exit::Failed, error))?;
            output.answer(&Config::default(), |_| text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `estoppel serve`.
pub(crate) fn serve(args: &ServeArgs, output: &Output) -> Result {
    raise_descriptors();
    let config = merged(args)?;
    let redis = redis(args, &config)?;
    let file = args.config.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(run(config, file, redis, output));
    // A recovery or a disk that hangs must not keep us.
    runtime.shutdown_timeout(Duration::from_millis(500));
    code
}

/// Takes all file descriptors that this process may have: each enforcer's stream is one.
fn raise_descriptors() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let all = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Where it is refused there are as many as before, and streams are bounded by that.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, all);
}

/// The file, and over it the environment and the arguments.
fn merged(args: &ServeArgs) -> Result<Config> {
    let mut config = match &args.config {
        Some(file) => Config::read(file)?,
        None => Config::default(),
    };
    if let Some(data) = &args.data {
        config.serve.data.clone_from(data);
    }
    if let Some(listen) = args.listen {
        config.serve.listen = listen;
    }
    if let Some(listen) = args.gateway_listen {
        config.gateway.listen = listen;
    }
    if args.tls_cert.is_some() {
        config.serve.tls_cert.clone_from(&args.tls_cert);
        config.serve.tls_key.clone_from(&args.tls_key);
    }
    if let Some(listen) = args.metrics_listen {
        config.serve.metrics_listen = Some(listen);
    }
    config.gateway.start &= !args.no_gateway;
    config.serve.allow_plaintext |= args.allow_plaintext;
    config.check()?;
    Ok(config)
}

async fn run(
    config: Config,
    file: Option<PathBuf>,
    redis: Option<RedisConfig>,
    output: &Output,
) -> Result {
    let mut asked = enforcer::EndSignals::new()?;
    let program = std::env::current_exe()?;
    let worker = WorkerCommand { program: program.clone(), args: vec![hidden::SQL_WORKER.into()] };
    let server_config = ServerConfig {
        listen: config.serve.listen,
        tls: tls(&config),
        plain_for_children: config.gateway.start || config.paging.is_some(),
        metrics_listen: config.serve.metrics_listen,
        public_url: config.public_url()?,
        lease: config.lease(),
        contact: config.serve.contact.clone(),
        two_persons: config.two_persons()?,
        drill_every: config.serve.drill_every.map(Span::duration),
        egress: match config.egress.response {
            Response::Ask => EgressResponse::Ask,
            Response::Auto => EgressResponse::Auto,
        },
        automatic_halts_per_hour: config.egress.automatic_halts_per_hour,
        gateway_mode: mode(&config).to_owned(),
        playbooks: config.serve.playbooks.clone(),
        evidence_bytes_max: config.serve.evidence_mib << 20,
        sql_memory_bytes: config.serve.sql_memory_mib << 20,
        sql_time: Duration::from_secs(config.serve.sql_seconds),
        pager: pager(&config)?,
        redis,
        ..ServerConfig::new(config.serve.data.clone(), worker)
    };
    let running = Server::start(server_config)
        .await
        .map_err(|error| CommandError::new(Exit::Failed, error))?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    // Without a file nothing says where pages go.
    let mut watchdog = file
        .filter(|_| config.paging.is_some())
        .map(|file| Watchdog::new(program.clone(), &file, config.lease(), running.local_url()));
    let gateway = if config.gateway.start {
        let token = running
            .machine_token("gateway", Role::Enforcer)
            .map_err(|error| CommandError::new(Exit::Failed, error))?;
        let child = GatewayChild {
            program,
            url: running.local_url().to_owned(),
            own: running.address(),
            token,
            config: config.clone(),
        };
        Some(tasks.spawn(keep(child, stop.clone())))
    } else {
        None
    };
    say(&running, &config, output)?;
    let mut reload = signal(SignalKind::hangup())?;
    let mut beat = tokio::time::interval((config.lease() / 15).min(BEAT_MAX));
    supervisor::notify("READY=1");
    loop {
        tokio::select! {
            () = asked.next() => break,
            Some(()) = reload.recv() => running.reload().await,
            _ = beat.tick() => if let Some(enforcers) = running.pulse().await {
                supervisor::notify("WATCHDOG=1");
                if let Some(watchdog) = &mut watchdog {
                    watchdog.beat(enforcers).await;
                }
            }
        }
    }
    supervisor::notify("STOPPING=1");
    output.note("estoppel: ending; enforcers go on until their leases are over, and then refuse");
    let drain = async {
        stop.cancel();
        if let Some(gateway) = gateway {
            // It has its own bound, and we are ending anyway.
            let _ = tokio::time::timeout(Duration::from_secs(8), gateway).await;
        }
        running.stop().await;
    };
    tokio::select! {
        () = drain => Ok(ExitCode::SUCCESS),
        () = asked.next() => {
            output.note("estoppel: asked again, ending at once; the journals go on at the next start");
            Ok(Exit::Failed.into())
        }
    }
}

fn tls(config: &Config) -> Option<TlsFiles> {
    let (cert, key) = (config.serve.tls_cert.clone()?, config.serve.tls_key.clone()?);
    Some(TlsFiles { cert, key })
}

const fn mode(config: &Config) -> &'static str {
    match config.egress.mode {
        crate::args::GatewayMode::Learn => "learn",
        crate::args::GatewayMode::Observe => "observe",
        crate::args::GatewayMode::Enforce => "enforce",
    }
}

fn say(running: &Running, config: &Config, output: &Output) -> Result<()> {
    let token = running.admin_token_file();
    let gateway = config.gateway.start.then(|| config.gateway.listen.to_string());
    let document = serde_json::json!({
        "api": running.url(),
        "gateway": gateway,
        "metrics": running.metrics_address().map(|address| format!("http://{address}/metrics")),
        "admin_token_file": token,
        "data": config.serve.data,
    });
    output.answer(&document, |_| {
        let gateway = gateway.map_or_else(|| "none".to_owned(), |address| format!("http://{address}"));
        format!(
            "estoppel {} serves {}\nadmin token  {}\ngateway      {gateway}\nunlisted egress: {:?}, paging: {}",
            env!("CARGO_PKG_VERSION"),
            running.url(),
            token.display(),
            config.egress.response,
            config.paging.as_ref().map_or("none (configure `[paging]`)", |_| "configured"),
        )
    })
}

/// The Redis of the command line or the environment, else that of the file.
fn redis(args: &ServeArgs, config: &Config) -> Result<Option<RedisConfig>> {
    let Some(url) = &args.redis else { return file_redis(config) };
    RedisConfig::new(&Secret::new(url.clone()), None, None)
        .map(Some)
        .map_err(|error| redis_usage(error.into()))
}

/// The Redis of the file, with the secrets that the environment holds.
fn file_redis(config: &Config) -> Result<Option<RedisConfig>> {
    let Some(redis) = &config.redis else { return Ok(None) };
    let password = secret("redis.password_env", redis.password_env.as_ref())?;
    let ca = match &redis.ca_file {
        None => None,
        Some(file) => Some(std::fs::read(file).map_err(|error| {
            let what = format!("`redis.ca_file`: `{}`", file.display());
            CommandError::new(Exit::Usage, anyhow::Error::new(error).context(what))
        })?),
    };
    RedisConfig::new(&Secret::new(redis.url.clone()), password.as_ref(), ca)
        .map(Some)
        .map_err(|error| redis_usage(error.into()))
}

fn redis_usage(error: anyhow::Error) -> CommandError {
    CommandError::new(Exit::Usage, error.context("`--redis`, `ESTOPPEL_REDIS` or `[redis]`"))
}

/// The secret in the environment variable that a key names.
fn secret(key: &'static str, variable: Option<&String>) -> Result<Option<Secret<String>>> {
    match variable {
        None => Ok(None),
        Some(variable) => match std::env::var(variable) {
            Ok(value) => Ok(Some(Secret::new(value))),
            Err(_) => Err(ConfigError::Variable { key, variable: variable.clone() }.into()),
        },
    }
}

/// Where pages go, with the secrets that the environment holds.
pub(super) fn pager(config: &Config) -> Result<Option<Pager>> {
    let Some(paging) = &config.paging else { return Ok(None) };
    let usage = |error: anyhow::Error| CommandError::new(Exit::Usage, error.context("`paging`"));
    let (name, format) = match paging.format {
        PageFormat::CloudEvents => ("webhook", Format::Generic),
        PageFormat::PagerDuty => {
            let key = secret("paging.routing_key_env", paging.routing_key_env.as_ref())?
                .unwrap_or_else(|| Secret::new(String::new()));
            let routing_key = RoutingKey::new(key).map_err(|error| usage(error.into()))?;
            ("pagerduty", Format::PagerDuty { routing_key })
        }
        PageFormat::Slack => ("slack", Format::Slack),
        PageFormat::Teams => ("teams", Format::Teams),
    };
    let url = match secret("paging.url_env", paging.url_env.as_ref())? {
        Some(url) => url,
        None => Secret::new(paging.url.clone().unwrap_or_default()),
    };
    let plaintext =
        if paging.allow_plaintext { Plaintext::Allowed } else { Plaintext::LoopbackOnly };
    let channel = Channel {
        name: EntityId::new(name).map_err(|error| usage(error.into()))?,
        endpoint: Endpoint::parse(url.expose(), plaintext).map_err(|error| usage(error.into()))?,
        format,
        token: secret("paging.bearer_env", paging.bearer_env.as_ref())?,
    };
    let http = Http::new(HttpLimits::default()).map_err(|error| usage(error.into()))?;
    Ok(Some(Pager::new(http, channel, RetryPolicy::default())))
}

/// The gateway beside the server: a process of its own, so that neither takes the other along.
struct GatewayChild {
    program: PathBuf,
    url: String,
    /// Where the API listens, which is no destination for agents.
    own: std::net::SocketAddr,
    token: Secret<String>,
    config: Config,
}

impl GatewayChild {
    fn command(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.program);
        let listen = self.config.gateway.listen.to_string();
        command.args(["gateway", "--until-stdin-closes", "--listen", &listen, "--state"]);
        command.arg(state(&self.config.serve.data));
        command.args(["--own-address", &self.own.to_string()]);
        for line in &self.config.gateway.resolve {
            command.args([OsString::from("--resolve"), line.into()]);
        }
        // None of these secrets is a gateway's business.
        for variable in self.config.paging.iter().flat_map(Paging::variables) {
            command.env_remove(variable);
        }
        command
            .env_remove("ESTOPPEL_REDIS")
            .env_remove("ESTOPPEL_CA")
            .env("ESTOPPEL_URL", &self.url)
            .env("ESTOPPEL_TOKEN", self.token.expose())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

fn state(data: &Path) -> PathBuf {
    data.join("gateway")
}

/// Keeps a gateway running until the server ends.
async fn keep(gateway: GatewayChild, stop: CancellationToken) {
    let mut pause = RESTART.0;
    loop {
        match gateway.command().spawn() {
            Ok(mut child) => {
                // Held here: waiting for a child closes its standard input otherwise.
                let stdin = child.stdin.take();
                let begun = tokio::time::Instant::now();
                tokio::select! {
                    ended = child.wait() => tracing::error!(?ended, "the gateway ended; it is started again"),
                    () = stop.cancelled() => {
                        // Its standard input closes, which ends it.
                        drop(stdin);
                        let _ = tokio::time::timeout(Duration::from_secs(6), child.wait()).await;
                        return;
                    }
                }
                if begun.elapsed() > RESTART.1 {
                    pause = RESTART.0;
                }
            }
            Err(error) => tracing::error!(%error, "the gateway cannot be started"),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        pause = (pause * 2).min(RESTART.1);
    }
}
