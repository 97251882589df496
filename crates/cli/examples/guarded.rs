//! An agent that asks its guard before each step, as one does that was written for Estoppel.
//!
//! ```text
//! estoppel run --session s1 --guard-token-file guard.token -- guarded s1
//! ```
//!
//! Who it is connected to and as whom comes from the environment (`ESTOPPEL_URL`, `ESTOPPEL_TOKEN`).
//! Each step is a line of the output: `done`, or why it was refused.

use std::{io::Write as _, time::Duration};

use estoppel_guard::{Guard, StepSpec};

const PAUSE: Duration = Duration::from_millis(50);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let session = std::env::args().nth(1).unwrap_or_else(|| "guarded".to_owned());
    let guard = Guard::from_env()?.connect()?;
    let subject = guard.subject(&format!("session:{session}"))?;
    guard.ready().await;
    loop {
        let step = guard.step(&subject, StepSpec::tool("fetch")?, |_step| async { "done" }).await;
        let said = match step {
            Ok(said) => said.to_owned(),
            // With the order's reason beside the text for the agent's user.
            Err(refused) => format!("refused: {refused:#}"),
        };
        writeln!(std::io::stdout(), "{said}")?;
        tokio::time::sleep(PAUSE).await;
    }
}
