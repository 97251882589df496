//! The vault: captures come in, are shown, held, exported, verified and disposed of (row P7), and each
//! look is in the custody chain first.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use estoppel_evidence::{
    CaptureId, Digest, Gap, Item, Manifest, ProcessState, Redaction, SCHEMA, Tool,
};
use estoppel_model::{Actor, Clock as _, Subject, SystemClock, Untrusted};
use serde_json::{Value, json};

use crate::{
    hosted::{Hosted, is_root},
    stage::{Server, break_ledger, wait_for},
};

const MAPS: &[u8] = b"00400000-00452000 r-xp /usr/bin/agent \x1b[2J\n";

fn manifest(contents: &[(&str, &[u8])]) -> Manifest {
    let now = SystemClock.now();
    let item = |(name, content): &(&str, &[u8])| Item {
        id: format!("4711/{name}"),
        process: None,
        method: format!("read /proc/4711/{name}"),
        started_at: now,
        ended_at: now,
        bytes: content.len() as u64,
        sha256: Digest::of(content),
        stored_sha256: Digest::of(content),
        gaps: vec![],
    };
    Manifest {
        schema: SCHEMA,
        id: CaptureId::new(),
        case: None,
        order: None,
        subject: Subject::default(),
        host: "host-1".to_owned(),
        boot_id: None,
        operator: Actor::new("host:host-1").unwrap(),
        authority: "halt by alice: exfiltration".to_owned(),
        tool: Tool { name: "estoppel".into(), version: "0".into(), sha256: None },
        state: ProcessState::Frozen,
        containment: "own cgroup".to_owned(),
        started_at: now,
        ended_at: now,
        items: contents.iter().map(item).collect(),
        redacted: vec![Redaction {
            item: "4711/environ".into(),
            name: Untrusted::new("TOKEN".into()),
            rule: "name".into(),
            bytes: 7,
        }],
        gaps: vec![Gap { what: "4711/exe".into(), why: "the process had ended".into() }],
    }
}

fn incident(server: &Server) -> String {
    let (status, opened) = server.admin("POST", "/v1/incidents", &json!({ "title": "leak" }));
    assert_eq!(status, 201, "{opened}");
    opened["number"].as_str().unwrap().to_owned()
}

/// Delivers a capture as a host does; its id.
fn deliver(server: &Server, incident: &str, contents: &[(&str, &[u8])]) -> String {
    let token = server.token("host", "enforcer", None);
    let manifest = manifest(contents);
    for (_, content) in contents {
        let path = format!("/v1/evidence/{}", Digest::of(content));
        assert_eq!(server.send(&token, "PUT", &path, content).0, 204);
    }
    let sealed = manifest.seal().unwrap();
    let path = format!("/v1/incidents/{incident}/evidence");
    for _ in 0..2 {
        let (status, accepted) = server.send(&token, "POST", &path, sealed.text().as_bytes());
        assert_eq!((status, &accepted["missing"]), (200, &json!([])), "{accepted}");
    }
    manifest.id.to_string()
}

fn actions(server: &Server, capture: &str) -> Vec<String> {
    let log = server.json(&["evidence", "log", capture]);
    let events = log.as_array().unwrap();
    assert!(events.iter().all(|event| event["signed"] == true), "{log}");
    events.iter().map(|event| event["action"].as_str().unwrap().to_owned()).collect()
}

fn folder(server: &Server) -> PathBuf {
    server.data.parent().unwrap().to_owned()
}

fn export(server: &Server, incident: &str, to: &Path) -> Vec<u8> {
    let to_text = to.to_str().unwrap();
    server.json(&["evidence", "export", incident, "-o", to_text, "--purpose", "court order"]);
    std::fs::read(to).unwrap()
}

