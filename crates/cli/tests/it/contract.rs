//! What scripts rely on (docs/exit-codes.md): exit codes, one JSON document also of an error, and what
//! a first start says.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{
    drills::Running,
    stage::{Server, wait_for},
};

const ID: &str = "0197f3a0-5b8e-7c11-9c55-0b1f2d3c4e5a";

/// Every command, with arguments by which it ends without a server and changes nothing, and its exit
/// code where the machine has no say in it.
const COMMANDS: &[(&str, &[&str], Option<i32>)] = &[
    ("serve", &["--config", "nowhere.toml"], Some(2)),
    // An address that is nobody's (RFC 5737).
    ("gateway", &["--listen", "192.0.2.1:7601"], Some(2)),
    ("run", &["--session", "s", "--state", "/dev/null/state", "--", "true"], Some(1)),
    ("hook install", &["--for", "claude-code", "--settings", "broken.json"], Some(2)),
    ("hook uninstall", &["--for", "claude-code", "--settings", "broken.json"], Some(2)),
    ("hook serve", &["--state", "nowhere"], Some(2)),
    ("halt", &["session:a", "--reason", "r"], Some(3)),
    ("halt", &["sesion:a", "--reason", "r"], Some(2)),
    ("halt", &["session:a"], Some(2)),
    ("release", &["session:a", "--reason", "r"], Some(3)),
    ("break-glass create", &["--until", "4h", "--reason", "r"], Some(3)),
    ("break-glass list", &[], Some(3)),
    ("drill kill-switch", &[], Some(3)),
    ("drill list", &[], Some(3)),
    ("status", &[], Some(3)),
    ("status", &["--halt", ID], Some(3)),
    ("kill-task", &["--task-id", "t"], Some(3)),
    ("block", &["evil.example", "--reason", "r"], Some(3)),
    ("limit", &["session:a", "--steps", "1", "--reason", "r"], Some(3)),
    ("limit", &["session:a", "--reason", "r"], Some(2)),
    ("limit list", &[], Some(3)),
    ("sql", &["SELECT 1"], Some(3)),
    ("incident", &[], Some(2)),
    ("incident open", &["odd"], Some(3)),
    ("incident list", &[], Some(3)),
    ("incident show", &["IR-2026-001"], Some(3)),
    ("incident note", &["IR-2026-001", "text"], Some(3)),
    ("incident assign", &["IR-2026-001", "alice"], Some(3)),
    ("incident report", &["IR-2026-001"], Some(3)),
    ("incident close", &["IR-2026-001", "--reason", "r"], Some(3)),
    ("evidence list", &[], Some(3)),
    ("evidence show", &[ID, "--purpose", "p"], Some(3)),
    ("evidence export", &["IR-2026-001", "-o", "case.tar", "--purpose", "p"], Some(3)),
    ("evidence verify", &["nowhere.tar"], Some(5)),
    ("evidence verify", &["--capture", ID, "--purpose", "p"], Some(3)),
    ("evidence hold", &["IR-2026-001", "--reason", "r"], Some(3)),
    ("evidence release", &[ID, "--reason", "r"], Some(3)),
    ("evidence dispose", &[ID, "--reason", "r"], Some(3)),
    ("evidence log", &[ID], Some(3)),
    ("report", &["odd"], Some(3)),
    ("allowlist set", &["api.example.com"], Some(3)),
    ("allowlist show", &[], Some(3)),
    ("allowlist clear", &[], Some(3)),
    ("allowlist suggest", &[], Some(3)),
    ("playbook runs", &[], Some(3)),
    ("playbook approve", &[ID, "--reason", "r"], Some(3)),
    ("playbook decline", &[ID, "--reason", "r"], Some(3)),
    ("ledger verify", &["--data", "nowhere"], Some(1)),
    ("ledger checkpoint", &["--data", "nowhere"], Some(5)),
    ("backup", &["--to", "copy", "--data", "nowhere"], Some(5)),
    ("backup verify", &["nowhere"], Some(5)),
    ("restore", &["--from", "nowhere", "--data", "restored"], Some(5)),
    ("token create", &["alice", "--role", "viewer"], Some(3)),
    ("token list", &[], Some(3)),
    ("token revoke", &[ID], Some(3)),
    ("token gateway", &["--session", "s"], Some(3)),
    ("config check", &["nowhere.toml"], Some(2)),
    ("config show", &[], Some(0)),
    ("doctor", &["--data", "data"], None),
    ("demo", &["--folder", "."], Some(2)),
    ("bench", &["nothing"], Some(2)),
    ("completions", &["bash"], Some(0)),
    ("completions", &["csh"], Some(2)),
];

