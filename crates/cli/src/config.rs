//! The configuration file of `serve`: every key, its default and its bounds.
//!
//! What is given on the command line or in the environment wins over the file. Unknown keys are
//! errors. Secrets are not written here: a key ending in `_env` names the variable that holds one.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use estoppel_killswitch::frame::CONTACT_BYTES_MAX;
use estoppel_model::Kind;
use estoppel_server::{PublicUrl, TwoPersons};
use serde::{Deserialize, Serialize};

use crate::{args::GatewayMode, span::Span};

/// The whole file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub serve: Serve,
    pub egress: Egress,
    pub gateway: Gateway,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paging: Option<Paging>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<Redis>,
}

/// `[serve]`: the control plane.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Serve {
    /// Data folder.
    pub data: PathBuf,
    /// Address of the API.
    pub listen: SocketAddr,
    /// The API's certificate with the chain behind it (PEM); with `tls_key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Whether to listen on an address that is not loopback although the API has no TLS.
    pub allow_plaintext: bool,
    /// Address at which metrics, health and readiness are told without a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,
    /// Where people reach the pages, behind a proxy or under a name: `https://HOST`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
    /// How long an enforcer goes on without an answer, in seconds: 2 to 300.
    pub lease_seconds: u64,
    /// Whom people are to call; shown with every refusal, so that whoever meets one knows: at most 300
    /// bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contact: Option<String>,
    /// Whose halts only two persons together release: `global` and kinds of scopes, such as `tenant`.
    pub two_persons: Vec<String>,
    /// How often the kill switch is drilled by itself, such as `24h`: one minute to 30 days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drill_every: Option<Span>,
    /// Folder of playbooks that replace the built-in ones of the same name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub playbooks: Option<PathBuf>,
    /// Room for evidence, in MiB: 64 to 1,073,741,824.
    pub evidence_mib: u64,
    /// Memory of the SQL worker, in MiB: 128 to 65,536.
    pub sql_memory_mib: u64,
    /// How long one query may take, in seconds: 1 to 600.
    pub sql_seconds: u64,
}

impl Default for Serve {
    fn default() -> Self {
        Self {
            data: PathBuf::from("estoppel-data"),
            listen: SocketAddr::from(([127, 0, 0, 1], 7600)),
            tls_cert: None,
            tls_key: None,
            allow_plaintext: false,
            metrics_listen: None,
            public_url: None,
            lease_seconds: 15,
            contact: None,
            two_persons: Vec::new(),
            drill_every: None,
            playbooks: None,
            evidence_mib: 102_400,
            sql_memory_mib: 1024,
            sql_seconds: 30,
        }
    }
}

/// What unlisted egress alone leads to, once an allowlist is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Response {
    /// A run of the playbook that asks a person; a second signal lets it act.
    Ask,
    /// The session is halted at once.
    Auto,
}

/// `[egress]`: what happens to unlisted destinations.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Egress {
    /// `learn`, `observe` or `enforce`; without an allowlist each of them learns.
    pub mode: GatewayMode,
    /// `ask` or `auto`.
    pub response: Response,
    /// Most halts that detections may give by themselves in an hour.
    pub automatic_halts_per_hour: u32,
}

impl Default for Egress {
    fn default() -> Self {
        Self { mode: GatewayMode::Observe, response: Response::Ask, automatic_halts_per_hour: 20 }
    }
}

/// `[gateway]`: the gateway beside the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Gateway {
    /// Whether to start it.
    pub start: bool,
    /// Its address.
    pub listen: SocketAddr,
    /// Addresses of destinations, instead of look-ups: `NAME:PORT=ADDR:PORT`.
    pub resolve: Vec<String>,
}

impl Default for Gateway {
    fn default() -> Self {
        Self { start: true, listen: SocketAddr::from(([127, 0, 0, 1], 7601)), resolve: Vec::new() }
    }
}

/// `[paging]`: where a halt or an incident pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Paging {
    /// Where to post to; this or `url_env`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The environment variable that holds the address, where knowing it is enough to post there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_env: Option<String>,
    /// Whether to post without TLS to another machine.
    #[serde(default)]
    pub allow_plaintext: bool,
    /// `cloudevents` (the default), `pagerduty`, `slack` or `teams`.
    #[serde(default)]
    pub format: PageFormat,
    /// The environment variable that holds PagerDuty's routing key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing_key_env: Option<String>,
    /// The environment variable that holds a bearer token for the webhook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer_env: Option<String>,
}

