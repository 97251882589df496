//! The main job on real input: rows P1, P4, P5 (gateway), P7 (process), K2 (webhook), K7, F1.

use std::process::Command;

use serde_json::Value;

use crate::hosted::is_root;

/// Runs the demo; `None` where the machine does not permit the confinement, which fails under
/// `ESTOPPEL_REAL=1`.
fn demo(extra: &[&str]) -> Option<(Value, tempfile::TempDir)> {
    if !is_root() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(["--json", "demo", "--folder"])
        .arg(folder.path().join("demo"))
        .args(extra)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stdout));
    Some((serde_json::from_slice(&output.stdout).unwrap(), folder))
}

/// Observe: something leaks, the agent is stopped, and not a byte goes out afterwards.
#[test]
fn real_a_hijacked_agent_is_stopped_cut_off_preserved_and_reported() {
    let Some((played, folder)) = demo(&[]) else { return };
    assert_eq!(played["good"], true, "{played}");
    assert!(played["bytes_at_attacker"].as_u64().unwrap() > 0, "in observe mode something leaks");
    assert_eq!(played["bytes_after_settled"], 0);
    assert!(played["bytes_recorded"].as_u64() >= played["bytes_at_attacker"].as_u64());
    let words = played["halt"]["enforcers"].as_array().unwrap();
    let sum =
        |key: &str| words.iter().filter_map(|word| word["settlement"][key].as_u64()).sum::<u64>();
    assert!(sum("connections_cut") >= 1, "{played}");
    assert!(sum("processes_frozen") >= 1, "{played}");
    let report = std::fs::read_to_string(folder.path().join("demo/report.md")).unwrap();
    for section in
        ["## Summary", "## Timeline", "## What was stopped", "## Data impact", "## Evidence"]
    {
        assert!(report.contains(section), "{section} is missing:\n{report}");
    }
    assert!(report.contains("collect.attacker.example"), "{report}");
}

/// Enforce: nothing leaks at all.
#[test]
fn real_in_enforce_mode_not_a_byte_reaches_the_attacker() {
    let Some((played, _folder)) = demo(&["--enforce"]) else { return };
    assert_eq!(played["good"], true, "{played}");
    assert_eq!(played["bytes_at_attacker"], 0);
}

/// Rows R1, R2, R4, R5: a Python agent that retries for ever, and takes no stop for an answer, trips its
/// breaker; all that the play promises is read back from the server, and holds.
#[test]
fn real_a_python_agent_that_runs_away_is_stopped_bounded_and_killed() {
    if std::env::var_os("ESTOPPEL_PYTHON").is_none() {
        assert!(std::env::var_os("ESTOPPEL_REAL").is_none(), "set ESTOPPEL_PYTHON: see ./dev test");
        eprintln!("skipped: ESTOPPEL_PYTHON names no Python that has the package");
        return;
    }
    let Some((played, folder)) = demo(&["--scenario", "runaway"]) else { return };
    assert_eq!(played["good"], true, "{played:#}");
    assert_eq!((&played["confined"], &played["killed"]), (&true.into(), &true.into()));
    // Two letters that went well, and the third that was tried six times: the limit is five.
    assert_eq!(played["billed"]["calls"], 8, "{played:#}");
    assert_eq!(
        (&played["billed"]["mails_sent"], &played["billed"]["mails_refused"]),
        (&2.into(), &6.into())
    );
    assert_eq!(played["recorded"]["calls"], 8);
    assert_eq!(played["recorded"]["cost_usd"], 2.0);
    assert_eq!(played["calls_after_settled"], 0);
    assert_eq!(played["limits"].as_array().unwrap().len(), 2, "{played:#}");
    let report = std::fs::read_to_string(folder.path().join("demo/report.md")).unwrap();
    for part in
        ["runaway agent", "## Damage", "| `send_mail` | 6 |", "limit to steps_max", "## Evidence"]
    {
        assert!(report.contains(part), "{part} is missing:\n{report}");
    }
}

/// Without a Python that has the package the demo says what to do, and leaves no folder half played.
#[test]
fn a_runaway_without_python_says_what_to_install() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(["demo", "--scenario", "runaway", "--python", "/nonexistent/python", "--folder"])
        .arg(folder.path().join("demo"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in
        ["`/nonexistent/python` cannot run the agent", "pip install estoppel", "--scenario runaway"]
    {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!folder.path().join("demo").exists(), "nothing was begun");
}
