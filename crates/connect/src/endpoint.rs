//! Where a request may go: an address from the operator's configuration.

use std::{fmt, net::IpAddr};

use estoppel_model::Secret;
use url::{Host, Url};

/// Whether an address without TLS is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Plaintext {
    /// On this machine only.
    #[default]
    LoopbackOnly,
    /// Anywhere: the operator has said so.
    Allowed,
}

/// An address that requests may be sent to.
///
/// `Debug` and `Display` show scheme, host and port: the path and query of a webhook are secret.
#[derive(Clone)]
pub struct Endpoint(Secret<Url>);

/// Why an address is not taken. The address itself is not repeated, since it may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// No URL.
    #[error("the address is not a URL: {0}")]
    NotUrl(url::ParseError),
    /// Another scheme.
    #[error("the address has the scheme `{0}`: `https` is taken, and `http` on this machine")]
    Scheme(String),
    /// No host.
    #[error("the address has no host")]
    NoHost,
    /// Credentials would be in logs of whatever is between.
    #[error("the address holds a user name or password: give the secret by itself")]
    UserInfo,
    /// Without TLS, everybody on the way reads along.
    #[error(
        "the address {0} is not on this machine and has no TLS: write `https`, or allow plaintext"
    )]
    Plaintext(String),
}

impl Endpoint {
    /// Reads an address.
    ///
    /// # Errors
    /// When it is no URL, of another scheme than `https` and `http`, without a host, with
    /// credentials, or without TLS where that is not allowed.
    pub fn parse(text: &str, plaintext: Plaintext) -> Result<Self, EndpointError> {
        let mut url = Url::parse(text.trim()).map_err(EndpointError::NotUrl)?;
        if !matches!(url.scheme(), "https" | "http") {
            return Err(EndpointError::Scheme(url.scheme().to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(EndpointError::UserInfo);
        }
        url.set_fragment(None);
        let loopback = match url.host() {
            None => return Err(EndpointError::NoHost),
            Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
            Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
            // RFC 6761, section 6.3: no other name is sure to stay on this machine.
            Some(Host::Domain(name)) => name == "localhost",
        };
        let endpoint = Self(Secret::new(url));
        if endpoint.url().scheme() == "http" && !loopback && plaintext == Plaintext::LoopbackOnly {
            return Err(EndpointError::Plaintext(endpoint.to_string()));
        }
        Ok(endpoint)
    }

    pub(crate) fn url(&self) -> &Url {
        self.0.expose()
    }

    /// The address with more segments of path behind it; each becomes exactly one segment,
    /// whatever it holds.
    pub(crate) fn with_segments<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.url().clone();
        // A URL with a host has segments.
        if let Ok(mut path) = url.path_segments_mut() {
            // The parser of URLs would take `.` and `..` as steps, and drop them or go up.
            path.pop_if_empty();
            for segment in segments {
                match segment {
                    "." => path.push("%2E"),
                    ".." => path.push("%2E%2E"),
                    other => path.push(other),
                };
            }
        }
        url
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url();
        write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
        url.port().map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_an_operator_may_mean_is_taken() {
        let check = |text: &str, expect: &str| {
            let message = Endpoint::parse(text, Plaintext::LoopbackOnly).unwrap_err().to_string();
            assert!(message.contains(expect), "{text}: {message}");
            assert!(!message.contains("hunter2"), "{message}");
        };
        check("collector.example/hunter2", "not a URL");
        check("ftp://collector.example/hunter2", "scheme `ftp`");
        check("file:///etc/hunter2", "scheme `file`");
        check("https://user:hunter2@collector.example/", "user name or password");
        check("http://collector.example/hunter2", "has no TLS");
        check("http://localhost.example/hunter2", "has no TLS");
        for text in
            ["https://a.example/x", "http://127.0.0.1:1/x", "http://[::1]:1", "http://localhost"]
        {
            assert!(Endpoint::parse(text, Plaintext::LoopbackOnly).is_ok(), "{text}");
        }
        assert!(Endpoint::parse("http://pager.example/x", Plaintext::Allowed).is_ok());
    }

    #[test]
    fn the_path_is_secret_and_the_host_is_not() {
        let endpoint =
            Endpoint::parse("https://hooks.example:8443/T0/hunter2?k=v", Plaintext::default());
        assert_eq!(
            format!("{0:?} {0}", endpoint.unwrap()),
            "https://hooks.example:8443 https://hooks.example:8443"
        );
    }

    #[test]
    fn a_segment_is_one_segment() {
        let endpoint = Endpoint::parse("https://api.example/v1/", Plaintext::default()).unwrap();
        let path = |segment: &str| endpoint.with_segments([segment]).as_str().to_owned();
        assert_eq!(path("users"), "https://api.example/v1/users");
        assert_eq!(path("a/b?c#d"), "https://api.example/v1/a%2Fb%3Fc%23d");
        for hostile in ["..", ".", "../../admin", "//evil.example", "@evil.example", "\\\\evil"] {
            let url = path(hostile);
            assert!(url.starts_with("https://api.example/v1/"), "{hostile}: {url}");
            assert_ne!(url, "https://api.example/v1/", "{hostile}");
        }
    }
}
