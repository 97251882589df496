//! Evidence of real processes (row P7).

use std::{collections::BTreeMap, fs, path::Path};

use estoppel_evidence::{Digest, Finding, Hashed, Manifest, ProcessState, verify};
use estoppel_host::{CaptureLimits, CaptureRequest, Captured, capture, pending_captures};
use estoppel_model::{Actor, IncidentId, SystemClock};

use crate::{
    Test,
    machine::{Place, SOON, start, subject},
};

pub(crate) const TESTS: &[Test] = &[
    ("real_evidence_is_whole_redacted_and_proves_itself", whole),
    ("real_bounds_become_gaps", bounds),
];

fn request() -> CaptureRequest {
    CaptureRequest {
        case: Some(IncidentId::new()),
        order: None,
        subject: subject(),
        operator: Actor::new("host:test").unwrap(),
        authority: "halt by alice: test".to_owned(),
        state: ProcessState::Frozen,
        containment: "own cgroup".to_owned(),
    }
}

fn content(captured: &Captured, manifest: &Manifest, item: &str) -> Vec<u8> {
    let item = manifest
        .items
        .iter()
        .find(|it| it.id == item)
        .unwrap_or_else(|| panic!("no item {item}: {:?}", manifest.gaps));
    fs::read(captured.folder.join("blobs").join(item.sha256.to_string())).unwrap()
}

fn whole() {
    let place = Place::new();
    let out = place.path("out");
    let mut config = place.agent(&["listen", out.to_str().unwrap()]);
    config.command.truncate(2);
    config.command.extend(["listen".into(), out.clone().into_os_string()]);
    config.env.extend([
        ("DB_PASSWORD".into(), "hunter2-hunter2".into()),
        ("ENDPOINT".into(), "https://user:letmein1@db.example/x".into()),
        ("PLAIN".into(), "kept".into()),
    ]);
    let program = place.path("agent");
    let digest = Digest::of(&fs::read(&program).unwrap());
    let agent = start(config);
    place.await_line("out");
    fs::remove_file(&program).unwrap();
    let processes = agent.processes();
    processes.begin_freeze().unwrap();
    assert!(processes.await_frozen(SOON).unwrap().complete);

    let evidence = place.path("evidence");
    let limits = CaptureLimits { total_within: SOON, ..CaptureLimits::default() };
    let captured =
        capture(processes.list().unwrap(), &request(), &limits, &evidence, &SystemClock).unwrap();
    let (read, manifest) = Captured::open(&captured.folder).unwrap();
    assert_eq!(read.manifest, captured.manifest);
    assert_eq!(manifest.gaps, [], "{:?}", manifest.gaps);
    assert_eq!(manifest.state, ProcessState::Frozen);
    assert!(manifest.tool.sha256.is_some() && manifest.boot_id.is_some());

    let pid = agent.pid();
    let text = |name: &str| {
        String::from_utf8(content(&captured, &manifest, &format!("{pid}/{name}"))).unwrap()
    };
    let environ = text("environ");
    assert!(environ.contains("DB_PASSWORD=[redacted name 15 bytes]\0"), "{environ}");
    assert!(environ.contains("https://[redacted userinfo 13 bytes]@db.example/x"), "{environ}");
    assert!(environ.contains("PLAIN=kept\0"), "{environ}");
    assert!(text("maps").contains("/agent (deleted)"));
    assert!(text("status").contains("Uid:\t65534"));
    assert!(text("cgroup").contains("/estoppel/real-"));
    assert!(text("cmdline").contains("listen\0"));
    assert!(text("fds").contains(out.to_str().unwrap()), "{}", text("fds"));
    assert!(text("links").contains("ns/net"));
    // 127.0.0.1:5555, as proc_net_tcp has it: the agent's own namespace, not the host's.
    assert!(text("net/tcp").contains("0100007F:15B3"), "{}", text("net/tcp"));
    let exe = manifest.items.iter().find(|it| it.id == format!("{pid}/exe")).unwrap();
    assert_eq!(exe.sha256, digest, "the deleted program's bytes");
    for (name, rule) in [("DB_PASSWORD", "name"), ("ENDPOINT", "userinfo")] {
        let of = |it: &&estoppel_evidence::Redaction| it.name.raw() == name;
        let redaction = manifest.redacted.iter().find(of).unwrap();
        assert_eq!(
            (redaction.item.as_str(), redaction.rule.as_str()),
            (&*format!("{pid}/environ"), rule)
        );
    }
    for (_, blob) in &captured.blobs {
        let bytes = fs::read(blob).unwrap();
        let leaked = [&b"hunter2-hunter2"[..], b"letmein1"]
            .iter()
            .any(|secret| bytes.windows(secret.len()).any(|window| window == *secret));
        // This program itself holds the words, as a constant.
        assert!(!leaked || Digest::of(&bytes) == digest, "{}", blob.display());
    }
    proves_itself(&captured, &manifest);
    delivered_once(&evidence, &captured);
    processes.kill(SOON).unwrap();
}

