//! `fake-model`: the fake model server for tests in other languages. Its first line of output is its
//! address; it ends when its standard input does, so that no test leaves one behind.

use std::{
    error::Error,
    io::{self, Write as _},
    process::ExitCode,
};

use estoppel_testkit::fake_model::{FakeModel, Script};

const USAGE: &str = "usage: fake-model [--port N] [SCRIPT.json]";

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever reads no longer wants to know.
            let _ = writeln!(io::stderr(), "fake-model: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let (mut port, mut script) = (0, Script::default());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--port" => port = arguments.next().ok_or(USAGE)?.parse()?,
            option if option.starts_with('-') => return Err(USAGE.into()),
            file => script = serde_json::from_str(&tokio::fs::read_to_string(file).await?)?,
        }
    }
    let fake = FakeModel::start_at(port, script).await?;
    let mut stdout = io::stdout();
    writeln!(stdout, "{}", fake.url())?;
    stdout.flush()?;
    tokio::task::spawn_blocking(|| io::copy(&mut io::stdin().lock(), &mut io::sink())).await??;
    Ok(())
}