/// Verifies a bundle without any server; the exit code and what was said.
fn verify(bundle: &Path, more: &[&str]) -> (Option<i32>, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_estoppel"))
        .args(["--json", "evidence", "verify"])
        .arg(bundle)
        .args(more)
        .env_remove("ESTOPPEL_TOKEN")
        .env("ESTOPPEL_URL", "http://127.0.0.1:9")
        .output()
        .unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

/// A capture's whole life, each step in its chain.
#[test]
fn a_capture_is_kept_shown_held_exported_and_disposed_of() {
    let server = Server::start();
    let incident = incident(&server);
    let capture = deliver(&server, &incident, &[("maps", MAPS), ("status", b"Name: agent\n")]);
    let listed = server.json(&["evidence", "list", "--incident", &incident]);
    assert_eq!(listed[0]["capture"], capture.as_str(), "{listed}");
    assert_eq!(listed[0]["incident"], incident.as_str());
    assert_eq!((&listed[0]["held"], &listed[0]["disposed_at"]), (&json!(false), &Value::Null));
    assert_eq!(actions(&server, &capture), ["acquire"], "listing is no look at evidence");

    let shown = server.cli(&["evidence", "show", &capture, "--purpose", "triage"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("4711/maps") && shown.contains("GAP 4711/exe"), "{shown}");
    assert!(shown.contains("REDACTED in 4711/environ: TOKEN (7 bytes)"), "{shown}");
    let saved = folder(&server).join("maps");
    let save = ["evidence", "show", &capture, "--purpose", "triage", "--item", "4711/maps", "-o"];
    let save = [&save[..], &[saved.to_str().unwrap()]].concat();
    server.json(&save);
    assert_eq!(std::fs::read(&saved).unwrap(), MAPS);
    assert_eq!(server.cli(&save).status.code(), Some(6), "what is there is not replaced");
    assert_eq!(actions(&server, &capture), ["acquire", "access", "access", "copy", "access"]);

    let held = server.json(&["evidence", "hold", &incident, "--reason", "claim by Acme"]);
    let hold = held["hold"].as_str().unwrap();
    assert_eq!(server.json(&["evidence", "list"])[0]["held"], true);
    let close = json!({ "reason": "over" });
    server.admin("POST", &format!("/v1/incidents/{incident}/close"), &close);
    let dispose = ["evidence", "dispose", capture.as_str(), "--reason", "retention"];
    let refused = server.cli(&dispose);
    assert_eq!(refused.status.code(), Some(6));
    assert!(String::from_utf8_lossy(&refused.stderr).contains(hold));
    server.json(&["evidence", "release", hold, "--reason", "claim settled"]);
    let again = server.cli(&["evidence", "release", hold, "--reason", "claim settled"]);
    assert_eq!(again.status.code(), Some(6));

    let verified = ["evidence", "verify", "--capture", capture.as_str(), "--purpose", "check"];
    assert_eq!(server.json(&verified)["findings"], json!([]));
    let bundle = folder(&server).join("before.tar");
    export(&server, &incident, &bundle);
    let disposed = server.json(&dispose);
    assert_eq!(
        (&disposed["contents_removed"], &disposed["contents_shared"]),
        (&json!(2), &json!(0))
    );
    assert_eq!(server.json(&dispose)["contents_removed"], 0, "again removes nothing");
    let gone = format!("/v1/evidence/captures/{capture}/items/{}?purpose=x", Digest::of(MAPS));
    assert_eq!(server.send(&server.admin, "GET", &gone, b"").0, 409);
    let last = actions(&server, &capture);
    assert_eq!(last[5..], ["verify", "export", "dispose"]);

    // A restart forgets nothing of it.
    let server = server.crash_and_restart();
    server.ready();
    assert_eq!(actions(&server, &capture), last);
    let after = folder(&server).join("after.tar");
    export(&server, &incident, &after);
    assert_eq!(verify(&bundle, &[]).1["captures"][0]["disposed"], false);
    let (code, found) = verify(&after, &[]);
    assert_eq!(
        (code, &found["captures"][0]["disposed"], &found["blobs"]),
        (Some(0), &json!(true), &json!(0))
    );
}

/// A bundle is verified by the binary and by the script that is in it, both without any server.
#[test]
fn a_bundle_proves_itself_against_a_checkpoint_from_elsewhere() {
    let server = Server::start();
    let incident = incident(&server);
    let capture = deliver(&server, &incident, &[("maps", MAPS)]);
    // The checkpoint's file is renewed within seconds.
    let kept = |records: u64| {
        wait_for("a newer checkpoint", || {
            let to = folder(&server).join(format!("checkpoint-{records}"));
            std::fs::copy(server.data.join("ledger/checkpoint"), &to).unwrap();
            let text = std::fs::read_to_string(&to).unwrap();
            let size: u64 = text.lines().nth(1).unwrap().parse().unwrap();
            (size >= records).then(|| (to.to_str().unwrap().to_owned(), size))
        })
    };
    let (before, size) = kept(1);
    let path = folder(&server).join("case.tar");
    let file = export(&server, &incident, &path);
    let (code, found) = verify(&path, &[]);
    assert_eq!((code, &found["key_proved"]), (Some(0), &json!(false)), "{found}");
    assert_eq!((&found["events"], &found["blobs"]), (&json!(2), &json!(1)), "{found}");
    let records = found["records"].as_u64().unwrap();
    let (code, found) = verify(&path, &["--checkpoint", &before]);
    assert_eq!((code, &found["not_rolled_back_before"]), (Some(0), &json!(size)), "{found}");
    server.json(&["evidence", "show", &capture, "--purpose", "later"]);
    let (later, _) = kept(records + 1);
    let (code, found) = verify(&path, &["--checkpoint", &later]);
    assert_eq!(code, Some(8));
    assert!(found["error"].as_str().unwrap().contains("rolled back"), "{found}");
    // A public key of RFC 8032.
    let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let (code, found) = verify(&path, &["--key", key]);
    assert_eq!(code, Some(8));
    assert!(found["error"].as_str().unwrap().contains("not by the given"), "{found}");

    let changed = folder(&server).join("changed.tar");
    let mut bytes = file.clone();
    let at = file.windows(MAPS.len()).position(|part| part == MAPS).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&changed, bytes).unwrap();
    let (code, found) = verify(&changed, &[]);
    assert_eq!(code, Some(8));
    assert!(found["error"].as_str().unwrap().contains("was changed"), "{found}");
}

/// No look without a role, a purpose and a record; no tenant sees the operator's evidence.
#[test]
fn evidence_is_for_those_who_may_and_say_what_for() {
    let server = Server::start();
    let incident = incident(&server);
    let capture = deliver(&server, &incident, &[("maps", MAPS)]);
    let viewer = server.token("viewer", "viewer", None);
    let responder = server.token("responder", "responder", None);
    let bound = server.token("bound", "responder", Some("acme"));
    let agent = server.token("agent", "agent", None);
    let show = format!("/v1/evidence/captures/{capture}?purpose=x");
    let item = format!("/v1/evidence/captures/{capture}/items/{}?purpose=x", Digest::of(MAPS));
    let log = format!("/v1/evidence/captures/{capture}/log");
    let get = |token: &str, path: &str| server.send(token, "GET", path, b"").0;
    for path in ["/v1/evidence", "/v1/evidence/holds", &log] {
        assert_eq!(get(&viewer, path), 200, "{path}");
        assert_eq!(get(&bound, path), 403, "{path}");
        assert_eq!(get(&agent, path), 403, "{path}");
    }
    for path in [&show, &item] {
        assert_eq!(get(&viewer, path), 403, "{path}");
        assert_eq!(get(&bound, path), 403, "{path}");
        assert_eq!(get(&responder, path), 200, "{path}");
        let silent = path.split('?').next().unwrap();
        assert_eq!(get(&responder, silent), 422, "{path}");
        assert_eq!(get(&responder, &format!("{silent}?purpose={}", "x".repeat(1_001))), 422);
    }
    let post = |token: &str, path: &str, body: Value| {
        server.send(token, "POST", path, body.to_string().as_bytes()).0
    };
    let dispose = format!("/v1/evidence/captures/{capture}/dispose");
    let reason = || json!({ "reason": "r" });
    assert_eq!(post(&responder, &dispose, reason()), 403, "a lead's");
    assert_eq!(post(&server.admin, &dispose, reason()), 409, "the incident is open");
    assert_eq!(post(&responder, "/v1/evidence/export", json!({ "purpose": "x" })), 404);
    let all = json!({ "purpose": "", "incident": incident });
    assert_eq!(post(&responder, "/v1/evidence/export", all), 422);
    let nobodys = format!("/v1/evidence/captures/{}/log", uuid::Uuid::now_v7());
    assert_eq!(get(&viewer, &nobodys), 404);
    let not_of_it = format!("/v1/evidence/captures/{capture}/items/{}?purpose=x", Digest::of(b""));
    assert_eq!(get(&responder, &not_of_it), 404);
    assert_eq!(actions(&server, &capture), ["acquire", "access", "copy"], "refusals are no looks");

    // Of one capture there is one manifest.
    let mut other = manifest(&[("maps", MAPS)]);
    other.id = capture.parse().unwrap();
    let path = format!("/v1/incidents/{incident}/evidence");
    let sealed = other.seal().unwrap();
    let host = server.token("host2", "enforcer", None);
    assert_eq!(server.send(&host, "POST", &path, sealed.text().as_bytes()).0, 409);
}

/// What the vault lost is found, named and left out; what is there can still be exported.
#[test]
fn a_damaged_content_is_named_and_the_rest_goes_out() {
    let server = Server::start();
    let incident = incident(&server);
    let capture = deliver(&server, &incident, &[("maps", MAPS), ("status", b"Name: agent\n")]);
    let digest = Digest::of(MAPS).to_string();
    std::fs::write(server.data.join("evidence").join(&digest[..2]).join(&digest), "x").unwrap();
    let check = ["evidence", "verify", "--capture", capture.as_str(), "--purpose", "check"];
    let found = server.cli(&check);
    assert_eq!(found.status.code(), Some(8));
    assert!(String::from_utf8_lossy(&found.stdout).contains("4711/maps was changed"));
    let item = format!("/v1/evidence/captures/{capture}/items/{digest}?purpose=x");
    assert_eq!(server.send(&server.admin, "GET", &item, b"").0, 409);
    let path = folder(&server).join("case.tar");
    export(&server, &incident, &path);
    let (code, found) = verify(&path, &[]);
    assert_eq!((code, &found["blobs"]), (Some(0), &json!(1)), "{found}");
    assert_eq!(found["missing"][0]["sha256"], digest.as_str(), "{found}");
}

/// No bytes without the record: while the ledger takes none, no evidence goes out.
#[test]
fn no_evidence_goes_out_without_a_record() {
    let server = Server::start();
    let incident = incident(&server);
    let capture = deliver(&server, &incident, &[("maps", MAPS)]);
    let (server, ()) = {
        let data = server.data.clone();
        server.away_while(|| break_ledger(&data))
    };
    let item = format!("/v1/evidence/captures/{capture}/items/{}?purpose=x", Digest::of(MAPS));
    let show = format!("/v1/evidence/captures/{capture}?purpose=x");
    for path in [item, show] {
        assert_eq!(server.send(&server.admin, "GET", &path, b"").0, 503);
    }
    let all = json!({ "purpose": "x", "incident": incident }).to_string();
    assert_eq!(server.send(&server.admin, "POST", "/v1/evidence/export", all.as_bytes()).0, 503);
    let blob = server.data.join("evidence").join(&Digest::of(MAPS).to_string()[..2]);
    assert!(blob.join(Digest::of(MAPS).to_string()).exists(), "it is there");
}

/// A secret that was taken out before hashing is nowhere in the vault and in no bundle, though the
/// variable that held it is.
#[test]
fn real_what_was_redacted_leaves_in_no_bundle() {
    if !is_root() {
        return;
    }
    const SECRET: &str = "hunter2-correct-horse-battery";
    let server = Server::start();
    let variable = format!("DATABASE_PASSWORD={SECRET}");
    let agent = Hosted::start_as(&server, "redacted", &[], &["env", &variable]);
    let halt = json!({ "scope": "session:redacted", "reason": "exfiltration" });
    assert_eq!(server.admin("POST", "/kill-switch", &halt).0, 202);
    let captures = wait_for("the capture", || {
        let captures = server.json(&["evidence", "list"]);
        (!captures.as_array().unwrap().is_empty()).then_some(captures)
    });
    let incident = captures[0]["incident"].as_str().unwrap();
    let path = folder(&server).join("case.tar");
    let file = export(&server, incident, &path);
    assert_eq!(verify(&path, &[]).0, Some(0));
    let holds =
        |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(holds(&file, "DATABASE_PASSWORD"), "the variable was captured");
    assert!(!holds(&file, SECRET), "its value was not");
    let mut folders = vec![server.data.join("evidence")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                assert!(!holds(&std::fs::read(entry.path()).unwrap(), SECRET), "{entry:?}");
            }
        }
    }
    drop(agent);
}
