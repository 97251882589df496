//! A real `estoppel run` with an agent that does what a test hands it, and a site that it talks to.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::stage::{Server, wait_for};

/// Beats while it may, and runs each script that is laid before it. Ends when the folder is gone.
const AGENT: &str = r#"
while [ -e alive ]; do
    echo x >> beat
    if [ -e task ]; then mv task doing; sh ./doing > out.new 2>&1; mv out.new out; fi
    sleep 0.02
done
"#;

/// A confined agent; ended, also when it is frozen, when this is dropped.
pub(crate) struct Hosted {
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Hosted {
    fn drop(&mut self) {
        // `run` takes its agent along, as `estoppel run` does on a signal.
        let _ = std::fs::remove_file(self.work().join("alive"));
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        for _ in 0..100 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Hosted {
    /// Starts one for a session; `None`, and it says so, where this machine does not permit it.
    pub(crate) fn start(server: &Server, session: &str, options: &[&str]) -> Option<Self> {
        if !is_root() {
            return None;
        }
        Some(Self::start_as(server, session, options, &[]))
    }

    /// Starts one through a command that becomes `estoppel run`, such as `setpriv`.
    pub(crate) fn start_as(
        server: &Server,
        session: &str,
        options: &[&str],
        through: &[&str],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o777);
        for path in
            [folder.path().to_owned(), folder.path().join("work"), folder.path().join("state")]
        {
            let _ = std::fs::create_dir(&path);
            std::fs::set_permissions(&path, open.clone()).unwrap();
        }
        std::fs::write(folder.path().join("work/alive"), "").unwrap();
        let binary = env!("CARGO_BIN_EXE_estoppel");
        let program: Vec<&str> = through.iter().copied().chain([binary]).collect();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let token = server.token(&format!("host-{session}"), "enforcer", None);
        let child = Command::new(program[0])
            .args(&program[1..])
            .args(["run", "--session", session, "--state"])
            .arg(folder.path().join("state"))
            .args(options)
            .args(["--", "sh", "-c", AGENT])
            .current_dir(folder.path().join("work"))
            .env("ESTOPPEL_URL", &server.url)
            .env("ESTOPPEL_TOKEN", token)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut hosted = Self { child, folder };
        wait_for("the agent's first beat", || {
            if let Some(status) = hosted.child.try_wait().unwrap() {
                panic!("`estoppel run` ended: {status}: {}", hosted.said());
            }
            (hosted.beats() > 0).then_some(())
        });
        hosted
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// Copies a program to where the agent finds it.
    pub(crate) fn bring(&self, program: &Path, name: &str) {
        let to = self.work().join(name);
        std::fs::copy(program, &to).unwrap();
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A file that the agent has written; empty while there is none.
    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.work().join(name)).unwrap_or_default()
    }

    /// Its state folder.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// What `estoppel run` said on standard error.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Whether `estoppel run` has ended, as it does with its agent.
    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// How often the agent's heart has beaten.
    pub(crate) fn beats(&self) -> u64 {
        std::fs::metadata(self.work().join("beat")).map_or(0, |metadata| metadata.len())
    }

    /// Whether it acts: its heart beats on within some of its beats' time.
    pub(crate) fn acts(&self) -> bool {
        let before = self.beats();
        (0..50).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            self.beats() > before
        })
    }

    /// Lets the agent run a script; what it printed.
    pub(crate) fn does(&self, script: &str) -> String {
        let work = self.work();
        std::fs::write(work.join("task.new"), script).unwrap();
        std::fs::rename(work.join("task.new"), work.join("task")).unwrap();
        let out = work.join("out");
        wait_for(&format!("the agent to do `{script}`"), || out.exists().then_some(()));
        let text = std::fs::read_to_string(&out).unwrap();
        std::fs::remove_file(out).unwrap();
        text
    }
}

/// Whether tests may confine agents here; without root they are skipped, and fail under
/// `ESTOPPEL_REAL=1`.
pub(crate) fn is_root() -> bool {
    let root = std::fs::read_to_string("/proc/self/status").unwrap().contains("Uid:\t0\t");
    if !root {
        assert!(std::env::var_os("ESTOPPEL_REAL").is_none(), "this test needs root");
        eprintln!("skipped: an agent is confined by root alone");
    }
    root
}

/// A program of `examples/`, which is built with the tests.
pub(crate) fn example(name: &str) -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_estoppel"));
    let path = binary.with_file_name("examples").join(name);
    assert!(path.exists(), "build it first: cargo build -p estoppel --example {name}");
    path
}

/// A web site on loopback: `/` answers at once, `/slow` never ends.
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    streaming: Arc<AtomicUsize>,
}

impl Site {
    pub(crate) fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let site = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            streaming: Arc::default(),
        };
        let (connections, streaming) = (Arc::clone(&site.connections), Arc::clone(&site.streaming));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                connections.fetch_add(1, Ordering::SeqCst);
                let streaming = Arc::clone(&streaming);
                std::thread::spawn(move || {
                    let mut request = [0; 4096];
                    let Ok(read) = stream.read(&mut request) else { return };
                    let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello";
                    if !request[..read].starts_with(b"GET /slow") {
                        let _ = stream.write_all(head);
                        return;
                    }
                    streaming.fetch_add(1, Ordering::SeqCst);
                    let mut alive = stream.write_all(head).is_ok();
                    while alive {
                        std::thread::sleep(Duration::from_millis(5));
                        alive = stream.write_all(b"and on, ").is_ok();
                    }
                    streaming.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        site
    }

    /// Connections that were made to it.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Connections that it streams on.
    pub(crate) fn streaming(&self) -> usize {
        self.streaming.load(Ordering::SeqCst)
    }

    /// The option of `run` by which a name leads here.
    pub(crate) fn resolve(&self, name: &str) -> String {
        format!("{name}:{}={}", self.address.port(), self.address)
    }
}
