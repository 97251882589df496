//! Where Redis is. The address can be shown, the credentials cannot.

use estoppel_model::Secret;
use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, ProtocolVersion,
    TlsCertificates,
};

/// Where Redis is and how to reach it.
#[derive(Clone)]
pub struct RedisConfig {
    info: ConnectionInfo,
    root_cert: Option<Vec<u8>>,
}

/// Why a Redis cannot be reached by what was given. Never repeats the URL, which holds a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisConfigError {
    /// The text is no URL of Redis.
    #[error(
        "not a Redis URL: write redis://[USER@]HOST[:PORT][/DATABASE], rediss://... for TLS, or redis+unix:///PATH"
    )]
    Url,
    /// The URL's parts do not make sense.
    #[error(
        "the Redis URL names no host, or its database is no number, or its user or password is not UTF-8"
    )]
    Parts,
    /// Verification of the server cannot be switched off.
    #[error(
        "the Redis URL ends in `#insecure`: the server's certificate is always checked; name its authority's file instead (`redis.ca_file`)"
    )]
    Insecure,
    /// The password is given twice.
    #[error("the Redis URL holds a password and another one is given: give one")]
    TwoPasswords,
    /// A certificate authority for a connection without TLS.
    #[error(
        "a certificate authority is given, but the Redis URL is not `rediss://`: no TLS is spoken"
    )]
    CaWithoutTls,
    /// The certificates cannot be read.
    #[error("the certificate authority's file holds no PEM certificates")]
    Ca,
}

impl RedisConfig {
    /// Reads a URL; the password may be given beside it, and certificates (PEM) that are trusted
    /// instead of the machine's.
    ///
    /// # Errors
    /// When these do not say how to reach a Redis.
    pub fn new(
        url: &Secret<String>,
        password: Option<&Secret<String>>,
        ca: Option<Vec<u8>>,
    ) -> Result<Self, RedisConfigError> {
        let url = redis::parse_redis_url(url.expose()).ok_or(RedisConfigError::Url)?;
        if url.fragment().is_some() {
            return Err(RedisConfigError::Insecure);
        }
        let info = url.into_connection_info().map_err(|_| RedisConfigError::Parts)?;
        let mut settings = info.redis_settings().clone().set_skip_set_lib_name();
        if let Some(password) = password {
            if settings.password().is_some() {
                return Err(RedisConfigError::TwoPasswords);
            }
            settings = settings.set_password(password.expose());
        }
        let config = Self { info: info.set_redis_settings(settings), root_cert: ca };
        if config.root_cert.is_some() {
            if !matches!(config.info.addr(), ConnectionAddr::TcpTls { .. }) {
                return Err(RedisConfigError::CaWithoutTls);
            }
            config.client(ProtocolVersion::RESP3).map_err(|_| RedisConfigError::Ca)?;
        }
        Ok(config)
    }

    /// A client of this address.
    pub(super) fn client(&self, protocol: ProtocolVersion) -> redis::RedisResult<Client> {
        let settings = self.info.redis_settings().clone().set_protocol(protocol);
        let info = self.info.clone().set_redis_settings(settings);
        match &self.root_cert {
            None => Client::open(info),
            Some(root_cert) => {
                let root_cert = Some(root_cert.clone());
                Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })
            }
        }
    }

    /// The address for people: host, port and database, or the socket's path.
    pub fn address(&self) -> String {
        match self.info.redis_settings().db() {
            0 => self.info.addr().to_string(),
            database => format!("{}/{database}", self.info.addr()),
        }
    }

    /// Whether credentials and halts cross a network in the clear.
    pub(super) fn is_exposed(&self) -> bool {
        match self.info.addr() {
            ConnectionAddr::Tcp(host, _) => {
                let bare = host.trim_start_matches('[').trim_end_matches(']');
                let address = bare.parse::<std::net::IpAddr>();
                !(host == "localhost" || address.is_ok_and(|address| address.is_loopback()))
            }
            _ => false,
        }
    }
}

impl std::fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RedisConfig").field(&self.address()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<RedisConfig, RedisConfigError> {
        RedisConfig::new(&Secret::new(url.to_owned()), None, None)
    }

    /// Row K1: whatever is shown of a configuration holds no secret.
    #[test]
    fn an_address_is_shown_without_its_secrets() {
        let shown = config("rediss://estoppel:hunter2@redis.example:6380/3").unwrap();
        assert_eq!(shown.address(), "redis.example:6380/3");
        assert_eq!(format!("{shown:?}"), "RedisConfig(\"redis.example:6380/3\")");
        assert_eq!(config("redis+unix:///run/redis.sock").unwrap().address(), "/run/redis.sock");
        for bad in [
            "http://:hunter2@x",
            "hunter2",
            "redis://:hunter2@",
            "redis://:hunter2@x/notanumber",
            "rediss://:hunter2@x/#insecure",
        ] {
            let error = config(bad).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let secret = |text: &str| Secret::new(text.to_owned());
        let new = |url, password: Option<&str>, ca: Option<&str>| {
            let password = password.map(secret);
            RedisConfig::new(&secret(url), password.as_ref(), ca.map(|ca| ca.as_bytes().to_vec()))
                .unwrap_err()
        };
        assert_eq!(new("redis://:a@x", Some("b"), None), RedisConfigError::TwoPasswords);
        assert_eq!(new("redis://x", None, Some("pem")), RedisConfigError::CaWithoutTls);
    }

    #[test]
    fn plaintext_to_another_machine_is_known() {
        for url in ["redis://127.0.0.1", "redis://localhost:1", "redis://[::1]:6379", "rediss://x"]
        {
            assert!(!config(url).unwrap().is_exposed(), "{url}");
        }
        for url in ["redis://10.0.0.1", "redis://redis:6379"] {
            assert!(config(url).unwrap().is_exposed(), "{url}");
        }
    }
}
