//! Effects outside of Estoppel: HTTP requests, and pages over them.
//!
//! Invariants:
//! - Scheme, host and port come from the operator's configuration ([`Endpoint`]) and from nowhere
//!   else; no redirect is followed and no proxy of the environment is used, so that neither an
//!   event nor an answer can choose where a request goes.
//! - Every request has a deadline, and every answer a largest size.
//! - A secret (a token, a routing key, the path of a webhook) is in no error, no log and no
//!   `Debug` text.
//! - That a channel took a page is all that is ever claimed; that a person saw it is not.
//!
//! This crate decides nothing: which step is done when is `playbook`'s.

mod endpoint;
mod http;
mod page;
mod pager;

pub use endpoint::{Endpoint, EndpointError, Plaintext};
pub use http::{Http, HttpError, HttpLimits, HttpRequest, HttpResponse};
pub use page::{Format, HaltLink, HaltTarget, Page, PageAction, RoutingKey, RoutingKeyError};
pub use pager::{AttemptError, Channel, PageError, Pager, Receipt, RetryPolicy, observation};
