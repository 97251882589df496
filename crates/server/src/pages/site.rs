//! Which address a browser believes to be ours, and whether a form came from one of our own pages.
//!
//! A page of a stranger that has its name resolve to this machine (DNS rebinding) would otherwise
//! read our pages as its own. It cannot do so under an IP address or `localhost`, which no stranger
//! resolves; so these are taken on any port (a tunnel has another one than we), and names only as
//! configured in `serve.public_url`.

use std::{fmt, net::IpAddr, str::FromStr};

use axum::http::{
    HeaderMap, header,
    uri::{Authority, Uri},
};

/// Where people reach the pages: `https://HOST` or `http://HOST:PORT`, without a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl {
    https: bool,
    authority: Authority,
}

/// The text is no address of a site.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text} is not an address for people: write https://HOST or https://HOST:PORT, without a path"
)]
pub struct PublicUrlError {
    text: String,
}

impl FromStr for PublicUrl {
    type Err = PublicUrlError;

    fn from_str(text: &str) -> Result<Self, PublicUrlError> {
        let error = || PublicUrlError { text: estoppel_model::text::quoted(text) };
        let uri: Uri = text.parse().map_err(|_| error())?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(error()),
        };
        let authority = uri.authority().ok_or_else(error)?.clone();
        let bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
        let plain = !authority.as_str().contains('@') && !authority.host().is_empty();
        if bare && plain { Ok(Self { https, authority }) } else { Err(error()) }
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.https { "https" } else { "http" }, self.authority)
    }
}

impl PublicUrl {
    fn names(&self, authority: &Authority) -> bool {
        let usual = if self.https { 443 } else { 80 };
        let port = |of: &Authority| of.port_u16().unwrap_or(usual);
        self.authority.host().eq_ignore_ascii_case(authority.host())
            && port(&self.authority) == port(authority)
    }
}

/// The address under which a request came, which was found to be ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Site {
    authority: Authority,
    /// Whether the browser speaks TLS, so far as we know.
    pub https: bool,
}

/// Why a request is not taken for one to us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SiteError {
    /// No `Host`, several, or one that is no address.
    #[error("the request does not say which address it was sent to")]
    NoHost,
    /// A name that nobody configured.
    #[error("the address {host} is not known to be this server's")]
    Unknown { host: String },
    /// A form of another site, or a browser that does not say where it came from.
    #[error("the form did not come from a page of this server")]
    Foreign,
}

impl Site {
    /// The address of a request, if it is ours.
    pub(crate) fn of(
        headers: &HeaderMap,
        public: Option<&PublicUrl>,
        tls: bool,
    ) -> Result<Self, SiteError> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(SiteError::NoHost);
        };
        let authority: Authority =
            host.to_str().ok().and_then(|host| host.parse().ok()).ok_or(SiteError::NoHost)?;
        if let Some(public) = public.filter(|public| public.names(&authority)) {
            return Ok(Self { authority, https: public.https });
        }
        if unforgeable(authority.host()) && !authority.as_str().contains('@') {
            return Ok(Self { authority, https: tls });
        }
        Err(SiteError::Unknown { host: estoppel_model::text::quoted(authority.as_str()) })
    }

    /// Where this site is: scheme, host and port.
    pub(crate) fn address(&self) -> String {
        format!("{}://{}", if self.https { "https" } else { "http" }, self.authority)
    }

    /// Whether a form was sent by a page of this site: browsers say so with every POST.
    ///
    /// A proxy may hand requests on under an address of its own, so the public address counts, too.
    pub(crate) fn sent_form(
        &self,
        headers: &HeaderMap,
        public: Option<&PublicUrl>,
    ) -> Result<(), SiteError> {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let (Some(origin), None) = (origins.next(), origins.next()) else {
            return Err(SiteError::Foreign);
        };
        let origin: PublicUrl =
            origin.to_str().ok().and_then(|text| text.parse().ok()).ok_or(SiteError::Foreign)?;
        let own = origin.names(&self.authority) && (origin.https || !self.https);
        if own || public.is_some_and(|public| *public == origin) {
            return Ok(());
        }
        Err(SiteError::Foreign)
    }
}

/// Whether no stranger can have a name of theirs stand in for this host.
fn unforgeable(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    address.parse::<IpAddr>().is_ok() || host.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    /// K5: DNS rebinding.
    #[test]
    fn a_name_that_nobody_configured_is_not_ours() {
        let public: PublicUrl = "https://halt.example.com".parse().unwrap();
        let check = |host: &str, ours: bool| {
            let site = Site::of(&headers(&[(header::HOST, host)]), Some(&public), false);
            assert_eq!(site.is_ok(), ours, "{host}: {site:?}");
        };
        check("127.0.0.1:7600", true);
        check("[::1]:7600", true);
        check("localhost:7600", true);
        check("LOCALHOST", true);
        check("10.1.2.3", true);
        check("halt.example.com", true);
        check("Halt.Example.com:443", true);
        check("halt.example.com:8443", false);
        check("attacker.example:7600", false);
        check("127.0.0.1.attacker.example", false);
        check("localhost.attacker.example", false);
        check("127.0.0.1@attacker.example", false);
        check("attacker.example@127.0.0.1", false);
        check("", false);
        let twice = headers(&[(header::HOST, "127.0.0.1"), (header::HOST, "attacker.example")]);
        assert_eq!(Site::of(&twice, None, false), Err(SiteError::NoHost));
        assert_eq!(Site::of(&HeaderMap::new(), None, false), Err(SiteError::NoHost));
    }

    #[test]
    fn a_form_of_another_site_is_refused() {
        let public: PublicUrl = "https://halt.example.com".parse().unwrap();
        let check = |host: &str, origin: &str, good: bool| {
            let sent = headers(&[(header::HOST, host), (header::ORIGIN, origin)]);
            let site = Site::of(&sent, Some(&public), false).unwrap();
            assert_eq!(site.sent_form(&sent, Some(&public)).is_ok(), good, "{host} {origin}");
        };
        check("127.0.0.1:7600", "http://127.0.0.1:7600", true);
        check("127.0.0.1:7600", "https://127.0.0.1:7600", true);
        check("127.0.0.1:7600", "http://localhost:7600", false);
        check("127.0.0.1:7600", "http://127.0.0.1:7601", false);
        check("127.0.0.1:7600", "https://halt.example.com", true);
        check("127.0.0.1:7600", "null", false);
        check("127.0.0.1:7600", "https://attacker.example", false);
        check("halt.example.com", "https://halt.example.com", true);
        check("halt.example.com", "http://halt.example.com", false);
        check("halt.example.com", "https://halt.example.com.attacker.example", false);
        let silent = headers(&[(header::HOST, "127.0.0.1:7600")]);
        let site = Site::of(&silent, None, false).unwrap();
        assert_eq!(site.sent_form(&silent, None), Err(SiteError::Foreign));
    }

    #[test]
    fn a_public_address_is_a_site_without_a_path() {
        for text in ["https://halt.example.com", "https://halt.example.com/", "http://10.0.0.1:80"]
        {
            assert!(text.parse::<PublicUrl>().is_ok(), "{text}");
        }
        for text in ["halt.example.com", "ftp://x", "https://x/y", "https://a@x", "https://x?y", ""]
        {
            assert!(text.parse::<PublicUrl>().is_err(), "{text}");
        }
    }
}
