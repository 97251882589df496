//! Commands that need little around them: `doctor`, `config check`, `completions`.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use crate::stage::Server;

fn estoppel(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(args)
        .env_remove("ESTOPPEL_URL")
        .env_remove("ESTOPPEL_TOKEN")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// The checks name what was tried, and a server that answers is no fault.
#[test]
fn doctor_says_what_this_machine_can_do() {
    let server = Server::start();
    let data = tempfile::tempdir().unwrap();
    let data = data.path().join("data");
    let output = server.cli(&["--json", "doctor", "--data", data.to_str().unwrap()]);
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = checks.as_array().unwrap();
    assert!(checks.len() >= 3, "{checks:?}");
    for check in checks {
        let level = check["level"].as_str().unwrap();
        assert!(["ok", "gap", "fault"].contains(&level), "{check}");
        assert!(level != "ok" || check.get("mend").is_none(), "nothing to mend: {check}");
    }
    let faults = checks.iter().filter(|check| check["level"] == "fault").count();
    assert_eq!(output.status.success(), faults == 0, "{checks:?}");
    let people = server.cli(&["doctor", "--data", data.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&people.stdout).lines().count() >= checks.len());
}

/// A server that does not answer is named.
#[test]
fn doctor_names_a_server_that_does_not_answer() {
    let server = Server::start();
    let output = Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(["--json", "doctor"])
        // Port 1 of loopback, where nothing listens.
        .env("ESTOPPEL_URL", "http://127.0.0.1:1")
        .env("ESTOPPEL_TOKEN", &server.admin)
        .current_dir(&server.data)
        .output()
        .unwrap();
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let of_server = checks.as_array().unwrap().iter().find(|check| check["name"] == "server");
    let of_server = of_server.unwrap();
    assert_ne!(of_server["level"], "ok", "{checks}");
    assert!(of_server["found"].as_str().unwrap().contains("127.0.0.1:1"), "{checks}");
}

/// A good file passes, a bad one is named with its place and the right word.
#[test]
fn config_check_says_what_is_wrong_where() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("estoppel.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        estoppel(&["config", "check", file.to_str().unwrap()])
    };
    let good = check("[serve]\nlease_seconds = 10\n[egress]\nmode = \"enforce\"\n");
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let said =
        |output: &Output| [output.stdout.as_slice(), &output.stderr].concat().to_ascii_lowercase();
    for (text, named) in [
        ("[serve]\nleese_seconds = 10\n", "leese_seconds"),
        ("[egress]\nmode = \"enforced\"\n", "enforced"),
        ("[serve]\nlease_seconds = 100000\n", "lease_seconds"),
        ("[serve\n", "estoppel.toml"),
    ] {
        let bad = check(text);
        assert!(!bad.status.success(), "{text}");
        let said = String::from_utf8(said(&bad)).unwrap();
        assert!(said.contains(named), "{text}: {said}");
    }
    let missing = estoppel(&["config", "check", "/nowhere/estoppel.toml"]);
    assert!(!missing.status.success());
    // What `show` prints is a configuration.
    let shown = estoppel(&["config", "show"]);
    assert!(shown.status.success());
    let shown = check(&String::from_utf8(shown.stdout).unwrap());
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
}

/// The shells themselves read the completions, where they are installed; bash always is.
#[test]
fn completions_are_read_by_the_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let output = estoppel(&["completions", shell]);
        assert!(output.status.success());
        let script = String::from_utf8(output.stdout).unwrap();
        for command in ["halt", "release", "run", "incident"] {
            assert!(script.contains(command), "{shell} knows no `{command}`");
        }
        let read =
            Command::new(shell).arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut read = match read {
            Ok(read) => read,
            Err(error) => {
                assert_ne!(shell, "bash", "{error}");
                eprintln!("not read by {shell}: it is not installed");
                continue;
            }
        };
        read.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let read = read.wait_with_output().unwrap();
        assert!(read.status.success(), "{shell}: {}", String::from_utf8_lossy(&read.stderr));
    }
}
