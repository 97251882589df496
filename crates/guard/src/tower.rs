//! The guard as a layer of [Tower](https://docs.rs/tower): a service's requests are steps.
//!
//! Before the inner service sees a request, the layer asks a closure of yours who acts and what is to
//! be done, and checks it. When a halt that reaches that subject arrives while the inner service is at
//! work, its future is dropped at once. Each request leaves a record in the audit log, as every step
//! does.
//!
//! A request whose subject cannot be told is refused: a halt could not reach it.
//!
//! What it does not do: cut a response that is already on its way. The step ends when the inner
//! service has given its response; a body that streams on afterwards is for the gateway, or for a
//! [`Guard::step`] of the handler's own.
//!
//! With axum, whose errors are responses, [`axum::error_handling::HandleErrorLayer`] stands around it:
//!
//! [`axum::error_handling::HandleErrorLayer`]: https://docs.rs/axum/latest/axum/error_handling/struct.HandleErrorLayer.html
//!
//! ```no_run
//! # async fn service() -> Result<(), Box<dyn std::error::Error>> {
//! use std::convert::Infallible;
//!
//! use axum::{Router, error_handling::HandleErrorLayer, extract::Request, http::StatusCode, routing::post};
//! use estoppel_guard::{Guard, GuardError, GuardLayer, StepSpec};
//!
//! let guard = Guard::from_env()?.agent("support")?.connect()?;
//! guard.ready().await;
//! let of_request = {
//!     let guard = guard.clone();
//!     move |request: &Request| {
//!         let session = request.headers().get("x-session").ok_or("no session is named")?;
//!         let subject = guard.subject(&format!("session:{}", session.to_str()?))?;
//!         Ok((subject, StepSpec::action(format!("http {}", request.uri().path()))))
//!     }
//! };
//! let refused = async |error: GuardError<Infallible>| (StatusCode::FORBIDDEN, error.to_string());
//! let app: Router = Router::new()
//!     .route("/answer", post(async || "an answer"))
//!     .layer((HandleErrorLayer::new(refused), GuardLayer::new(guard, of_request)));
//! # drop(app); Ok(()) }
//! ```

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use estoppel_model::Subject;
use tower_layer::Layer;
use tower_service::Service;

use crate::{Denied, Guard, StepError, StepSpec};

/// Any error, as Tower's middleware passes them on.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Who acts by a request, and what it does; or why that cannot be told.
pub type Described = Result<(Subject, StepSpec), BoxError>;

/// Guards each request of a service; see the [module](self).
#[derive(Clone)]
pub struct GuardLayer<F> {
    guard: Guard,
    describe: F,
}

impl<F> GuardLayer<F> {
    /// A layer that asks `describe`, a `Fn(&Request) -> `[`Described`], about each request. It runs
    /// before anything else, on the request as it came, and must not block.
    pub const fn new(guard: Guard, describe: F) -> Self {
        Self { guard, describe }
    }
}

impl<S, F: Clone> Layer<S> for GuardLayer<F> {
    type Service = GuardService<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        GuardService { inner, guard: self.guard.clone(), describe: self.describe.clone() }
    }
}

impl<F> fmt::Debug for GuardLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardLayer").field("guard", &self.guard).finish_non_exhaustive()
    }
}

/// A service whose requests are steps; made by [`GuardLayer`].
#[derive(Clone)]
pub struct GuardService<S, F> {
    inner: S,
    guard: Guard,
    describe: F,
}

impl<S: fmt::Debug, F> fmt::Debug for GuardService<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("GuardService");
        shown.field("inner", &self.inner).field("guard", &self.guard).finish_non_exhaustive()
    }
}

/// Why a guarded request came to nothing. Shown, a refusal is the text for the agent's user.
#[derive(Debug, thiserror::Error)]
pub enum GuardError<E> {
    /// It was refused before it began, or stopped while the inner service was at work.
    #[error(transparent)]
    Stopped(StepError),
    /// Who acts could not be told, so it was refused.
    #[error("the request does not say who acts: {0}")]
    Unclear(#[source] BoxError),
    /// The inner service failed.
    #[error(transparent)]
    Inner(E),
}

impl<E> GuardError<E> {
    /// The refusal behind it, with the order, where it is one.
    pub const fn denied(&self) -> Option<&Denied> {
        match self {
            Self::Stopped(error) => error.denied(),
            Self::Unclear(_) | Self::Inner(_) => None,
        }
    }
}

impl<S, F, R> Service<R> for GuardService<S, F>
where
    S: Service<R> + Clone + Send + 'static,
    S::Future: Send,
    F: Fn(&R) -> Described,
    R: Send + 'static,
{
    type Response = S::Response;
    type Error = GuardError<S::Error>;
    type Future = GuardFuture<S::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(GuardError::Inner)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let described = (self.describe)(&request);
        // The one that is ready answers; a clone may not be.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let guard = self.guard.clone();
        GuardFuture(Box::pin(async move {
            let (subject, spec) = described.map_err(GuardError::Unclear)?;
            match guard.step(&subject, spec, |_| inner.call(request)).await {
                Ok(answered) => answered.map_err(GuardError::Inner),
                Err(error) => Err(GuardError::Stopped(error)),
            }
        }))
    }
}

/// The answer of a [`GuardService`]. Dropped, it drops the inner service's future, and the step is
/// recorded as given up.
#[must_use = "futures do nothing unless they are awaited"]
pub struct GuardFuture<T, E>(Pin<Box<dyn Future<Output = Result<T, GuardError<E>>> + Send>>);

impl<T, E> Future for GuardFuture<T, E> {
    type Output = Result<T, GuardError<E>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<T, E> fmt::Debug for GuardFuture<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardFuture").finish_non_exhaustive()
    }
}
