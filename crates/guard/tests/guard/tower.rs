//! The tower layer around an axum router, against a real stream.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::{Body, to_bytes},
    error_handling::HandleErrorLayer,
    extract::Request,
    http::StatusCode,
    response::Response,
    routing::get,
};
use estoppel_guard::{Guard, GuardError, GuardLayer, StepError, StepSpec};
use tokio::sync::{Mutex, oneshot};
use tower_layer::Layer as _;
use tower_service::Service;

use crate::{
    Dropped, connect,
    server::{Server, timely},
};

/// Who acts by a request, from its head.
fn layer(
    guard: &Guard,
) -> GuardLayer<impl Fn(&Request) -> estoppel_guard::tower::Described + Clone + use<>> {
    let own = guard.clone();
    let describe = move |request: &Request| {
        let session = request.headers().get("x-session").ok_or("no session is named")?;
        let subject = own.subject(&format!("session:{}", session.to_str()?))?;
        Ok((subject, StepSpec::action(format!("http {}", request.uri().path()))))
    };
    GuardLayer::new(guard.clone(), describe)
}

fn request(path: &str, session: &str) -> Request {
    let request = Request::builder().uri(path).header("x-session", session);
    request.body(Body::empty()).unwrap()
}

async fn text(response: Response) -> (StatusCode, String) {
    let status = response.status();
    let body = to_bytes(response.into_body(), 4_096).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// A router whose refusals are responses, as a service has it.
fn app(guard: &Guard, routes: Router) -> Router {
    let refused = async |error: GuardError<Infallible>| match error.denied() {
        Some(denied) => (StatusCode::FORBIDDEN, format!("{denied:#}")),
        None => (StatusCode::BAD_REQUEST, error.to_string()),
    };
    routes.layer((HandleErrorLayer::new(refused), layer(guard)))
}

/// K4: a request of a halted session does not reach the service; others do, and leave a record. One
/// that names nobody is refused.
#[tokio::test]
async fn requests_of_a_halted_session_do_not_reach_the_service() {
    let server = Server::start().await;
    let guard = connect(&server).await;
    let mut app = app(&guard, Router::new().route("/answer", get(async || "an answer")));
    let (status, said) = text(app.call(request("/answer", "abc123")).await.unwrap()).await;
    assert_eq!((status, said.as_str()), (StatusCode::OK, "an answer"));
    let event = server.event("allowed").await;
    assert_eq!(
        (&event["action"], &event["session_id"]),
        (&"http /answer".into(), &"abc123".into())
    );

    let halt = server.halt("session:abc123");
    server.until(halt, |progress| progress.settled == 1).await;
    let (status, said) = text(app.call(request("/answer", "abc123")).await.unwrap()).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(said.starts_with("Your agent session has been suspended. Halted by alice"), "{said}");
    let (status, _) = text(app.call(request("/answer", "other")).await.unwrap()).await;
    assert_eq!(status, StatusCode::OK);

    let nobody = Request::builder().uri("/answer").body(Body::empty()).unwrap();
    let (status, said) = text(app.call(nobody).await.unwrap()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(said.contains("no session is named"), "{said}");
    let (status, said) = text(app.call(request("/answer", "a b")).await.unwrap()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(said.contains("U+0020"), "{said}");
}

/// K7: a halt drops the inner service's future, before the answer that says so.
#[tokio::test]
async fn a_halt_cancels_the_request_at_work() {
    let server = Server::start().await;
    let guard = connect(&server).await;
    let (began, begun) = oneshot::channel();
    let (dropped, mut gone) = oneshot::channel();
    let both = Arc::new(Mutex::new(Some((began, dropped))));
    let handler = move || {
        let both = Arc::clone(&both);
        async move {
            let (began, dropped) = both.lock().await.take().unwrap();
            let _dropped = Dropped(Some(dropped));
            began.send(()).unwrap();
            std::future::pending::<&str>().await
        }
    };
    let mut app = app(&guard, Router::new().route("/slow", get(handler)));
    let halt = async {
        begun.await.unwrap();
        server.halt("session:abc123")
    };
    let (answered, halt) =
        timely(async { tokio::join!(app.call(request("/slow", "abc123")), halt) }).await;
    gone.try_recv().unwrap();
    let (status, said) = text(answered.unwrap()).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{said}");
    let progress = server.until(halt, |progress| progress.settled == 1).await;
    let settlement = &progress.enforcers[0].settlement;
    assert_eq!((settlement.steps_cancelled, settlement.not_interruptible.len()), (1, 0));
}

/// What fails inside is passed on as it is.
#[tokio::test]
async fn the_inner_services_errors_and_readiness_are_its_own() {
    #[derive(Clone)]
    struct Failing;
    impl Service<Request> for Failing {
        type Response = ();
        type Error = std::io::Error;
        type Future = std::future::Ready<Result<(), std::io::Error>>;

        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), std::io::Error>> {
            std::task::Poll::Ready(Err(std::io::Error::other("not ready")))
        }

        fn call(&mut self, _: Request) -> Self::Future {
            std::future::ready(Err(std::io::Error::other("broken")))
        }
    }
    let server = Server::start().await;
    let guard = connect(&server).await;
    let mut service = layer(&guard).layer(Failing);
    let error = std::future::poll_fn(|cx| service.poll_ready(cx)).await.unwrap_err();
    assert!(matches!(&error, GuardError::Inner(inner) if inner.to_string() == "not ready"));
    let error = service.call(request("/", "abc123")).await.unwrap_err();
    assert!(matches!(&error, GuardError::Inner(inner) if inner.to_string() == "broken"));
    assert!(error.denied().is_none());
    guard.clone().close().await;
    let error = service.call(request("/", "abc123")).await.unwrap_err();
    assert!(matches!(error, GuardError::Stopped(StepError::Denied(_))), "{error}");
}
