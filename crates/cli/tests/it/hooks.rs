//! Coding agents' hooks: the real binaries, as an agent starts them, against a real server.

use std::{
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use estoppel_hook::{
    client::{self, Until},
    wire::{self, Answer, Request},
};
use serde_json::{Value, json};

use crate::stage::{Server, signal, wait_for};

const HOOK: &str = env!("CARGO_BIN_EXE_estoppel-hook");

/// A user with a home of their own, and no agent's settings yet.
struct Desktop {
    folder: tempfile::TempDir,
}

impl Drop for Desktop {
    fn drop(&mut self) {
        let _ = self.ask(&Request::End);
    }
}

impl Desktop {
    fn new() -> Self {
        let desktop = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(desktop.home()).unwrap();
        desktop
    }

    /// A desktop with the hook installed for a server's agent.
    fn installed(server: &Server, more: &[&str]) -> Self {
        let desktop = Self::new();
        let installed = desktop.install(server, more);
        assert!(installed.status.success(), "{installed:?}");
        desktop
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    fn state(&self) -> PathBuf {
        self.home().join(".local/state/estoppel/hook")
    }

    fn settings(&self) -> PathBuf {
        self.home().join(".claude/settings.json")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", self.home()).env("USER", "alice");
        let own = Path::new(HOOK).parent().unwrap().display();
        command.env("PATH", format!("{own}:{}", std::env::var("PATH").unwrap()));
        command.current_dir(self.home());
        command
    }

    fn install(&self, server: &Server, more: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_estoppel"))
            .args(["--json", "hook", "install", "--for", "claude-code"])
            .args(more)
            .env("ESTOPPEL_URL", &server.url)
            .env("ESTOPPEL_TOKEN", server.token("coder", "agent", None))
            .output()
            .unwrap()
    }

    fn ask(&self, request: &Request) -> Option<Answer> {
        let until = Until::from_now(Duration::from_secs(10));
        client::ask_running(&self.state(), request, &until).unwrap()
    }

    /// The resident process.
    fn resident(&self) -> u32 {
        match self.ask(&Request::Standing { wait_ms: 5_000 }) {
            Some(Answer::Standing(standing)) => standing.pid,
            other => panic!("{other:?}"),
        }
    }

    /// Runs the hook with this input.
    fn hook(&self, input: &[u8]) -> Output {
        let mut command = self.command(HOOK);
        run(command.arg("--state").arg(self.state()), input)
    }

    /// An event of a session, as Claude Code tells it.
    fn event(&self, event: &str, session: &str, more: Value) -> Output {
        let mut input = json!({
            "session_id": session, "hook_event_name": event, "cwd": "/src",
            "transcript_path": "/t.jsonl", "permission_mode": "default",
        });
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.hook(input.to_string().as_bytes())
    }

    fn tool(&self, session: &str, tool: &str) -> Output {
        let call = json!({
            "tool_name": tool, "tool_input": {"command": "ls"}, "tool_use_id": format!("{session}-{tool}"),
        });
        self.event("PreToolUse", session, call)
    }
}

fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A hook that has read enough closes its end.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn answer(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn goes(output: &Output) {
    assert!(
        code(output) == 0 && output.stdout.is_empty() && output.stderr.is_empty(),
        "{output:?}"
    );
}

/// Whether a tool is denied as Claude Code reads it, for this reason.
#[track_caller]
fn denied(output: &Output, reason: &str, whole: bool) {
    let answer = answer(output);
    let decision = &answer["hookSpecificOutput"];
    assert_eq!((code(output), &decision["permissionDecision"]), (2, &json!("deny")), "{output:?}");
    assert!(decision["permissionDecisionReason"].as_str().unwrap().contains(reason), "{output:?}");
    assert!(stderr(output).contains(reason), "{output:?}");
    assert_eq!(answer.get("continue"), whole.then_some(&json!(false)), "{output:?}");
}

/// K4, K7: a halt refuses a session's next tool with the order's texts and ends its turn at each
/// hook; a tool that is under way is named in the confirmation; a release lets it go on.
#[test]
fn a_halted_sessions_hooks_refuse_and_end_it() {
    let server = Server::start();
    let desktop = Desktop::installed(&server, &[]);
    goes(&desktop.event("SessionStart", "abc123", json!({"source": "startup"})));
    goes(&desktop.event("UserPromptSubmit", "abc123", json!({"prompt": "fix the build"})));
    goes(&desktop.tool("abc123", "Read"));
    let result = json!({
        "tool_name": "Read", "tool_use_id": "abc123-Read", "tool_response": {"ok": true},
    });
    goes(&desktop.event("PostToolUse", "abc123", result));
    goes(&desktop.tool("abc123", "Bash"));

    let halt = server.json(&["halt", "session:abc123", "--reason", "prompt injection"]);
    let halt = halt["id"].as_str().unwrap();
    let settled = wait_for("the halt's confirmation", || {
        let (_, halt) = server.admin("GET", &format!("/v1/halts/{halt}"), &Value::Null);
        halt["enforcers"][0]["settlement"]["not_interruptible"].is_array().then_some(halt)
    });
    let named = settled["enforcers"][0]["settlement"]["not_interruptible"].to_string();
    assert!(named.contains("tool Bash"), "what runs on is named: {settled}");

    let refused = desktop.tool("abc123", "Bash");
    denied(&refused, "Your agent session has been suspended.", true);
    denied(&refused, "Halted by admin since", true);
    denied(&refused, "prompt injection", true);
    let prompt = desktop.event("UserPromptSubmit", "abc123", json!({"prompt": "go on"}));
    assert_eq!((code(&prompt), &answer(&prompt)["continue"]), (2, &json!(false)), "{prompt:?}");
    assert_eq!(answer(&prompt)["decision"], "block");
    for event in ["Stop", "SubagentStop", "SubagentStart", "SessionStart"] {
        let ended = desktop.event(event, "abc123", json!({}));
        // Exit code 2 would make it go on.
        assert_eq!((code(&ended), &answer(&ended)["continue"]), (0, &json!(false)), "{ended:?}");
        assert!(answer(&ended)["stopReason"].as_str().unwrap().contains("suspended"));
    }
    let after = json!({"tool_name": "Bash", "tool_use_id": "abc123-Bash", "tool_response": "out"});
    let after = desktop.event("PostToolUse", "abc123", after);
    assert_eq!(answer(&after)["decision"], "block", "{after:?}");
    goes(&desktop.event("Stop", "other", json!({})));
    goes(&desktop.tool("other", "Bash"));

    server.json(&["release", "session:abc123", "--reason", "a false alarm"]);
    wait_for("the release", || (code(&desktop.tool("abc123", "Grep")) == 0).then_some(()));

    let rows = |query: &str| server.sql(query);
    let row = wait_for("the record of the step", || {
        rows("SELECT agent_id, user_id, decision, result, params FROM audit_log WHERE session_id = 'abc123' AND tool = 'Read'").into_iter().next()
    });
    assert_eq!(
        (&row[0], &row[1], &row[2]),
        (&json!("claude-code"), &json!("alice"), &json!("allowed"))
    );
    assert!(row[3].to_string().contains("ok") && row[4].to_string().contains("ls"), "{row}");
    wait_for("the records of what was refused and told", || {
        let denied = rows(
            "SELECT tool FROM audit_log WHERE session_id = 'abc123' AND decision = 'denied' AND action = 'tool_call'",
        );
        let prompts = rows(
            "SELECT params FROM audit_log WHERE session_id = 'abc123' AND action = 'hook.UserPromptSubmit'",
        );
        (!denied.is_empty() && prompts.len() == 2).then_some(())
    });
}

/// K6: tool, MCP server, user, agent and everything; a tool's halt ends no turn.
#[test]
fn each_scope_reaches_the_hook() {
    let server = Server::start();
    let desktop = Desktop::installed(&server, &["--agent", "coder"]);
    let check = |scope: &str, reached: &str, not: Option<&str>, whole: bool, text: &str| {
        server.json(&["halt", scope, "--reason", "test"]);
        let refused = wait_for("the halt", || {
            let output = desktop.tool("s", reached);
            (code(&output) != 0).then_some(output)
        });
        denied(&refused, text, whole);
        if let Some(not) = not {
            goes(&desktop.tool("s", not));
        }
        server.json(&["release", scope, "--reason", "over"]);
        wait_for("the release", || (code(&desktop.tool("s", reached)) == 0).then_some(()));
    };
    let own = "Your agent session has been suspended.";
    check("tool:Bash", "Bash", Some("Read"), false, own);
    check("plugin:github", "mcp__github__create_issue", Some("mcp__jira__x"), false, own);
    check("user:alice", "Read", None, true, own);
    check("agent:coder", "Read", None, true, own);
    check("global", "Read", None, true, "Agent operations suspended. Contact security team.");
}

/// K6, K10: a sub-agent is a task: its halt refuses it alone, and the session goes on.
#[test]
fn a_sub_agent_is_a_task_of_its_session() {
    let server = Server::start();
    let desktop = Desktop::installed(&server, &[]);
    let of = |agent: &str| {
        let call = json!({"tool_name": "Grep", "tool_use_id": agent, "agent_id": agent, "agent_type": "Explore"});
        desktop.event("PreToolUse", "s", call)
    };
    goes(&of("a1"));
    server.json(&["kill-task", "--task-id", "a1"]);
    let refused = wait_for("the halt", || {
        let output = of("a1");
        (code(&output) != 0).then_some(output)
    });
    denied(&refused, "suspended", false);
    goes(&of("a2"));
    goes(&desktop.tool("s", "Grep"));
    let stop = desktop.event("SubagentStop", "s", json!({"agent_id": "a1"}));
    assert_eq!(answer(&stop)["continue"], false, "{stop:?}");
    server.json(&["halt", "session:s", "--reason", "test"]);
    let refused = wait_for("the session's halt", || {
        let output = of("a2");
        (code(&output) != 0).then_some(output)
    });
    denied(&refused, "suspended", true);
}

/// Invariant *lease*: without a server the hook refuses when the lease is over; what was halted stays
/// halted over a killed resident process; the owner may choose otherwise.
#[test]
fn without_a_server_it_refuses_unless_its_owner_chose_otherwise() {
    let server = Server::start_with("[serve]\nlease_seconds = 2");
    let strict = Desktop::installed(&server, &["--deadline-ms", "2000"]);
    let lax = Desktop::installed(&server, &["--on-lost", "allow"]);
    server.json(&["halt", "session:halted", "--reason", "test"]);
    for desktop in [&strict, &lax] {
        goes(&desktop.tool("s", "Bash"));
        wait_for("the halt", || (code(&desktop.tool("halted", "Bash")) == 2).then_some(()));
    }
    drop(server);
    let lost = wait_for("the end of the lease", || {
        let output = strict.tool("s", "Bash");
        (code(&output) == 2).then_some(output)
    });
    denied(&lost, "longer than the lease", true);
    goes(&lax.tool("s", "Bash"));
    // A new process knows what the one before it had kept, and has no lease.
    for desktop in [&strict, &lax] {
        signal(desktop.resident(), "KILL");
    }
    denied(&strict.tool("s", "Bash"), "No server has been reached yet", true);
    denied(&strict.tool("halted", "Bash"), "Halted by", true);
    goes(&lax.tool("s", "Bash"));
    denied(&lax.tool("halted", "Bash"), "Halted by", true);
}

/// Hooks that find no resident process start one, and one only.
#[test]
fn many_hooks_at_once_start_one_resident_process() {
    let server = Server::start();
    let desktop = Desktop::installed(&server, &[]);
    signal(desktop.resident(), "KILL");
    let outputs: Vec<Output> = std::thread::scope(|scope| {
        let hooks: Vec<_> = (0..8)
            .map(|index| {
                let desktop = &desktop;
                scope.spawn(move || desktop.tool(&format!("s{index}"), "Bash"))
            })
            .collect();
        hooks.into_iter().map(|hook| hook.join().unwrap()).collect()
    });
    outputs.iter().for_each(goes);
    let pid = desktop.resident();
    goes(&desktop.tool("s", "Bash"));
    assert_eq!(desktop.resident(), pid);
    let (_, status) = server.admin("GET", "/v1/status", &Value::Null);
    let alive = status["enforcers"].as_array().unwrap().iter().filter(|it| it["connected"] == true);
    assert_eq!(alive.count(), 1, "{status}");
}

/// The resident process ends when nobody has asked for a while, and not while a tool is under way; the
/// next hook starts another.
#[test]
fn an_idle_resident_process_ends_and_comes_back() {
    let server = Server::start();
    let desktop = Desktop::installed(&server, &[]);
    let file = desktop.state().join("hook.json");
    let config = std::fs::read_to_string(&file).unwrap();
    let idle = config.replace("\"idle_seconds\": 3600", "\"idle_seconds\": 1");
    assert_ne!(config, idle);
    std::fs::write(&file, idle).unwrap();
    signal(desktop.resident(), "KILL");
    goes(&desktop.tool("s", "Bash"));
    let pid = desktop.resident();
    // Three idle times go by: what is under way is not given up for them.
    let began = Instant::now();
    wait_for("three seconds", || (began.elapsed() > Duration::from_secs(3)).then_some(()));
    assert_eq!(desktop.resident(), pid);
    goes(&desktop.event("Stop", "s", json!({})));
    let socket = wire::socket(&desktop.state());
    wait_for("the idle end", || (!socket.exists()).then_some(()));
    goes(&desktop.tool("s", "Bash"));
    assert_ne!(desktop.resident(), pid);
}

/// A hook is refused within its own deadline, whatever it talks to; and in the form in which the
/// event at hand takes it.
#[test]
fn a_resident_process_that_does_not_answer_is_not_waited_for() {
    let server = Server::start();
    let desktop = Desktop::installed(&server, &["--deadline-ms", "500"]);
    let _ = desktop.ask(&Request::End);
    wait_for("the socket's end", || (!wire::socket(&desktop.state()).exists()).then_some(()));
    // The lock stays ours, so that no other is started beside it.
    let lock = std::fs::File::open(wire::lock(&desktop.state())).unwrap();
    wait_for("the lock", || lock.try_lock().ok());
    let listener = UnixListener::bind(wire::socket(&desktop.state())).unwrap();

    let began = Instant::now();
    denied(&desktop.tool("s", "Bash"), "no answer within 500 ms", true);
    let stop = desktop.event("Stop", "s", json!({}));
    assert_eq!((code(&stop), &answer(&stop)["continue"]), (0, &json!(false)), "{stop:?}");
    // Ten times the two deadlines: this machine may be busy.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());

    for bytes in [&[255_u8; 8][..], b"\0\0\0\x02{}", b"\0\0\0\x04true", b""] {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // The first two are those that waited in vain above.
                loop {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut head = [0; 4];
                    if stream.read_exact(&mut head).is_err() {
                        continue;
                    }
                    let mut body = vec![0; wire::length(head).unwrap()];
                    stream.read_exact(&mut body).unwrap();
                    if stream.write_all(bytes).is_err() {
                        continue;
                    }
                    break;
                }
            });
            let output = desktop.tool("s", "Bash");
            denied(&output, "Estoppel refuses", true);
        });
    }
}

