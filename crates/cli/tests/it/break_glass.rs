//! Break-glass: agents that go on although no server answers, by a file that was meant for that.
//! Invariants *lease* and *starting-always-does*.

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use estoppel_link::{Link, LinkConfig, Refusal, frame::EnforcerKind};
use estoppel_model::{Clock as _, EntityId, Secret, Subject, SystemClock};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    guards::free_address,
    hosted::Hosted,
    stage::{Server, ledger_holds, wait_for},
    watchdog::channel,
};

const FILE: &str = "break-glass.json";

/// A guard with a state folder, as an agent's process has one.
struct Guard {
    link: Link,
    tasks: TaskTracker,
    stop: CancellationToken,
    runtime: tokio::runtime::Runtime,
}

impl Guard {
    fn start(url: &str, token: &str, name: &str, folder: &Path) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (servers, token) = (vec![url.parse().unwrap()], Secret::new(token.to_owned()));
        let config = LinkConfig {
            state_dir: Some(folder.to_owned()),
            ..LinkConfig::new(servers, token, EnforcerKind::Guard, name)
        };
        let link = {
            let _inside = runtime.enter();
            Link::start(config, Arc::new(SystemClock), &tasks, stop.clone()).unwrap().0
        };
        Self { link, tasks, stop, runtime }
    }

    fn check(&self, session: &str) -> Result<(), Refusal> {
        let session = Some(EntityId::new(session).unwrap());
        self.link.view().check(&Subject { session, ..Subject::default() })
    }

    fn goes(&self) -> Option<()> {
        self.check("other").ok()
    }

    fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        self.runtime.block_on(self.tasks.wait());
    }
}

