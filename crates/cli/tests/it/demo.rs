//! The main job on real input: rows P1, P4, P5 (gateway), P7 (process), K2 (webhook), K7, F1.

use std::{os::unix::fs::PermissionsExt as _, process::Command};

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

/// Runs the demo as somebody at a terminal sees it.
fn shown(command: &mut Command) -> (String, String) {
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let closing = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}\n{closing}");
    (told, closing)
}

/// When each of these moments was, in milliseconds after the first bad byte.
fn moments<const N: usize>(played: &Value, parts: [&str; N]) -> [f64; N] {
    let timeline = played["timeline"].as_array().unwrap();
    parts.map(|part| {
        let moment = timeline.iter().find(|it| it["what"].as_str().unwrap().contains(part));
        moment.unwrap_or_else(|| panic!("no {part}: {played:#}"))["after_ms"].as_f64().unwrap()
    })
}

/// Observe: something leaks, the agent is stopped, and not a byte goes out afterwards. Around the
/// gateway nothing leaks: it was tried.
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
    assert_eq!(played["bytes_around_gateway"], 0);
    // What the stage saw may have been noted late.
    let [_, byte] = moments(&played, ["without its proxy: Connection refused", "first bad byte"]);
    assert_eq!(byte, 0.0);
    let [event, detected, halted, cut, frozen] = moments(
        &played,
        [
            "first bad event",
            "detected: egress.unlisted",
            "halt of session:support-4711 sent",
            "connections cut",
            "processes frozen",
        ],
    );
    let [captured, kept, paged, reported] = moments(
        &played,
        ["evidence captured: ", "evidence kept", "page delivered", "report written"],
    );
    assert!(event <= detected && detected <= halted, "{played:#}");
    assert!(halted <= cut && halted <= frozen && halted <= paged, "{played:#}");
    assert!(frozen <= captured && captured <= kept, "{played:#}");
    assert!(reported >= kept && reported >= paged && reported >= cut, "{played:#}");
    let report = std::fs::read_to_string(folder.path().join("demo/report.md")).unwrap();
    for section in
        ["## Summary", "## Timeline", "## What was stopped", "## Data impact", "## Evidence"]
    {
        assert!(report.contains(section), "{section} is missing:\n{report}");
    }
    assert!(report.contains("collect.attacker.example"), "{report}");
}

/// Enforce: nothing leaks at all. At the end the play says what held, and what to try next.
#[test]
fn real_in_enforce_mode_not_a_byte_reaches_the_attacker() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_estoppel"));
    let command = command.args(["demo", "--enforce", "--folder"]).arg(folder.path().join("demo"));
    let (told, closing) = shown(command);
    for part in ["first bad event", "halt of session:support-4711 sent", "report written"] {
        assert!(told.lines().any(|line| line.contains(" ms ") && line.contains(part)), "{told}");
    }
    for part in [
        "bytes that reached the attacker, by its own count: 0 (the same as the records say)",
        "around the gateway: none",
        "contained: agent runs as uid 65534 in its own cgroup (freezable) and network namespace",
        "evidence: 21 items and their manifest",
        "estoppel ledger verify --data",
        "estoppel demo  ",
        "The agent was stopped.",
    ] {
        assert!(closing.contains(part), "no {part}:\n{closing}");
    }
}

/// Without root there is no confinement: the agent is stopped all the same, and what the machine did not
/// permit is said, with the bytes that went around.
#[test]
fn real_without_root_the_demo_says_what_does_not_hold() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    let program = folder.path().join("estoppel");
    std::fs::copy(env!("CARGO_BIN_EXE_estoppel"), &program).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    command.args(["demo", "--folder"]).arg(folder.path().join("demo"));
    let (told, closing) = shown(command.current_dir(&folder).env("TMPDIR", folder.path()));
    assert!(told.contains("its processes are stopped one by one, by signals"), "{told}");
    for part in [
        "around the gateway: ",
        " bytes, which nothing here could stop: run the demo as root",
        "its network is not contained",
        "The agent was stopped.",
    ] {
        assert!(closing.contains(part), "no {part}:\n{closing}\n{told}");
    }
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