/// The commands that have none below them, as the binary's own completions name them.
fn leaves() -> BTreeSet<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(["completions", "fish"])
        .output()
        .unwrap();
    let script = String::from_utf8(output.stdout).unwrap();
    let mut groups = BTreeSet::new();
    let mut all = BTreeSet::new();
    for line in script.lines() {
        // What follows an option, such as its values, is no command.
        let Some((condition, name)) = line.split_once("\" -f -a \"") else { continue };
        let name = name.split('"').next().unwrap();
        let group = condition
            .split_once("using_subcommand ")
            .map(|(_, rest)| rest.split([';', ' ']).next().unwrap().to_owned());
        if name == "help" || group.as_deref() == Some("help") {
            continue;
        }
        all.insert(
            group.as_ref().map_or_else(|| name.to_owned(), |group| format!("{group} {name}")),
        );
        groups.extend(group);
    }
    all.retain(|name| !groups.contains(name));
    all
}

/// An error is one JSON document on standard output, with the exit code in it; nothing of it is on
/// standard error. Every command is tried, with a server that is dead.
#[test]
fn every_failure_is_one_json_document() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("broken.json"), "{").unwrap();
    for (command, more, expect) in COMMANDS {
        let words: Vec<&str> = command.split(' ').chain(more.iter().copied()).collect();
        // Before the command and behind it are the same; what follows `--` is the agent's.
        let output = Command::new(env!("CARGO_BIN_EXE_estoppel"))
            .arg("--json")
            .args(&words)
            // Port 1 of loopback, where nothing listens.
            .env("ESTOPPEL_URL", "http://127.0.0.1:1")
            .env("ESTOPPEL_TOKEN", "est_admin_0")
            .env("HOME", folder.path())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{words:?}: {error}: {}{errors}", String::from_utf8_lossy(&output.stdout))
        });
        assert!(!errors.contains("error:") && !errors.contains("hint:"), "{words:?}: {errors}");
        let Some(expect) = expect else { continue };
        assert_eq!(output.status.code(), Some(*expect), "{words:?}: {document}{errors}");
        if *expect != 0 {
            assert_eq!(document["exit_code"], *expect, "{words:?}: {document}");
            assert!(!document["error"].as_str().unwrap().is_empty(), "{words:?}: {document}");
            assert!(document["hints"].is_array(), "{words:?}: {document}");
        }
        if *expect == 3 {
            let said = document.to_string();
            assert!(said.contains("127.0.0.1:1"), "{words:?} names no server: {said}");
        }
    }
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().path()).collect();
    assert_eq!(left, [folder.path().join("broken.json")], "what fails leaves nothing behind");

    let tried: BTreeSet<String> = COMMANDS.iter().map(|row| row.0.to_owned()).collect();
    let leaves = leaves();
    assert!(leaves.len() > 50, "{leaves:?}");
    let missing: Vec<_> = leaves.difference(&tried).collect();
    assert!(missing.is_empty(), "these are not tried: {missing:?}");
}

/// Which test shows each exit code by the binary, and how it writes it.
const SHOWN: &[(u8, &str, &str, &str)] = &[
    (0, "kill_switch.rs", "kill_task_halts_one_task", "0,"),
    (1, "contract.rs", "every_failure_is_one_json_document", "Some(*expect)"),
    (2, "kill_switch.rs", "kill_task_halts_one_task", "]), 2)"),
    (3, "kill_switch.rs", "kill_task_halts_one_task", "]), 3)"),
    (4, "kill_switch.rs", "kill_task_halts_one_task", "]), 4)"),
    (5, "kill_switch.rs", "kill_task_halts_one_task", "]), 5)"),
    (6, "kill_switch.rs", "kill_task_halts_one_task", "]), 6)"),
    (7, "proof.rs", "a_wait_that_is_over_says_who_has_not_settled", "Some(7)"),
    (8, "ledger.rs", "a_cut_ledger_is_found_and_the_cut_is_named", "Some(8)"),
    (9, "drills.rs", "a_drill_names_who_does_not_answer", "Some(9)"),
    (10, "proof.rs", "a_wait_ends_by_what_became_of_the_halt", "Some(10)"),
    (11, "proof.rs", "a_wait_ends_by_what_became_of_the_halt", "Some(11)"),
    (12, "releases.rs", "the_same_release_by_another_person_approves_it", "Some(12)"),
    (13, "proof.rs", "who_dies_before_it_settles_is_named", "Some(13)"),
    (130, "proof.rs", "breaking_off_the_wait_leaves_the_halt_in_force", "Some(130)"),
];

