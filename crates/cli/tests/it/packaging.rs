//! What runs it as a service: the unit, and what the server tells systemd.

use std::{os::unix::net::UnixDatagram, process::Command};

use crate::stage::{PATIENCE, Server, signal};

/// The unit as systemd reads it, with the binary where it is built.
#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/systemd/estoppel.service");
    let text = std::fs::read_to_string(unit).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let verify = |text: &str| {
        let path = folder.path().join("estoppel.service");
        std::fs::write(&path, text).unwrap();
        Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(path).output()
    };
    let built = text.replace("/usr/bin/estoppel", env!("CARGO_BIN_EXE_estoppel"));
    let Ok(found) = verify(&built) else {
        assert!(std::env::var_os("ESTOPPEL_REAL").is_none(), "systemd-analyze is missing");
        eprintln!("skipped: there is no systemd-analyze here");
        return;
    };
    let said = String::from_utf8_lossy(&found.stderr).into_owned();
    let ours: Vec<_> = said.lines().filter(|line| line.contains("estoppel.service")).collect();
    assert!(found.status.success() && ours.is_empty(), "{said}");
    let wrong = verify(&built.replace("WatchdogSec=10", "WatchdogSec=soon")).unwrap();
    assert!(String::from_utf8_lossy(&wrong.stderr).contains(": soon"), "it would be found");
    // What keeps the watchdog alive to page, and agents from being stopped for good.
    for line in ["KillMode=process", "Restart=always", "StartLimitIntervalSec=0", "Type=notify"] {
        assert!(text.lines().any(|found| found == line), "{line}");
    }
}

/// Ready when orders are taken, alive each second, stopping when it was asked to.
#[test]
fn systemd_is_told_how_the_server_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let next = || {
        let mut state = [0; 100];
        let length = socket.recv(&mut state).unwrap();
        String::from_utf8(state[..length].to_vec()).unwrap()
    };
    let server = Server::start_in("", &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    assert_eq!([next(), next(), next()], ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]);
    signal(server.pid(), "TERM");
    let last = std::iter::repeat_with(next).find(|state| state != "WATCHDOG=1");
    assert_eq!(last.unwrap(), "STOPPING=1");
}