/// What cannot be judged is refused: missing, malformed, huge, endless, of nobody.
#[test]
fn what_cannot_be_judged_is_refused() {
    let server = Server::start();
    let desktop = Desktop::installed(&server, &["--deadline-ms", "3000"]);
    let check = |input: &[u8], reason: &str| {
        let output = desktop.hook(input);
        assert_eq!((code(&output), &answer(&output)["continue"]), (2, &json!(false)), "{output:?}");
        assert!(stderr(&output).contains(reason), "{reason}: {output:?}");
    };
    check(b"", "nothing");
    check(b"{\"session_id\": ", "malformed");
    check(b"\xff\xfe\x00", "no JSON object");
    check(br#"{"session_id":"s"}"#, "hook_event_name");
    check(br#"{"hook_event_name":"PreToolUse","tool_name":"Bash"}"#, "session_id");
    check(br#"{"hook_event_name":"PreToolUse","session_id":"a b","tool_name":"Bash"}"#, "U+0020");
    check(br#"{"hook_event_name":"PreToolUse","session_id":"s"}"#, "tool_name");
    check(br#"{"hook_event_name":"PreToolUse","session_id":"s","tool_name":"\u202e"}"#, "U+202E");
    let huge = format!(
        r#"{{"hook_event_name":"PreToolUse","session_id":"s","tool_name":"Write","tool_input":"{}"}}"#,
        "x".repeat(17 * 1024 * 1024)
    );
    check(huge.as_bytes(), "more than 16777216 bytes");
    let large = huge.replace(&"x".repeat(4 * 1024 * 1024), "x");
    goes(&desktop.hook(large.as_bytes()));
    // Of an event that no documentation has, nothing is known that would forbid it.
    goes(&desktop.event("OfTomorrow", "s", json!({})));

    // An agent that never closes its end.
    let mut command = desktop.command(HOOK);
    let mut child = command
        .arg("--state")
        .arg(desktop.state())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let open = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("no answer within 3000 ms"), "{output:?}");
    drop(open);

    let wrong = run(desktop.command(HOOK).arg("--stat"), b"{}");
    assert_eq!(code(&wrong), 2);
    assert!(stderr(&wrong).contains("`--stat` is no argument"), "{wrong:?}");
}

/// Gemini CLI, Cursor and Codex are answered in their own form, where their documentation has one.
#[test]
fn other_agents_are_answered_in_their_own_form() {
    let server = Server::start();
    let desktop = Desktop::installed(&server, &[]);
    let gemini = br#"{"session_id":"g","hook_event_name":"BeforeTool","tool_name":"run_shell_command","tool_input":{},"timestamp":"t","cwd":"/"}"#;
    let cursor = br#"{"conversation_id":"c","hook_event_name":"preToolUse","tool_name":"Shell","tool_input":{},"workspace_roots":["/"]}"#;
    let prompt = br#"{"conversation_id":"c","hook_event_name":"beforeSubmitPrompt","prompt":"p"}"#;
    let codex = br#"{"session_id":"x","turn_id":"1","hook_event_name":"PreToolUse","tool_name":"apply_patch","tool_input":{"command":"p"},"tool_use_id":"1","transcript_path":null,"model":"m","cwd":"/","permission_mode":"default"}"#;
    let all: [&[u8]; 4] = [gemini, cursor, prompt, codex];
    all.iter().for_each(|input| goes(&desktop.hook(input)));
    server.json(&["halt", "global", "--reason", "test"]);
    wait_for("the halt", || (code(&desktop.hook(codex)) == 2).then_some(()));
    let [gemini, cursor, prompt, codex] = all.map(|input| desktop.hook(input));
    assert_eq!((code(&gemini), &answer(&gemini)["decision"]), (0, &json!("deny")), "{gemini:?}");
    assert_eq!(answer(&gemini)["continue"], false);
    assert_eq!((code(&cursor), &answer(&cursor)["permission"]), (2, &json!("deny")), "{cursor:?}");
    assert_eq!((code(&prompt), &answer(&prompt)["continue"]), (0, &json!(false)), "{prompt:?}");
    // Codex reads the exit code with standard error, and no JSON beside them.
    assert_eq!(code(&codex), 2);
    assert!(stderr(&codex).contains("Agent operations suspended."), "{codex:?}");
}

/// The hook is put in once, keeps what is there, is proved by a canary, and is taken out again.
#[test]
fn an_install_is_proved_and_undone() {
    let server = Server::start();
    let desktop = Desktop::new();
    std::fs::create_dir(desktop.home().join(".claude")).unwrap();
    let before = "{\n  \"model\": \"opus\",\n  \"hooks\": {\n    \"Notification\": [{\"hooks\": []}]\n  }\n}\n";
    std::fs::write(desktop.settings(), before).unwrap();

    let plan = desktop.install(&server, &["--plan"]);
    assert!(plan.status.success(), "{plan:?}");
    assert!(
        answer(&plan)["diff"].as_str().unwrap().contains("+     \"PreToolUse\": ["),
        "{plan:?}"
    );
    assert_eq!(
        std::fs::read_to_string(desktop.settings()).unwrap(),
        before,
        "a plan changes nothing"
    );
    assert!(!desktop.state().exists());

    let installed = desktop.install(&server, &[]);
    let said = answer(&installed);
    assert!(installed.status.success(), "{installed:?}");
    let proof = &said["proof"];
    assert_eq!(
        (&proof["canary_refused"], &proof["other_let_go"]),
        (&json!(true), &json!(true)),
        "{said}"
    );
    assert!(proof["server"].as_str().unwrap().starts_with(&server.url), "{said}");
    let backup = std::fs::read_to_string(said["backup"].as_str().unwrap()).unwrap();
    assert_eq!(backup, before);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&desktop.state()), mode(&wire::socket(&desktop.state()))), (0o700, 0o600));
    assert_eq!(mode(&desktop.state().join("token")), 0o600);
    let after = std::fs::read_to_string(desktop.settings()).unwrap();
    assert!(after.contains("\"Notification\": [{\"hooks\": []}]"), "{after}");

    let again = desktop.install(&server, &[]);
    assert_eq!(answer(&again)["changed"], false, "{again:?}");
    assert_eq!(std::fs::read_to_string(desktop.settings()).unwrap(), after);

    let mut command = desktop.command(env!("CARGO_BIN_EXE_estoppel"));
    let out = command.args(["hook", "uninstall", "--for", "claude-code"]).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let left: Value =
        serde_json::from_str(&std::fs::read_to_string(desktop.settings()).unwrap()).unwrap();
    assert_eq!(left, serde_json::from_str::<Value>(before).unwrap());

    assert!(!desktop.state().join("hook.json").exists() && !desktop.state().join("token").exists());
    wait_for("the resident process's end", || {
        (!wire::socket(&desktop.state()).exists()).then_some(())
    });
    // Whose settings still name it, is refused.
    denied(&desktop.tool("s", "Bash"), "estoppel hook install", true);

    // What others share holds no path of this home.
    std::fs::create_dir(desktop.home().join("src")).unwrap();
    let shared = desktop
        .command(env!("CARGO_BIN_EXE_estoppel"))
        .args(["--json", "hook", "install", "--for", "claude-code", "--scope", "project"])
        .env("ESTOPPEL_URL", &server.url)
        .env("ESTOPPEL_TOKEN", server.token("shared", "agent", None))
        .current_dir(desktop.home().join("src"))
        .output()
        .unwrap();
    assert!(shared.status.success(), "{shared:?}");
    let settings = desktop.home().join("src/.claude/settings.json");
    let settings: Value = serde_json::from_slice(&std::fs::read(settings).unwrap()).unwrap();
    assert_eq!(settings["hooks"]["PreToolUse"][0]["hooks"][0]["command"], "'estoppel-hook'");

    // A person's token is none for an agent.
    let mut command = desktop.command(env!("CARGO_BIN_EXE_estoppel"));
    command.args(["--json", "hook", "install", "--for", "claude-code"]);
    command.env("ESTOPPEL_URL", &server.url).env("ESTOPPEL_TOKEN", &server.admin);
    let persons = command.output().unwrap();
    assert_eq!(code(&persons), 4, "{persons:?}");
    assert!(answer(&persons)["error"].as_str().unwrap().contains("a person's"), "{persons:?}");

    std::fs::write(desktop.settings(), "{ // mine\n}").unwrap();
    let refused = desktop.install(&server, &[]);
    assert_eq!(code(&refused), 2);
    assert!(answer(&refused)["error"].as_str().unwrap().contains("do not parse"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(desktop.settings()).unwrap(), "{ // mine\n}");
}

/// An install that proves nothing says so: here nobody answers the hook.
#[test]
fn an_install_without_a_server_is_no_proof() {
    let desktop = Desktop::new();
    let mut command = desktop.command(env!("CARGO_BIN_EXE_estoppel"));
    let output = command
        .args(["--json", "hook", "install", "--for", "claude-code", "--deadline-ms", "1000"])
        .args(["--url", "http://127.0.0.1:9", "--token", "t"])
        .output()
        .unwrap();
    assert_eq!(code(&output), 9, "{output:?}");
    let proof = &answer(&output)["proof"];
    assert_eq!((&proof["canary_refused"], &proof["other_let_go"]), (&json!(true), &json!(false)));
    assert_eq!(proof["server"], Value::Null);
}

/// `doctor` names each way around the hook.
#[test]
fn doctor_shows_what_gets_around_the_hook() {
    let server = Server::start();
    let desktop = Desktop::installed(&server, &["--on-lost", "allow"]);
    let doctor = || {
        let mut command = desktop.command(env!("CARGO_BIN_EXE_estoppel"));
        let output = command.args(["--json", "doctor"]).output().unwrap();
        let all: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        all.into_iter().filter(|it| it["name"] == "coding agents").collect::<Vec<_>>()
    };
    let found = |level: &str, text: &str| {
        let checks = doctor();
        let is_it = |it: &Value| {
            it["level"] == level && it["found"].as_str().is_some_and(|it| it.contains(text))
        };
        assert!(checks.iter().any(is_it), "{level} {text}: {checks:#?}");
    };
    found("gap", "on_lost: allow");
    found("gap", "sub-agents");
    found("ok", "is in step with");
    assert!(doctor().iter().all(|it| it["level"] != "fault"), "{:#?}", doctor());

    let text = std::fs::read_to_string(desktop.settings()).unwrap();
    std::fs::write(desktop.settings(), text.replacen("\"*\"", "\"Bash\"", 1)).unwrap();
    found("fault", "leaves tools out");
    std::fs::write(desktop.settings(), text.replacen("\"timeout\": 30", "\"timeout\": 1", 1))
        .unwrap();
    found("fault", "a timeout of 1 s");
    std::fs::write(desktop.settings(), text.replace("/estoppel-hook'", "/gone/estoppel-hook'"))
        .unwrap();
    found("fault", "cannot be started");
    std::fs::write(desktop.settings(), &text).unwrap();
    let local = desktop.home().join(".claude/settings.local.json");
    std::fs::write(&local, r#"{"disableAllHooks": true}"#).unwrap();
    found("fault", "turns the hook off");
    std::fs::remove_file(&local).unwrap();
    signal(desktop.resident(), "KILL");
    std::fs::remove_file(desktop.state().join("token")).unwrap();
    found("fault", "resident process");
    std::fs::write(desktop.settings(), "{}").unwrap();
    found("fault", "no settings name it any more");
    std::fs::remove_dir_all(desktop.state()).unwrap();
    found("gap", "without the hook");
    std::fs::remove_file(desktop.settings()).unwrap();
    assert_eq!(doctor(), Vec::<Value>::new(), "nobody uses an agent here");
}
