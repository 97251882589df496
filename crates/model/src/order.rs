//! Orders: signed instructions to enforcers.
//!
//! Orders are only ever added to a set. A release is an order, too, and names those that it ends;
//! nothing else ends one, least of all its absence (invariant *starting-always-does*).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Actor, EntityId, IncidentId, Limit, OrderId, ScopeSet, Timestamp, text::quoted};

/// Longest reason, in bytes of UTF-8.
pub const REASON_BYTES_MAX: usize = 2_000;

/// An instruction to enforcers.
///
/// Its JSON text is what is signed, hashed, stored and sent; it is never serialised anew.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Order {
    /// The order's id, made by the client: the same id again is the same order.
    pub id: OrderId,
    /// What it reaches.
    pub scope: ScopeSet,
    /// Why, in a person's words; at most [`REASON_BYTES_MAX`].
    pub reason: String,
    /// Who gave it, from the token.
    pub issued_by: Actor,
    /// When it was accepted, by the clock of whoever signed it.
    pub issued_at: Timestamp,
    /// The incident that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incident: Option<IncidentId>,
    /// The tenant whose enforcers alone may see the order; absent: everybody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<EntityId>,
    /// What to do.
    #[serde(flatten)]
    pub body: OrderBody,
}

/// What an order tells an enforcer to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum OrderBody {
    /// Refuse and cut what the scope reaches.
    Halt {
        /// When the server means to release it, for people; no enforcer acts on it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
    },
    /// End the named orders. One that is not named stays.
    Release {
        /// The orders that it ends.
        orders: Vec<OrderId>,
    },
    /// Tighten detection thresholds for what the scope reaches.
    Watch {
        /// When the server means to release it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
    },
    /// Bound what the scope reaches. Several fold to the strictest.
    Limit {
        /// The bounds.
        limit: Limit,
    },
    /// Refuse and cut a destination for what the scope reaches.
    Block {
        /// Where nothing may go.
        destination: Destination,
    },
    /// A kind of a newer version. An enforcer confirms it as unsupported and refuses its scope.
    #[serde(skip_deserializing)]
    Unsupported,
}

impl<'de> Deserialize<'de> for Order {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Wire {
            id: OrderId,
            scope: ScopeSet,
            reason: String,
            issued_by: Actor,
            issued_at: Timestamp,
            #[serde(default)]
            incident: Option<IncidentId>,
            #[serde(default)]
            tenant: Option<EntityId>,
            kind: String,
            #[serde(flatten)]
            rest: serde_json::Map<String, serde_json::Value>,
        }
        let Wire { id, scope, reason, issued_by, issued_at, incident, tenant, kind, mut rest } =
            Wire::deserialize(deserializer)?;
        if reason.len() > REASON_BYTES_MAX {
            return Err(de::Error::custom(OrderError::ReasonTooLong { bytes: reason.len() }));
        }
        let known = ["halt", "release", "watch", "limit", "block"].contains(&kind.as_str());
        rest.insert("kind".to_owned(), kind.into());
        let body = if known {
            serde_json::from_value(rest.into()).map_err(de::Error::custom)?
        } else {
            OrderBody::Unsupported
        };
        Ok(Self { id, scope, reason, issued_by, issued_at, incident, tenant, body })
    }
}

/// Why an order cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// A reason has a bound.
    #[error("the reason is {bytes} bytes long: at most {REASON_BYTES_MAX}")]
    ReasonTooLong {
        /// How long it is.
        bytes: usize,
    },
    /// The text is no order.
    #[error("not an order: {0}")]
    Json(#[from] serde_json::Error),
}

/// An order's exact text with the signature over it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedOrder {
    /// The JSON of an [`Order`], byte for byte as it was signed.
    pub order: String,
    /// Which key signed: the lower-case hex of the Ed25519 public key.
    pub key: String,
    /// Ed25519 over `estoppel order v1\n` and the text, lower-case hex.
    pub signature: String,
}

impl SignedOrder {
    /// What is signed: a label, so that no other signature of the key can pass for an order's.
    pub fn signed_bytes(order: &str) -> Vec<u8> {
        [b"estoppel order v1\n", order.as_bytes()].concat()
    }

    /// Reads the order. The signature is whoever's who received it to check.
    ///
    /// # Errors
    /// When the text is no order.
    pub fn parse(&self) -> Result<Order, OrderError> {
        Ok(serde_json::from_str(&self.order)?)
    }
}

/// Where something goes to, in normal form: a lower-case ASCII host or an IP address, and a port
/// where one port alone is meant. Made by `extract`, which knows the tricks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// Host name in A-label form without a trailing dot, or an IP address without brackets.
    pub host: String,
    /// The port, or all of them.
    pub port: Option<u16>,
}

/// The text is no destination in normal form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text} is not a destination: write HOST, HOST:PORT or [IPV6]:PORT")]
pub struct DestinationError {
    text: String,
}

impl Destination {
    /// Whether this names the given host and port.
    pub fn covers(&self, host: &str, port: u16) -> bool {
        self.host == host && self.port.is_none_or(|own| own == port)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.host.contains(':'), self.port) {
            (true, Some(port)) => write!(f, "[{}]:{port}", self.host),
            (false, Some(port)) => write!(f, "{}:{port}", self.host),
            (_, None) => f.write_str(&self.host),
        }
    }
}
impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        let error = || DestinationError { text: quoted(text) };
        let port =
            |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(error);
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(error)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| error())?;
            (host, rest.strip_prefix(':').map(port).transpose()?)
        } else if text.parse::<std::net::Ipv6Addr>().is_ok() {
            (text, None)
        } else if let Some((host, digits)) = text.split_once(':') {
            (host, Some(port(digits)?))
        } else {
            (text, None)
        };
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_:".contains(c);
        if host.is_empty() || host.len() > 253 || !host.chars().all(plain) || host.ends_with('.') {
            return Err(error());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}
impl Serialize for Destination {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Destination {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALT: &str = r#"{"id":"01890a5d-ac96-774b-bcce-b302099a8057","scope":"session:a","reason":"r","issued_by":"alice","issued_at":"2026-02-05T03:00:00Z","kind":"halt"}"#;

    #[test]
    fn an_order_is_read_from_its_text() {
        let order: Order = serde_json::from_str(HALT).unwrap();
        assert_eq!(order.body, OrderBody::Halt { until: None });
        let again: Order = serde_json::from_str(&serde_json::to_string(&order).unwrap()).unwrap();
        assert_eq!(again, order);
    }

    #[test]
    fn an_unknown_kind_keeps_its_scope() {
        let order: Order =
            serde_json::from_str(&HALT.replace("\"halt\"", "\"teleport\",\"to\":1")).unwrap();
        assert_eq!(order.body, OrderBody::Unsupported);
        assert_eq!(order.scope.to_string(), "session:a");
    }

    #[test]
    fn a_known_kind_with_unknown_fields_is_refused() {
        let error =
            serde_json::from_str::<Order>(&HALT.replace("\"halt\"", "\"halt\",\"untill\":1"))
                .unwrap_err();
        assert!(error.to_string().contains("untill"), "{error}");
    }

    #[test]
    fn destinations_are_read_and_written_alike() {
        for text in
            ["example.com", "example.com:443", "10.0.0.1:80", "[2001:db8::1]:443", "2001:db8::1"]
        {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
        for text in
            ["", "Example.com", "example.com.", "a b", "x:0", "x:99999", "[::1", "x/y", "x:y:z"]
        {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }
}