impl Paging {
    /// The environment variables that hold its secrets.
    pub(crate) fn variables(&self) -> impl Iterator<Item = &String> {
        [&self.url_env, &self.routing_key_env, &self.bearer_env].into_iter().flatten()
    }
}

/// What a page looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PageFormat {
    /// CloudEvents 1.0, structured.
    #[default]
    CloudEvents,
    /// PagerDuty Events v2.
    PagerDuty,
    /// Slack's incoming webhooks.
    Slack,
    /// Microsoft Teams' Workflows webhooks.
    Teams,
}

impl PageFormat {
    /// Whether it is a chat: people answer there by following links, and knowing the webhook's address
    /// is enough to write into it.
    const fn is_chat(self) -> bool {
        matches!(self, Self::Slack | Self::Teams)
    }
}

/// `[redis]`: the Redis that mirrors the kill switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Redis {
    /// Where it is: `redis://[USER@]HOST[:PORT][/DATABASE]`, `rediss://` for TLS.
    pub url: String,
    /// The environment variable that holds the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_env: Option<String>,
    /// File of the certificates (PEM) that are trusted instead of the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// What is wrong with a configuration, with its key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("configuration `{path}`")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("configuration `{path}`: {source}")]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("`{key}` is {value}: expected {expected}")]
    Bound { key: &'static str, value: String, expected: String },
    #[error("`{key}` names the variable `{variable}`, which is not set")]
    Variable { key: &'static str, variable: String },
}

impl Config {
    /// Reads a file.
    pub(crate) fn read(path: &std::path::Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        config.check()?;
        Ok(config)
    }

    /// Checks what types alone do not say.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        bound("serve.lease_seconds", self.serve.lease_seconds, 2, 300)?;
        bound("serve.evidence_mib", self.serve.evidence_mib, 64, 1 << 30)?;
        bound("serve.sql_memory_mib", self.serve.sql_memory_mib, 128, 65_536)?;
        bound("serve.sql_seconds", self.serve.sql_seconds, 1, 600)?;
        if let Some(every) = self.serve.drill_every {
            bound("serve.drill_every", every.duration().as_secs(), 60, 30 * 86_400)?;
        }
        if let Some(contact) = &self.serve.contact {
            bound("serve.contact (bytes)", contact.len() as u64, 1, CONTACT_BYTES_MAX as u64)?;
        }
        self.two_persons()?;
        for (key, here, other) in [
            ("serve.tls_key", &self.serve.tls_key, &self.serve.tls_cert),
            ("serve.tls_cert", &self.serve.tls_cert, &self.serve.tls_key),
        ] {
            if here.is_none() && other.is_some() {
                let expected = "a file: a certificate and its key go together".to_owned();
                return Err(ConfigError::Bound { key, value: "missing".to_owned(), expected });
            }
        }
        let plain = self.serve.tls_cert.is_none();
        if plain && !self.serve.listen.ip().is_loopback() && !self.serve.allow_plaintext {
            return Err(ConfigError::Bound {
                key: "serve.listen",
                value: self.serve.listen.to_string(),
                expected:
                    "a loopback address, `tls_cert` and `tls_key`, or `allow_plaintext` for a \
                     network that you trust with every token"
                        .to_owned(),
            });
        }
        self.public_url()?;
        if let Some(paging) = &self.paging {
            self.paging(paging)?;
        }
        if let Some(redis) = &self.redis {
            let url = url::Url::parse(&redis.url);
            if url.is_ok_and(|url| url.password().is_some()) {
                return Err(ConfigError::Bound {
                    key: "redis.url",
                    value: "a URL with a password".to_owned(),
                    expected:
                        "one without; name the variable that holds the password in `redis.password_env`"
                            .to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Checks where pages go.
    fn paging(&self, paging: &Paging) -> Result<(), ConfigError> {
        let wrong = |key, value: &str, expected: &str| {
            Err(ConfigError::Bound { key, value: value.to_owned(), expected: expected.to_owned() })
        };
        let chat = paging.format.is_chat();
        match (&paging.url, &paging.url_env) {
            (Some(_), Some(_)) => {
                return wrong("paging.url", "given beside `paging.url_env`", "one of the two");
            }
            (Some(_), None) if chat => {
                return wrong(
                    "paging.url",
                    "an address that is a secret",
                    "none; name the variable that holds the webhook's address in `paging.url_env`",
                );
            }
            (None, None) if chat => {
                return wrong(
                    "paging.url_env",
                    "missing",
                    "the name of the variable that holds the webhook's address",
                );
            }
            (None, None) => {
                return wrong("paging.url", "missing", "where to post to, or `paging.url_env`");
            }
            _ => {}
        }
        if chat && self.serve.public_url.is_none() {
            return wrong(
                "serve.public_url",
                "missing",
                "where people reach the pages, such as https://halt.example.com: the links in the \
                 chat lead there",
            );
        }
        if paging.format == PageFormat::PagerDuty && paging.routing_key_env.is_none() {
            return wrong(
                "paging.routing_key_env",
                "missing",
                "the name of the variable that holds PagerDuty's routing key",
            );
        }
        Ok(())
    }

    /// Where people reach the pages.
    pub(crate) fn public_url(&self) -> Result<Option<PublicUrl>, ConfigError> {
        let Some(text) = &self.serve.public_url else { return Ok(None) };
        text.parse().map(Some).map_err(|_| ConfigError::Bound {
            key: "serve.public_url",
            value: estoppel_model::text::quoted(text),
            expected: "https://HOST or https://HOST:PORT, without a path".to_owned(),
        })
    }

    /// Which halts need two persons to be released.
    pub(crate) fn two_persons(&self) -> Result<TwoPersons, ConfigError> {
        let mut policy = TwoPersons::default();
        for word in &self.serve.two_persons {
            if word == "global" {
                policy.global = true;
                continue;
            }
            let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == word);
            policy.kinds.insert(kind.ok_or_else(|| {
                ConfigError::Bound {
                    key: "serve.two_persons",
                    value: estoppel_model::text::quoted(word),
                    expected:
                        "`global`, or a kind of scope: agent, session, user, task, tenant, plugin, \
                           tool, component"
                            .to_owned(),
                }
            })?);
        }
        Ok(policy)
    }

    /// The lease.
    pub(crate) fn lease(&self) -> Duration {
        Duration::from_secs(self.serve.lease_seconds)
    }
}

fn bound(key: &'static str, value: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::Bound {
        key,
        value: value.to_string(),
        expected: format!("{least} to {most}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::read(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_read_back_as_themselves() {
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(toml::to_string(&read(&text).unwrap()).unwrap(), text);
        read("").unwrap();
    }

    #[test]
    fn what_is_wrong_is_named_with_its_key() {
        let check = |text: &str, expect: &str| {
            let error = read(text).unwrap_err();
            assert!(error.contains(expect), "{text}: {error}");
        };
        check("[serve]\nlisen = 1", "lisen");
        check("[serve]\nlisten = \"everywhere\"", "listen");
        check("[serve]\nlisten = \"0.0.0.0:7600\"", "allow_plaintext");
        check("[serve]\ntls_cert = \"a.pem\"", "tls_key");
        check("[serve]\ntls_key = \"a.pem\"", "tls_cert");
        check("[serve]\nlease_seconds = 1", "2 to 300");
        check("[serve]\nevidence_mib = 1", "64 to 1073741824");
        check("[serve]\npublic_url = \"halt.example.com\"", "https://HOST");
        check("[egress]\nresponse = \"kill\"", "auto");
        check("[paging]\nurl = \"http://x\"\nformat = \"pagerduty\"", "routing_key_env");
        check("[paging]\nformat = \"cloudevents\"", "paging.url_env");
        check("[paging]\nurl = \"http://x\"\nurl_env = \"X\"", "one of the two");
        let public = "[serve]\npublic_url = \"https://halt.example.com\"";
        for chat in ["slack", "teams"] {
            let with = |keys: &str| format!("{public}\n[paging]\nformat = \"{chat}\"\n{keys}");
            check(&with(""), "paging.url_env");
            let written = with("url = \"https://hooks.example/hunter2\"");
            check(&written, "paging.url_env");
            assert!(!read(&written).unwrap_err().contains("hunter2"));
            let good = with("url_env = \"HOOK\"");
            read(&good).unwrap();
            check(good.strip_prefix(public).unwrap(), "serve.public_url");
        }
        check("[redis]\nurl = \"redis://:hunter2@x\"", "password_env");
        check("[redis]\nurl = \"redis://x\"\npassword = \"x\"", "password");
        check("[serve]\ntwo_persons = [\"tenants\"]", "tenant, plugin");
        check("[serve]\ndrill_every = \"30s\"", "60 to 2592000");
        check("[serve]\ndrill_every = \"daily\"", "24h");
        check("[serve]\ncontact = \"\"", "1 to 300");
        check("[serve", "line 1");
    }
}
