//! The commands of the documentation, run as they stand.
//!
//! In a fenced block marked `console`, a line that begins with `$ ` is a command, and the lines below
//! it are parts of its output. The commands of a page are run in order by one shell, in a folder and
//! a network of their own, as whoever reads the page would; each must succeed.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

/// A command and what its output must hold.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    command: String,
    expect: Vec<String>,
}

/// The commands of a page.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut inside, mut first) = (false, false);
    for line in page.lines() {
        if let Some(kind) = line.strip_prefix("```") {
            (inside, first) = (kind == "console" && !inside, true);
        } else if inside {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => {
                    steps.push(Step { command: command.to_owned(), expect: Vec::new() });
                }
                (None, Some(step)) if !first && step.command.ends_with('\\') => {
                    write!(step.command, "\n{line}").unwrap();
                }
                (None, Some(step)) if !first => step.expect.push(line.to_owned()),
                _ => panic!("output without a command: {line}"),
            }
            first = false;
        }
    }
    steps
}

/// The script that runs the steps, and says before each which it is.
fn script(prelude: &str, steps: &[Step]) -> String {
    let mut script = format!("{prelude}\n");
    for (number, step) in steps.iter().enumerate() {
        writeln!(script, "echo '=== {number}'\n{}\necho \"=== code $?\"", step.command).unwrap();
    }
    script
}

fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A server in the folder, and a token for its clients.
const SERVER: &str = "\
estoppel serve --no-gateway >serve.log 2>&1 &
until curl -sf http://127.0.0.1:7600/readyz >/dev/null; do sleep 0.1; done
export ESTOPPEL_URL=http://127.0.0.1:7600
export ESTOPPEL_TOKEN=$(cat estoppel-data/admin.token)";

