//! What an agent is and what it reaches.

use std::{fs, io::Write as _, net::TcpListener, os::unix::fs::PermissionsExt as _, thread};

use estoppel_host::{
    CgroupMode, Freezer, Identity, Mode, Network, NetworkMode, Prepared, RunError,
};
use estoppel_link::Refusal;
use estoppel_model::Secret;

use crate::{
    Test,
    machine::{Place, SOON, exists, start, until},
    orders::{Script, halt},
};

pub(crate) const TESTS: &[Test] = &[
    ("real_an_agent_has_no_rights_and_sees_no_secrets", no_rights),
    ("real_only_the_gateway_is_reachable", only_the_gateway),
    ("real_a_halted_subject_is_not_started", not_started),
    ("real_a_command_that_cannot_run_says_why", cannot_run),
    ("real_an_agent_cannot_touch_others_of_its_uid", others_of_its_uid),
    ("real_less_is_claimed_where_less_holds", less_holds),
];

fn no_rights() {
    let place = Place::new();
    let secret = place.path("data");
    fs::create_dir(&secret).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(secret.join("admin.token"), "secret").unwrap();
    let hidden = place.path("sockets");
    fs::create_dir(&hidden).unwrap();
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(hidden.join("docker.sock"), "").unwrap();
    let file = place.path("api.sock");
    fs::write(&file, "reachable").unwrap();

    let mut config = place.script(
        "{ echo uid $(id -u) $(id -g) groups $(id -G); \
         grep NoNewPrivs /proc/self/status; grep CapEff /proc/self/status; \
         echo data $(cat data/admin.token 2>&1); \
         echo sockets $(ls sockets 2>&1); echo file $(cat api.sock 2>&1).; \
         echo fds $(ls /proc/self/fd | wc -l); \
         echo devices $(tail -n +3 /proc/net/dev | cut -d: -f1); \
         echo proxies $HTTP_PROXY $https_proxy no=$NO_PROXY; \
         echo token $ESTOPPEL_TOKEN given $GIVEN; } > out 2>&1; echo end > done; exec sleep 1000",
    );
    config.hide.extend([hidden, file]);
    config.env.push(("GIVEN".into(), "yes".into()));
    let agent = start(config);
    place.await_line("done");
    let out = place.read("out");
    for line in [
        "uid 65534 65534 groups 65534\n",
        "NoNewPrivs:\t1\n",
        "CapEff:\t0000000000000000\n",
        "devices lo\n",
        "file .\n",
        // Three, and the one that `ls` reads the folder with.
        "fds 4\n",
        "proxies http://127.0.0.1:3128 http://127.0.0.1:3128 no=\n",
        "token given yes\n",
    ] {
        assert!(out.contains(line), "{line:?} in {out}");
    }
    assert!(out.contains("data cat: data/admin.token: Permission denied"), "{out}");
    assert!(out.contains("sockets ls: cannot open directory"), "{out}");
    let containment = agent.containment();
    assert!(
        containment.to_string().starts_with(
            "agent runs as uid 65534 in its own cgroup (freezable) and network namespace (only \
             the gateway is reachable)"
        ),
        "{containment}"
    );
    assert!(containment.gaps.is_empty(), "{containment}");
    agent.processes().kill(SOON).unwrap();
}

