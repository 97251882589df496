//! An agent's loop under Estoppel: `ESTOPPEL_URL=... ESTOPPEL_TOKEN=... cargo run --example loop`.
//! Then halt it from elsewhere: `estoppel halt session:abc123 --reason "suspected prompt injection"`.

use std::{io::Write as _, time::Duration};

use estoppel_guard::{Guard, StepSpec};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let guard = Guard::from_env()?.agent("support")?.connect()?;
    tokio::time::timeout(Duration::from_secs(10), guard.ready()).await?;
    let subject = guard.subject("session:abc123")?;
    for question in 0.. {
        let spec = StepSpec::tool("answer")?.params(&question);
        // Refused before it begins, or cancelled in the middle, as soon as a halt arrives.
        if let Err(stopped) = guard.step(&subject, spec, |_| answer(question)).await {
            writeln!(std::io::stdout(), "{stopped}")?;
            break;
        }
    }
    guard.close().await;
    Ok(())
}

async fn answer(question: u64) -> u64 {
    tokio::time::sleep(Duration::from_secs(1)).await;
    question * 2
}