/// Runs the commands of a page; nothing where a network of one's own cannot be had, which fails
/// under `ESTOPPEL_REAL=1`.
fn run(page: &str, prelude: &str) {
    let steps = steps(&std::fs::read_to_string(tree().join(page)).unwrap());
    assert!(!steps.is_empty(), "{page} has no commands");
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    for (program, name) in [
        (env!("CARGO_BIN_EXE_estoppel"), "estoppel"),
        (env!("CARGO_BIN_EXE_estoppel-hook"), "estoppel-hook"),
    ] {
        std::os::unix::fs::symlink(program, bin.join(name)).unwrap();
    }
    let work = folder.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let prelude = format!("set -o pipefail\nip link set lo up || exit 99\n{prelude}");
    // Its processes end with it: they are all in its process namespace.
    let ran = Command::new("timeout")
        .args(["120", "unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["bash", "-c", &script(&prelude, &steps)])
        .env("PATH", path)
        .env_remove("ESTOPPEL_URL")
        .env_remove("ESTOPPEL_TOKEN")
        .current_dir(&work)
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&ran.stdout).into_owned();
    let errors = String::from_utf8_lossy(&ran.stderr).into_owned();
    if !out.contains("=== 0") && errors.contains("unshare") {
        assert!(std::env::var_os("ESTOPPEL_REAL").is_none(), "this test needs root: {errors}");
        eprintln!("skipped: a network of one's own is root's");
        return;
    }
    for (number, step) in steps.iter().enumerate() {
        let fail =
            |what: &str| -> ! { panic!("{page}: `{}` {what}\n{out}\n{errors}", step.command) };
        let Some((_, rest)) = out.split_once(&format!("=== {number}\n")) else {
            fail("was not reached")
        };
        let Some((said, rest)) = rest.split_once("=== code ") else { fail("did not end") };
        if !rest.starts_with("0\n") {
            fail("failed");
        }
        if let Some(missing) = step.expect.iter().find(|part| !said.contains(part.as_str())) {
            fail(&format!("does not say {missing}"));
        }
    }
}

#[test]
fn the_commands_of_a_page_are_found() {
    let page =
        "x\n```console\n$ a \\\n  b\nout\n$ c\n```\n```\n$ not run\n```\n```console\n$ d\n```\n";
    let step = |command: &str, expect: &[&str]| Step {
        command: command.to_owned(),
        expect: expect.iter().map(ToString::to_string).collect(),
    };
    assert_eq!(steps(page), [step("a \\\n  b", &["out"]), step("c", &[]), step("d", &[])]);
}

/// The first thing that anybody tries.
#[test]
fn real_the_first_use_of_the_readme_works() {
    run("README.md", "printf '#!/bin/sh\\nexec sleep 600\\n' >agent.sh && chmod +x agent.sh");
}

#[test]
fn real_the_page_on_tokens_works() {
    run("docs/tokens.md", SERVER);
}

#[test]
fn real_the_page_on_operations_works() {
    run("docs/operations.md", SERVER);
}

/// A drill needs somebody to stop.
#[test]
fn real_the_page_on_drills_works() {
    let gateway = "\
estoppel gateway >gateway.log 2>&1 &
until estoppel --json status | grep -q '\"connected\": true'; do sleep 0.1; done";
    run("docs/drills.md", &format!("{SERVER}\n{gateway}"));
}

#[test]
fn real_the_page_on_events_works() {
    run("docs/events.md", SERVER);
}

#[test]
fn real_the_page_on_the_gateway_works() {
    run("docs/gateway.md", SERVER);
}

/// The agent's settings are those of a home of their own.
#[test]
fn real_the_page_on_coding_agents_works() {
    let home = "mkdir home && export HOME=$PWD/home && unset XDG_STATE_HOME CLAUDE_CONFIG_DIR";
    run("docs/coding-agents.md", &format!("{home}\n{SERVER}"));
}

#[test]
fn real_the_page_on_releases_works() {
    run("docs/release.md", SERVER);
}

#[test]
fn real_the_page_on_limits_works() {
    run("docs/limits.md", SERVER);
}

/// Two agents of which one ends by itself, and folders of their own for the doors of `halt --local` and
/// for what outlasts a run: this machine may have others.
#[test]
fn real_the_page_on_running_an_agent_works() {
    let agents = "\
for folder in /run/estoppel /var/lib/estoppel; do
    mkdir -p $folder && mount -t tmpfs -o mode=700 tmpfs $folder || exit 98
done
chmod 755 .. .
printf '#!/bin/sh\\necho done\\n' >agent.sh && chmod +x agent.sh
estoppel run --session night-shift -- sleep 600 >night-shift.log 2>&1 &
until ls /run/estoppel | grep -q .; do sleep 0.1; done";
    run("docs/run.md", &format!("{SERVER}\n{agents}"));
}

/// Pages whose `console` blocks are run above.
const RUN: [&str; 10] = [
    "README.md",
    "docs/coding-agents.md",
    "docs/drills.md",
    "docs/events.md",
    "docs/gateway.md",
    "docs/limits.md",
    "docs/operations.md",
    "docs/release.md",
    "docs/run.md",
    "docs/tokens.md",
];

/// Commands that are shown and not run, by how they begin, and why.
const NOT_RUN: [(&str, &str, &str); 12] = [
    ("CONTRIBUTING.md", "./dev", "builds and tests this tree"),
    ("README.md", "./dev", "builds this tree"),
    ("docs/evidence.md", "estoppel evidence", "captures of real agents: `cli::evidence`"),
    ("docs/halt-page.md", "ssh -L", "goes to another machine"),
    ("docs/limits.md", "./dev demo", "a Python package: `cli::demo`"),
    ("docs/operations.md", "$ estoppel serve --listen 0.0.0.0", "real certificates: `cli::tls`"),
    ("docs/redis.md", "estoppel serve --redis", "a real Redis: `cli::redis`"),
    ("docs/redis.md", "ACL SETUSER", "a real Redis: `cli::a_user_with_few_permissions`"),
    ("docs/release.md", "estoppel release global --halt", "an id of a halt: `cli::releases`"),
    ("docs/release.md", "estoppel release --approve", "two persons: `cli::releases`"),
    ("docs/tokens.md", "$ systemctl", "systemd, and a folder of the system's"),
    ("docs/tokens.md", "$ estoppel token create owner", "the same: `cli::tokens`"),
];

/// No page shows a command that nobody runs, unless it is said above why.
#[test]
fn each_page_with_commands_is_run_or_says_why_not() {
    let mut pages: Vec<String> = std::fs::read_dir(tree().join("docs"))
        .unwrap()
        .map(|entry| format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|page| page.ends_with(".md"))
        .collect();
    pages.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(str::to_owned));
    let mut unused: Vec<_> = NOT_RUN.iter().collect();
    for page in &pages {
        let text = std::fs::read_to_string(tree().join(page)).unwrap();
        assert_eq!(RUN.contains(&page.as_str()), !steps(&text).is_empty(), "{page}");
        let mut block: Option<&str> = None;
        for line in text.lines() {
            if let Some(kind) = line.strip_prefix("```") {
                block = if block.is_some() { None } else { Some(kind) };
            } else if matches!(block, Some("" | "sh" | "bash" | "shell")) && is_command(line) {
                let is_told = |row: &(&str, &str, &str)| row.0 == page && line.starts_with(row.1);
                assert!(NOT_RUN.iter().any(is_told), "{page}: `{line}` is run by nobody");
                unused.retain(|row| !is_told(row));
            }
        }
    }
    assert!(unused.is_empty(), "these are not shown any more: {unused:?}");
}

/// Whether a line of a block is one that a shell, or Redis's, is to be given.
fn is_command(line: &str) -> bool {
    ["$ ", "estoppel ", "curl ", "ssh ", "./dev", "ACL "]
        .iter()
        .any(|start| line.starts_with(start))
}
