//! The main job on real input: rows P1, P4, P5 (gateway), P7 (process), K2 (webhook), K7, F1.

use std::process::Command;

use serde_json::Value;

/// Runs the demo; `None` where the machine does not permit the confinement, which fails under
/// `ESTOPPEL_REAL=1`.
fn demo(extra: &[&str]) -> Option<(Value, tempfile::TempDir)> {
    let root = std::fs::read_to_string("/proc/self/status").unwrap().contains("Uid:\t0\t");
    if !root {
        assert!(std::env::var_os("ESTOPPEL_REAL").is_none(), "this test needs root");
        eprintln!("skipped: an agent is confined by root alone");
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
