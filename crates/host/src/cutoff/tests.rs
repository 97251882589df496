use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use estoppel_model::{Clock as _, SystemClock};
use sha2::{Digest as _, Sha256};

use super::*;
use crate::cgroup::Cgroup;

/// How long what takes microseconds may take.
const SOON: Duration = Duration::from_secs(20);

/// The bytecode is that of the source beside it.
#[test]
fn the_bytecode_is_of_this_source() {
    let digest = hex::encode(Sha256::digest(include_bytes!("../../ebpf/cutoff.bpf.c")));
    let says = BYTECODE.windows(digest.len()).any(|window| window == digest.as_bytes());
    assert!(says, "ebpf/cutoff.bpf.c has changed: run `./dev ebpf`");
}

/// An agent in a cgroup: a shell that connects, and sends what it is told.
struct Agent {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    cgroup: Cgroup,
}

/// `connect` opens a new connection, anything else is sent on the first one.
const SCRIPT: &str = r#"
exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 9
echo ready
while read -r line; do
    case $line in
    connect) if (exec 4<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then echo connected; else echo refused; fi ;;
    udp) if (echo x >"/dev/udp/127.0.0.1/$1") 2>/dev/null; then echo sent; else echo refused; fi ;;
    *) echo "$line" >&3; echo written ;;
    esac
done
"#;

impl Agent {
    fn start(port: u16) -> Self {
        let cgroup = Cgroup::create(None, "cutoff").unwrap();
        let mut child = Command::new("bash")
            .args(["-c", &format!("echo $$ > \"$2\"; {SCRIPT}"), "agent", &port.to_string()])
            .arg(cgroup.path().join("cgroup.procs"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut agent = Self { child, orders, answers, cgroup };
        assert_eq!(agent.answer(), "ready");
        agent
    }

    fn tell(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether the machine has what it takes, which `ESTOPPEL_REAL=1` says.
fn permits() -> bool {
    let probe =
        Cgroup::create(None, "probe").map_err(|error| error.to_string()).and_then(|cgroup| {
            Cutoff::attach(cgroup.path()).map_err(|error| error.to_string()).map(drop)
        });
    match probe {
        Ok(()) => true,
        Err(why) if std::env::var_os("ESTOPPEL_REAL").is_some_and(|it| it == "1") => {
            panic!("ESTOPPEL_REAL=1, and this machine does not permit it: {why}");
        }
        Err(why) => {
            eprintln!("skipped: {why}");
            false
        }
    }
}

fn pins_of(cgroup: &Cgroup) -> PathBuf {
    Path::new(PINS).join(fs::metadata(cgroup.path()).unwrap().ino().to_string())
}

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// What came within a moment.
fn received(connection: &mut TcpStream, within: Duration) -> String {
    connection.set_read_timeout(Some(within)).unwrap();
    let mut text = [0; 64];
    let length = connection.read(&mut text).unwrap_or(0);
    String::from_utf8_lossy(&text[..length]).into_owned()
}

/// P7: from the cut on nothing goes out, by new connections, by an established one, by datagrams; and
/// with its end the established one goes on.
#[test]
fn real_a_cut_stops_new_connections_and_established_ones() {
    if !permits() {
        return;
    }
    let (listener, port) = listen();
    let datagrams = UdpSocket::bind(("127.0.0.1", port)).unwrap();
    datagrams.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut agent = Agent::start(port);
    let (mut first, _) = listener.accept().unwrap();
    let mut cutoff = Cutoff::attach(agent.cgroup.path()).unwrap();
    assert_eq!(cutoff.gap(), None);
    assert_eq!(agent.tell("one"), "written");
    assert_eq!(received(&mut first, SOON), "one\n");
    assert_eq!(agent.tell("connect"), "connected");
    assert_eq!(agent.tell("udp"), "sent");
    let before = cutoff.counts().unwrap();
    assert!(before.refused == 0 && before.bytes_out > 0, "{before:?}");
    assert!(before.last_out.unwrap() <= SystemClock.boottime());
    let mut datagram = [0; 8];
    datagrams.recv(&mut datagram).unwrap();

    cutoff.cut().unwrap();
    let cut_at = SystemClock.boottime();
    assert_eq!(agent.tell("connect"), "refused");
    assert_eq!(agent.tell("udp"), "refused");
    // The kernel takes it, and sends nothing.
    assert_eq!(agent.tell("two"), "written");
    assert_eq!(received(&mut first, Duration::from_millis(500)), "");
    assert!(datagrams.recv(&mut datagram).is_err());
    let after = cutoff.counts().unwrap();
    assert!(after.refused >= 3, "{after:?}");
    assert!(after.last_out.unwrap() <= cut_at, "{after:?}");

    cutoff.mend(SystemClock.boottime() + SOON).unwrap();
    // TCP sends it again.
    assert_eq!(received(&mut first, SOON), "two\n");
    assert_eq!(agent.tell("connect"), "connected");
}

/// *lease*: what nobody supervises any more is off the network when the deadline has passed; the
/// programs outlive the process that put them there.
#[test]
fn real_what_nobody_supervises_is_off_the_network() {
    if !permits() {
        return;
    }
    let (listener, port) = listen();
    let mut agent = Agent::start(port);
    let (_first, _) = listener.accept().unwrap();
    let mut cutoff = Cutoff::attach(agent.cgroup.path()).unwrap();
    cutoff.allow_until(SystemClock.boottime() + Duration::from_millis(1_500)).unwrap();
    assert_eq!(agent.tell("connect"), "connected");
    let pins = pins_of(&agent.cgroup);
    assert!(pins.join(PACKET_PROGRAM).exists());
    // The agent lives, so that they stay.
    drop(cutoff);
    let begun = std::time::Instant::now();
    listener.set_nonblocking(true).unwrap();
    while agent.tell("connect") != "refused" {
        // A full queue would let it wait.
        let _ = listener.accept();
        assert!(begun.elapsed() < SOON, "it goes on without a supervisor");
    }
    assert!(pins.exists());
}

/// Pins go with their agent, and with the next one at the latest.
#[test]
fn real_pins_go_with_their_agent() {
    if !permits() {
        return;
    }
    let cgroup = Cgroup::create(None, "pins").unwrap();
    let pins = pins_of(&cgroup);
    let cutoff = Cutoff::attach(cgroup.path()).unwrap();
    assert!(pins.exists());
    drop(cutoff);
    assert!(!pins.exists());

    let cutoff = Cutoff::attach(cgroup.path()).unwrap();
    std::mem::forget(cutoff);
    drop(cgroup);
    assert!(pins.exists());
    let next = Cgroup::create(None, "next").unwrap();
    drop(Cutoff::attach(next.path()).unwrap());
    assert!(!pins.exists());
}