/// A code that is documented is one that a test has seen, and the other way round.
#[test]
fn every_exit_code_is_documented_and_shown() {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(tree.join("../../docs/exit-codes.md")).unwrap();
    let documented: BTreeMap<u8, &str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split_once(" | "))
        .filter_map(|(code, meaning)| Some((code.parse().ok()?, meaning)))
        .collect();
    let shown: BTreeSet<u8> = SHOWN.iter().map(|row| row.0).collect();
    assert_eq!(documented.keys().copied().collect::<BTreeSet<_>>(), shown);
    for (code, file, test, assertion) in SHOWN {
        let text = std::fs::read_to_string(tree.join("tests/it").join(file)).unwrap();
        let body = text.split_once(&format!("fn {test}()")).map(|(_, rest)| rest);
        let body = body.and_then(|rest| rest.split("\n}\n").next());
        assert!(body.is_some_and(|body| body.contains(assertion)), "{code}: {file}: {test}");
    }
}

/// A first start needs no configuration, and tells people where it is and where the token is.
#[test]
fn a_first_start_says_where_everything_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(["serve", "--no-gateway", "--listen", "127.0.0.1:0"])
        .env_remove("ESTOPPEL_CONFIG")
        .env_remove("ESTOPPEL_DATA")
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let _server = Running(child);
    let said: Vec<String> = stdout.lines().take(4).map(Result::unwrap).collect();
    let version = env!("CARGO_PKG_VERSION");
    let url = said[0].strip_prefix(&format!("estoppel {version} serves ")).unwrap();
    let file = said[1].strip_prefix("admin token  ").unwrap();
    assert_eq!(said[2], "gateway      none");
    assert_eq!(said[3], "unlisted egress: Ask, paging: none (configure `[paging]`)");

    let file: PathBuf = folder.path().join(file);
    assert_eq!(file, folder.path().join("estoppel-data/admin.token"));
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    // Beside the server that was started here, a client needs the address alone.
    let halted = Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(["--json", "--url", url, "halt", "session:a", "--reason", "r"])
        .env_remove("ESTOPPEL_TOKEN")
        .env_remove("ESTOPPEL_TOKEN_FILE")
        .current_dir(folder.path())
        .output()
        .unwrap();
    let halted: Value = serde_json::from_slice(&halted.stdout).unwrap();
    assert_eq!(halted["scope"], "session:a", "{halted}");
}

/// Row P3: an incident that is opened by hand is one JSON document for scripts, and a report is, too.
#[test]
fn an_incident_is_opened_by_hand() {
    let server = Server::start();
    server.ready();
    let opened = server.json(&[
        "incident",
        "open",
        "a plugin was replaced",
        "--kind",
        "malicious_plugin",
        "--severity",
        "high",
        "--description",
        "the hash differs",
        "--agent",
        "support",
    ]);
    let number = opened["number"].as_str().unwrap();
    assert!(number.starts_with("IR-20") && number.ends_with("-001"), "{opened}");
    let shown = wait_for("the incident", || {
        let output = server.cli(&["--json", "incident", "show", number]);
        output.status.success().then(|| serde_json::from_slice::<Value>(&output.stdout).unwrap())
    });
    assert_eq!(shown["id"], opened["id"], "{shown}");
    for (key, value) in [
        ("title", "a plugin was replaced"),
        ("kind", "malicious_plugin"),
        ("severity", "high"),
        ("state", "open"),
    ] {
        assert_eq!(shown[key], value, "{key}: {shown}");
    }
    assert_eq!(shown["opened"]["subject"]["agent"], "support", "{shown}");

    let file = server.data.with_file_name("report.md");
    let written = server.json(&["incident", "report", number, "-o", file.to_str().unwrap()]);
    let report = std::fs::read_to_string(&file).unwrap();
    assert_eq!(written["bytes"], report.len(), "{written}");
    assert!(report.starts_with(&format!("# {number}")), "{report}");
    let printed = server.json(&["incident", "report", number]);
    assert!(printed["markdown"].as_str().unwrap().contains("a plugin was replaced"), "{printed}");
}