fn proves_itself(captured: &Captured, manifest: &Manifest) {
    let blobs: BTreeMap<Digest, _> = captured.blobs.iter().cloned().collect();
    let run = || {
        verify(manifest, |digest| fs::read(&blobs[digest]).ok().map(|content| Hashed::of(&content)))
    };
    assert_eq!(run(), []);
    let (_, blob) = captured.blobs.first().unwrap();
    let before = fs::read(blob).unwrap();
    let mut changed = before.clone();
    changed.push(b'!');
    fs::write(blob, &changed).unwrap();
    assert!(run().iter().all(|finding| matches!(finding, Finding::Changed { .. })));
    assert!(!run().is_empty());
    fs::remove_file(blob).unwrap();
    assert!(run().iter().all(|finding| matches!(finding, Finding::Missing { .. })));
    fs::write(blob, &before).unwrap();
    assert_eq!(run(), []);
}

fn delivered_once(evidence: &Path, captured: &Captured) {
    let pending = pending_captures(evidence);
    assert_eq!(pending.iter().map(|it| it.id).collect::<Vec<_>>(), [captured.id]);
    let by = Actor::new("host:test").unwrap();
    captured.mark_delivered("http://127.0.0.1:7600", &by, &SystemClock).unwrap();
    assert!(pending_captures(evidence).is_empty());
    let custody = fs::read_to_string(captured.folder.join("custody.jsonl")).unwrap();
    let events = estoppel_evidence::custody::verify(custody.lines(), None).unwrap();
    assert_eq!(events.len(), 2);
    assert_eq!(events[0].entry.hash_after, Some(captured.manifest.digest()));
}

fn bounds() {
    let place = Place::new();
    let agent = start(place.script("for i in 1 2 3; do sleep 1000 & done; echo y > out; wait"));
    place.await_line("out");
    let processes = agent.processes();
    processes.begin_freeze().unwrap();
    processes.await_frozen(SOON).unwrap();
    let run = |limits: &CaptureLimits| {
        let evidence = place.path("evidence");
        let list = processes.list().unwrap();
        let captured = capture(list, &request(), limits, &evidence, &SystemClock).unwrap();
        Captured::open(&captured.folder).unwrap().1
    };
    let limits = CaptureLimits { total_within: SOON, ..CaptureLimits::default() };

    let few = run(&CaptureLimits { processes_max: 1, ..limits });
    assert!(few.gaps.iter().any(|gap| gap.what == "3 processes"), "{:?}", few.gaps);

    let short = run(&CaptureLimits { item_bytes_max: 64, exe_bytes_max: 1_000, ..limits });
    let cut = |name: &str| {
        let item = short.items.iter().find(|it| it.id == format!("{}/{name}", agent.pid()));
        item.unwrap_or_else(|| panic!("no {name}")).clone()
    };
    assert_eq!((cut("maps").bytes, cut("maps").gaps.len()), (64, 1));
    assert_eq!(cut("exe").bytes, 1_000);
    assert!(cut("exe").gaps[0].starts_with("cut at 1000 of "));

    let little = run(&CaptureLimits { total_bytes_max: 2_000, ..limits });
    assert!(little.gaps.iter().any(|gap| gap.why.contains("room is used up")), "{:?}", little.gaps);

    let late = run(&CaptureLimits { total_within: std::time::Duration::ZERO, ..limits });
    assert!(late.items.is_empty());
    assert_eq!(
        late.gaps.iter().filter(|gap| gap.why.contains("was over")).count(),
        late.gaps.len()
    );

    // Processes that end before they are read are gaps, too.
    let list = processes.list().unwrap();
    processes.kill(SOON).unwrap();
    let captured =
        capture(list, &request(), &limits, &place.path("evidence"), &SystemClock).unwrap();
    let manifest = Captured::open(&captured.folder).unwrap().1;
    let ended = |pid: u32| manifest.gaps.iter().any(|gap| gap.what == pid.to_string());
    assert!(manifest.items.iter().all(|item| ended(item.process.unwrap().pid)));
    assert!(ended(agent.pid()), "{:?}", manifest.gaps);
}
