//! Arguments of what runs on: the server, a gateway, an agent; and of what is asked before that.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::SubjectArgs;

#[derive(Debug, ClapArgs)]
pub(crate) struct ServeArgs {
    /// Configuration file; what is given here or in the environment wins
    #[arg(long, env = "ESTOPPEL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Data folder
    #[arg(long, env = "ESTOPPEL_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Address of the API
    #[arg(long, env = "ESTOPPEL_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Address of the gateway
    #[arg(long, env = "ESTOPPEL_GATEWAY_LISTEN", value_name = "ADDR:PORT")]
    pub gateway_listen: Option<SocketAddr>,
    /// Address at which /metrics, /healthz and /readyz are told without a token
    #[arg(long, env = "ESTOPPEL_METRICS_LISTEN", value_name = "ADDR:PORT")]
    pub metrics_listen: Option<SocketAddr>,
    /// Start no gateway
    #[arg(long)]
    pub no_gateway: bool,
    /// The Redis that mirrors the kill switch, for loops that read it: redis://USER@HOST:PORT/DB, or
    /// rediss://; a password better in the environment than on a command line that others can see
    #[arg(long, env = "ESTOPPEL_REDIS", hide_env_values = true, value_name = "URL")]
    pub redis: Option<String>,
    /// The API's certificate and the chain behind it (PEM); read again when it changes, or on SIGHUP
    #[arg(long, env = "ESTOPPEL_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, env = "ESTOPPEL_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Listen on an address that is not loopback although the API has no TLS
    #[arg(long)]
    pub allow_plaintext: bool,
}

/// What a gateway does with a destination that is not on the allowlist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum GatewayMode {
    /// Let everything through and remember where it went
    Learn,
    /// Let it through and report it
    Observe,
    /// Refuse it
    Enforce,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct GatewayArgs {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:7601", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// A destination's address, instead of a look-up (as often as needed)
    #[arg(long, value_name = "NAME:PORT=ADDR:PORT")]
    pub resolve: Vec<String>,
    /// Folder for what must outlast a restart
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// An address of the server that agents shall not reach through the gateway
    #[arg(long, value_name = "ADDR:PORT", hide = true)]
    pub own_address: Vec<SocketAddr>,
    /// End when standard input is closed: so a gateway never outlives the server that started it
    #[arg(long, hide = true)]
    pub until_stdin_closes: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub subject: SubjectArgs,
    /// Run as this uid (and gid), when started as root
    #[arg(long = "as", value_name = "UID", default_value_t = 65_534)]
    pub uid: u32,
    /// A destination's address, instead of a look-up (as often as needed)
    #[arg(long, value_name = "NAME:PORT=ADDR:PORT")]
    pub resolve: Vec<String>,
    /// A gateway to use where no network namespace can be made; the agent can go around it
    #[arg(long, value_name = "ADDR:PORT")]
    pub proxy: Option<SocketAddr>,
    /// Only record what would have been stopped
    #[arg(long)]
    pub observe: bool,
    /// Go on when no server answers for longer than the lease (default: freeze)
    #[arg(long)]
    pub allow_on_lost: bool,
    /// A file that holds the token of the agent's own guard (role agent): the agent gets it as
    /// ESTOPPEL_TOKEN
    #[arg(long, env = "ESTOPPEL_GUARD_TOKEN_FILE", value_name = "FILE")]
    pub guard_token_file: Option<PathBuf>,
    /// Folder for orders, spool and evidence that could not be sent yet
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// The agent's command
    #[arg(required = true, last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say what is wrong in a configuration file, and where
    #[command(after_help = "\
Examples:
  estoppel config check
  estoppel config check /etc/estoppel.toml")]
    Check {
        /// The file
        #[arg(default_value = "estoppel.toml")]
        file: PathBuf,
    },
    /// Print every key with its default
    #[command(after_help = "\
Example:
  estoppel config show > estoppel.toml")]
    Show,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DoctorArgs {
    /// Data folder
    #[arg(long, env = "ESTOPPEL_DATA", default_value = "estoppel-data", value_name = "DIR")]
    pub data: PathBuf,
}