/// Row P5: unsetting the proxy variables does not help, as there is nothing else to reach.
fn only_the_gateway() {
    let place = Place::new();
    let outside = TcpListener::bind("127.0.0.1:0").unwrap();
    let outside_v6 = TcpListener::bind("[::1]:0").ok();
    let address = outside.local_addr().unwrap().to_string();
    let mut addresses = vec![address, "127.0.0.1:3128".to_owned(), "192.0.2.1:80".to_owned()];
    if let Some(listener) = &outside_v6 {
        addresses.push(listener.local_addr().unwrap().to_string());
    }
    let out = place.path("out");
    let arguments: Vec<&str> = ["reach", out.to_str().unwrap()]
        .into_iter()
        .chain(addresses.iter().map(String::as_str))
        .collect();
    let mut prepared = Prepared::new(place.agent(&arguments)).unwrap();
    let gateway = prepared.take_listener().unwrap();
    let served = thread::spawn(move || {
        let (mut stream, peer) = gateway.accept().unwrap();
        assert!(peer.ip().is_loopback());
        stream.write_all(b"gateway").unwrap();
    });
    let _agent = prepared.start(&Script::free(), Mode::Enforce).unwrap();
    let found = until(|| {
        let text = place.read("out");
        (text.lines().count() == addresses.len()).then_some(text)
    });
    served.join().unwrap();
    for line in found.lines() {
        let expect = if line.starts_with("127.0.0.1:3128 ") {
            "gateway"
        } else if line.starts_with("192.0.2.1") {
            "NetworkUnreachable"
        } else {
            "ConnectionRefused"
        };
        assert!(line.ends_with(expect), "{found}");
    }
    // Nobody has knocked at the host's own addresses.
    outside.set_nonblocking(true).unwrap();
    assert_eq!(outside.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

/// Row P4: a suspended session does not come back by being started again.
fn not_started() {
    let place = Place::new();
    let (script, _events, _said) = Script::new();
    let order = halt("session:real", None);
    script.order(&order);
    let prepared = Prepared::new(place.script("echo ran > out")).unwrap();
    let error = prepared.start(&script, Mode::Enforce).unwrap_err();
    assert!(
        matches!(&error, RunError::Refused(Refusal::Halted(by)) if by.id == order.id),
        "{error}"
    );
    assert!(!exists(&place.path("out")));
    // In observe mode it is.
    let prepared = Prepared::new(place.script("echo ran > out")).unwrap();
    prepared.start(&script, Mode::Observe).unwrap();
    assert_eq!(place.await_line("out"), "ran\n");
}

fn cannot_run() {
    let place = Place::new();
    let text = place.path("text");
    fs::write(&text, "no program").unwrap();
    for (command, code) in [("no-such-program", 127), (text.to_str().unwrap(), 126)] {
        let mut config = place.config(&[command]);
        // A folder that may not be searched would make it "permission denied".
        config.env.push(("PATH".into(), "/usr/bin:/bin".into()));
        let prepared = Prepared::new(config).unwrap();
        let error = prepared.start(&Script::free(), Mode::Enforce).unwrap_err();
        assert_eq!(error.exit_code(), code, "{error}");
        assert!(error.to_string().contains(command), "{error}");
    }
    let error = Prepared::new(place.config(&[])).unwrap_err();
    assert!(matches!(error, RunError::NoCommand), "{error}");
    let mut config = place.config(&["true"]);
    config.shim = vec!["/no/such/shim".into()];
    let error = Prepared::new(config).unwrap_err();
    assert!(error.to_string().contains("/no/such/shim"), "{error}");
}

/// Another agent runs as `nobody`, too, and must not be a way out.
fn others_of_its_uid() {
    let place = Place::new();
    let other = start(place.script("echo ready > ready; exec sleep 1000"));
    place.await_line("ready");
    let pid = other.pid();
    let agent = start(place.script(&format!(
        "{{ kill -TERM {pid} && echo killed; cat /proc/{pid}/environ && echo read; \
         kill -0 $$ && echo own; }} > out 2>&1; echo end > done; exec sleep 1000"
    )));
    place.await_line("done");
    let out = place.read("out");
    assert!(out.ends_with("own\n") && !out.contains("killed") && !out.contains("read\n"), "{out}");
    assert!(out.contains("not permitted") && out.contains("Permission denied"), "{out}");
    assert_eq!(other.processes().count().unwrap(), 1);
    for agent in [agent, other] {
        assert!(agent.containment().scoped, "{}", agent.containment());
        agent.processes().kill(SOON).unwrap();
    }
}

fn less_holds() {
    let place = Place::new();
    let proxy = "http://estoppel:minted@127.0.0.1:7601";
    let mut config = place.script("echo $ALL_PROXY > out; exec sleep 1000");
    config.network = NetworkMode::Proxy(Secret::new(proxy.to_owned()));
    config.cgroup = CgroupMode::Under("/proc/none".into());
    config.identity = Identity::Own;
    config.hide.clear();
    let mut prepared = Prepared::new(config).unwrap();
    assert!(prepared.take_listener().is_none());
    let agent = prepared.start(&Script::free(), Mode::Enforce).unwrap();
    assert_eq!(place.await_line("out").trim(), proxy);
    let containment = agent.containment();
    assert_eq!(containment.freezer, Freezer::Signals);
    assert_eq!(containment.network, Network::ProxyVariables);
    assert!(!containment.other_uid);
    let text = containment.to_string();
    for words in ["can undo all of this", "by signals", "not contained", "no cgroup below"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("minted"), "{text}");
    agent.processes().kill(SOON).unwrap();
}
