//! `authority`: the server's part in conformance cases, for runners in other languages. It reads one
//! request a line and answers each with one line, `{"ok": ...}` or `{"error": TEXT}`; it ends when its
//! standard input does. `tests/conformance/README.md` says what the requests are.

use std::{
    error::Error,
    io::{self, BufRead as _, Write as _},
    process::ExitCode,
};

use estoppel_model::EntityId;
use estoppel_testkit::authority::part::{EPOCH, Given, Part};
use serde::Deserialize;
use serde_json::{Value, json};

/// What a runner asks; of a case's actions, those that are the server's.
#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    /// Begins a case, with a server that knows nothing.
    Start {
        tenant: Option<EntityId>,
    },
    /// Waits until the guard has a connection and a lease.
    Enforced {},
    Order(Box<Given>),
    Settled {
        order: String,
    },
    Silence {},
    Answer {},
    Reconnect {},
    Forget {},
}

#[tokio::main]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever reads no longer wants to know.
            let _ = writeln!(io::stderr(), "authority: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let mut part = None;
    loop {
        let line = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            io::stdin().lock().read_line(&mut line).map(|_| line)
        });
        let line = line.await??;
        if line.is_empty() {
            return Ok(());
        }
        let answer = match serde_json::from_str(&line) {
            Ok(request) => act(&mut part, request).await,
            Err(error) => Err(error.to_string()),
        };
        let answer = match answer {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({ "error": error }),
        };
        let mut stdout = io::stdout();
        writeln!(stdout, "{answer}")?;
        stdout.flush()?;
    }
}

async fn act(part: &mut Option<Part>, request: Request) -> Result<Value, String> {
    if let Request::Start { tenant } = request {
        let part = part.insert(Part::start(tenant).await);
        return Ok(json!({ "url": part.url(), "epoch": EPOCH }));
    }
    let part = part.as_mut().ok_or("begin with `start`")?;
    match request {
        Request::Start { .. } | Request::Enforced {} => part.enforced().await,
        Request::Order(given) => return Ok(json!({ "id": part.give(&given).await })),
        Request::Settled { order } => return Ok(json!(part.last_word(&order).await?)),
        Request::Silence {} => part.fall_silent(),
        Request::Answer {} => part.answer(),
        Request::Reconnect {} => part.reconnect().await,
        Request::Forget {} => part.forget().await,
    }
    Ok(Value::Null)
}