/// The file that a command prints.
fn made(output: std::process::Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn create(server: &Server, more: &[&str]) -> String {
    let args = ["break-glass", "create", "--reason", "the server is away"];
    wait_for("the server's recovery", || {
        let output = server.cli(&[&args[..], more].concat());
        (output.status.code() != Some(3)).then(|| made(output))
    })
}

fn uses(server: &Server) -> Vec<Value> {
    let (status, files) = server.admin("GET", "/v1/break-glass", &Value::Null);
    assert_eq!(status, 200, "{files}");
    let files = files.as_array().unwrap().iter();
    files.flat_map(|file| file["uses"].as_array().unwrap().clone()).collect()
}

/// The whole of it: refused, bad files refused, a good one taken, halts in force, told afterwards.
#[test]
fn agents_go_on_by_a_break_glass_and_no_halt_ends() {
    let (pages, paged) = channel();
    let config = format!("[serve]\nlease_seconds = 2\n[paging]\nurl = \"{pages}\"");
    let server = Server::start_with(&config);
    let token = server.token("bot", "agent", None);
    let folder = tempfile::tempdir().unwrap();
    let guard = Guard::start(&server.url, &token, "web-3", folder.path());
    guard.runtime.block_on(guard.link.ready());
    let halt = json!({ "scope": "session:halted", "reason": "r" });
    assert_eq!(server.admin("POST", "/kill-switch", &halt).0, 202);
    wait_for("the halt", || guard.check("halted").is_err().then_some(()));

    let good = create(&server, &["--until", "1h", "--for", "10m"]);
    let soon = (SystemClock.now() + Duration::from_secs(1)).to_string();
    let expired = create(&server, &["--until", &soon]);
    let elsewhere = create(&server, &["--until", "1h", "--enforcer", "web-4"]);
    let other = Server::start();
    let foreign = create(&other, &["--until", "1h"]);
    let forged = good.replace(r#"use_seconds_max\":600"#, r#"use_seconds_max\":900"#);
    assert_ne!(forged, good);

    let huge = "x".repeat(100_000);
    let place = |content: &str| std::fs::write(folder.path().join(FILE), content).unwrap();
    let (server, guard) = server.away_while(|| {
        wait_for("the end of the lease", || {
            matches!(guard.check("other"), Err(Refusal::LeaseLost)).then_some(())
        });
        for (content, why) in [
            (expired.as_str(), "was good until"),
            (elsewhere.as_str(), "it is for enforcer \"web-4\""),
            (foreign.as_str(), "signed by another key"),
            (forged.as_str(), "changed after it was made"),
            ("{}", "no break-glass file"),
            (huge.as_str(), "longer than"),
        ] {
            place(content);
            wait_for(why, || guard.link.status().problem.filter(|said| said.contains(why)));
            assert!(guard.goes().is_none(), "{why}");
        }
        place(&good);
        wait_for("the break-glass", || guard.goes());
        assert!(matches!(guard.check("halted"), Err(Refusal::Halted(_))), "halted stays halted");
        std::fs::remove_file(folder.path().join(FILE)).unwrap();
        wait_for("its end", || guard.goes().is_none().then_some(()));
        guard.end();
        // Started without any server: what was kept holds, and a file lets the rest go.
        let guard = Guard::start("http://127.0.0.1:1", &token, "web-3", folder.path());
        assert!(matches!(guard.check("other"), Err(Refusal::NotYetConnected)));
        place(&good);
        wait_for("the break-glass", || guard.goes());
        assert!(matches!(guard.check("halted"), Err(Refusal::Halted(_))));
        guard.end();
        Guard::start("http://127.0.0.1:1", &token, "web-3", folder.path())
    });
    guard.end();
    let guard = Guard::start(&server.url, &token, "web-3", folder.path());
    let told = wait_for("the server to hear of it", || uses(&server).pop());
    assert_eq!((&told["enforcer"], &told["actor"]), (&json!("web-3"), &json!("bot")), "{told}");
    let seconds = told["used_seconds"].as_u64().unwrap();
    assert!((1..60).contains(&seconds), "{told}");
    assert!(guard.check("halted").is_err());
    let status = server.json(&["status"]);
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains("went on without a server"), "{warnings}");
    let page = wait_for("the page", || {
        let page = paged.try_recv().ok()?.to_string();
        page.contains("Break-glass").then_some(page)
    });
    assert!(page.contains("web-3"), "{page}");
    wait_for("the record", || ledger_holds(&server.data, "break_glass.used").then_some(()));
    let listed = made(server.cli(&["break-glass", "list"]));
    assert!(listed.contains("1 enforcers") && listed.contains("away"), "{listed}");
    // Told again, it is no news.
    guard.end();
    let guard = Guard::start(&server.url, &token, "web-3", folder.path());
    guard.runtime.block_on(guard.link.ready());
    assert_eq!(uses(&server).len(), 1);
    guard.end();
}

/// K7: a count by the lease is no proof while a file is out, and says so.
#[test]
fn who_is_counted_by_lease_may_go_on_by_a_file_that_is_out() {
    let server = Server::start_with("[serve]\nlease_seconds = 5");
    let token = server.token("bot", "agent", None);
    let folder = tempfile::tempdir().unwrap();
    let guard = Guard::start(&server.url, &token, "web-3", folder.path());
    guard.runtime.block_on(guard.link.ready());
    guard.end();
    let halt = server.json(&["halt", "session:a", "--reason", "r"]);
    let status = || server.json(&["status", "--halt", halt["id"].as_str().unwrap()]);
    let over = wait_for("the end of its lease", || {
        let status = status();
        (status["by_lease"] == 1).then_some(status)
    });
    assert_eq!(over["break_glass_until"], Value::Null, "{over}");
    create(&server, &["--until", "1h"]);
    assert!(status()["break_glass_until"].is_string(), "{}", status());
    let told = server.cli(&["status", "--halt", halt["id"].as_str().unwrap()]).stdout;
    let told = String::from_utf8(told).unwrap();
    assert!(told.contains("a break-glass file is out until"), "{told}");
    let release = ["release", "session:a", "--reason", "r"];
    assert!(server.cli(&release).status.success());
    assert_eq!(status()["break_glass_until"], Value::Null, "{}", status());
}

/// Made from the data folder of a server that is dead, and known to it afterwards.
#[test]
fn the_owner_of_the_data_folder_makes_one_without_a_server() {
    let server = Server::start_with("[serve]\nlease_seconds = 2");
    let token = server.token("bot", "agent", None);
    let folder = tempfile::tempdir().unwrap();
    let guard = Guard::start(&server.url, &token, "web-3", folder.path());
    guard.runtime.block_on(guard.link.ready());
    let data = server.data.to_str().unwrap().to_owned();
    let (server, ()) = server.away_while(|| {
        let file = Command::new(env!("CARGO_BIN_EXE_estoppel"))
            .args(["break-glass", "create", "--until", "1h", "--reason", "dead", "--data", &data])
            .output()
            .unwrap();
        std::fs::write(folder.path().join(FILE), made(file)).unwrap();
        wait_for("the end of the lease", || {
            let until = guard.link.status().lease_until.unwrap();
            (SystemClock.boottime() > until).then_some(())
        });
        wait_for("the break-glass", || guard.goes());
    });
    let told = wait_for("the server to hear of it", || uses(&server).pop());
    assert_eq!(told["enforcer"], "web-3");
    let files = server.json(&["break-glass", "list"]);
    let by = files[0]["issued_by"].as_str().unwrap();
    assert!(by.starts_with("local:uid-"), "{files}");
    guard.end();
    let nowhere = tempfile::tempdir().unwrap();
    let refused = Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(["break-glass", "create", "--until", "1h", "--reason", "r", "--data"])
        .arg(nowhere.path())
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(std::fs::read_dir(nowhere.path()).unwrap().next().is_none(), "no key is made");
}

/// Letting agents go is an admin's, for a time, with a reason.
#[test]
fn who_may_make_one_and_for_how_long() {
    let server = Server::start();
    let hour = (SystemClock.now() + Duration::from_secs(3_600)).to_string();
    let far = (SystemClock.now() + Duration::from_secs(91 * 86_400)).to_string();
    let good = json!({ "until": hour, "reason": "r" });
    assert_eq!(server.admin("POST", "/v1/break-glass", &good).0, 201);
    let lead = server.token("lea", "lead", None);
    let bound = server.token("ten", "admin", Some("acme"));
    for token in [&lead, &bound] {
        let body = good.to_string();
        assert_eq!(server.send(token, "POST", "/v1/break-glass", body.as_bytes()).0, 403);
    }
    for (bad, status) in [
        (json!({ "until": far, "reason": "r" }), 422),
        (json!({ "until": hour, "reason": "" }), 422),
        (json!({ "until": hour, "reason": "r", "use_seconds_max": 90_000 }), 422),
        (json!({ "until": hour, "reason": "r", "enforcer": "a", "tenant": "t" }), 422),
        (json!({ "reason": "r" }), 400),
        (json!({ "until": hour, "reason": "r", "halts": [] }), 400),
    ] {
        assert_eq!(server.admin("POST", "/v1/break-glass", &bad).0, status, "{bad}");
    }
    let never = server.cli(&["break-glass", "create", "--until", "never", "--reason", "r"]);
    assert_eq!(never.status.code(), Some(2));
    let warnings = server.json(&["status"])["warnings"].to_string();
    assert!(warnings.contains("a break-glass of admin is good until"), "{warnings}");
    let Value::Array(files) = server.admin("GET", "/v1/break-glass", &Value::Null).1 else {
        panic!("no list")
    };
    assert_eq!(files.len(), 1, "{files:?}");
    assert!(files[0].get("file").is_none(), "it is shown once");
}

/// Row K7: a confined agent is frozen when the lease is over, thawed by a break-glass at its host and
/// its gateway, and frozen again by a halt.
#[test]
fn real_a_frozen_agent_goes_on_by_a_break_glass() {
    let server = Server::start_with("[serve]\nlease_seconds = 3");
    let Some(agent) = Hosted::start(&server, "glass", &[]) else { return };
    let file = create(&server, &["--until", "1h"]);
    let (server, ()) = server.away_while(|| {
        wait_for("the freezing", || (!agent.acts()).then_some(()));
        for part in ["host", "gateway"] {
            std::fs::write(agent.state().join(part).join(FILE), &file).unwrap();
        }
        wait_for("the thawing", || agent.acts().then_some(()));
        let halted = Command::new(env!("CARGO_BIN_EXE_estoppel"))
            .args(["halt", "session:glass", "--reason", "enough", "--local"])
            .output()
            .unwrap();
        assert!(halted.status.success(), "{}", String::from_utf8_lossy(&halted.stderr));
        assert!(!agent.acts(), "a halt holds, whatever lies in the folder");
    });
    wait_for("both to be told of", || (uses(&server).len() >= 2).then_some(()));
    assert!(!agent.acts());
    let halt = server.admin("GET", "/kill-switch?scope=session:glass", &Value::Null).1;
    assert_eq!(halt["active"], true, "{halt}");
}

/// A gateway that starts while no server answers serves by the policy of its last run; one that never
/// had any ends.
#[test]
fn a_gateway_starts_without_a_server_by_the_policy_that_it_kept() {
    let server = Server::start();
    let token = server.token("gate", "enforcer", None);
    let (status, answer) =
        server.admin("PUT", "/v1/allowlist", &json!({ "domains": ["example.com"] }));
    assert_eq!(status, 200, "{answer}");
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let log = folder.path().join("log");
    let url = server.url.clone();
    let start = |listen: &str| {
        let child = Command::new(env!("CARGO_BIN_EXE_estoppel"))
            .args(["gateway", "--listen", listen, "--state"])
            .arg(&state)
            .env("ESTOPPEL_URL", &url)
            .env("ESTOPPEL_TOKEN", &token)
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Ended(child)
    };
    let first = start(&free_address());
    let policy = wait_for("the policy", || std::fs::read_to_string(state.join("policy.json")).ok());
    assert!(policy.contains("example.com"), "{policy}");
    drop(first);
    let listen = free_address();
    let (server, answer) = server.away_while(|| {
        let _second = start(&listen);
        wait_for("an answer of the gateway", || {
            let curl = Command::new("curl")
                .args(["-s", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}", "-x"])
                .args([&format!("http://{listen}"), "http://example.com/"])
                .output()
                .unwrap();
            let code = String::from_utf8(curl.stdout).unwrap();
            (code != "000").then_some(code)
        })
    });
    assert_eq!(answer, "407", "it serves, and asks who it is");
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("the last policy that is known holds"), "{said}");
    drop(server);
}

/// A process that ends with the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
