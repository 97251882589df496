//! A real Redis on a free loopback port, and a client that speaks to it as any other does.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::stage::{PATIENCE, wait_for};

pub(crate) struct Redis {
    child: Child,
    args: Vec<String>,
    pub(crate) port: u16,
    pub(crate) folder: tempfile::TempDir,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Redis {
    /// Starts one that keeps nothing; `None` where there is no `redis-server`, which fails under
    /// `ESTOPPEL_REAL=1`.
    pub(crate) fn start(args: &[&str]) -> Option<Self> {
        if Command::new("redis-server").arg("--version").output().is_err() {
            let real = std::env::var_os("ESTOPPEL_REAL").is_some_and(|it| it == "1");
            assert!(!real, "this test needs redis-server (apt-get install redis-server)");
            eprintln!("skipped: there is no redis-server");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        // A free port may be taken by somebody else in between.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut child = spawn(&folder, port, &args);
            if answers(&mut child, port) {
                return Some(Self { child, args, port, folder });
            }
        }
        panic!("redis-server does not start: {}", log(&folder));
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn client(&self) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(BufReader::new(stream))
    }

    /// Ends it and starts an empty one at the same port.
    pub(crate) fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = wait_for("the port of the Redis before", || {
            let mut child = spawn(&self.folder, self.port, &self.args);
            answers(&mut child, self.port).then_some(child)
        });
    }

    /// Stops the process, so that it answers nobody and its port still takes connections.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

fn spawn(folder: &tempfile::TempDir, port: u16, args: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
        .arg(folder.path())
        .args(["--logfile", "redis.log", "--port", &port.to_string()])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn answers(child: &mut Child, port: u16) -> bool {
    wait_for("redis-server", || {
        if child.try_wait().unwrap().is_some() {
            return Some(false);
        }
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.write_all(b"PING\r\n").ok()?;
        let mut answer = [0; 1];
        stream.read_exact(&mut answer).ok()?;
        Some(true)
    })
}

fn log(folder: &tempfile::TempDir) -> String {
    std::fs::read_to_string(folder.path().join("redis.log")).unwrap_or_default()
}

/// What Redis answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Nil,
    Number(i64),
    Bytes(Vec<u8>),
    Array(Vec<Self>),
    Error(String),
}

/// A connection that speaks RESP2.
pub(crate) struct Client(BufReader<TcpStream>);

impl Client {
    pub(crate) fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Reply {
        self.send(args);
        self.reply()
    }

    pub(crate) fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) {
        let mut out = format!("*{}\r\n", args.len()).into_bytes();
        for arg in args.iter().map(AsRef::as_ref) {
            out.extend(format!("${}\r\n", arg.len()).into_bytes());
            out.extend(arg);
            out.extend(b"\r\n");
        }
        self.0.get_mut().write_all(&out).unwrap();
    }

    pub(crate) fn reply(&mut self) -> Reply {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let (kind, rest) = line.trim_end().split_at(1);
        match kind {
            "+" => Reply::Bytes(rest.as_bytes().to_vec()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Number(rest.parse().unwrap()),
            "$" => match usize::try_from(rest.parse::<i64>().unwrap()) {
                Err(_) => Reply::Nil,
                Ok(length) => {
                    let mut bytes = vec![0; length + 2];
                    self.0.read_exact(&mut bytes).unwrap();
                    bytes.truncate(length);
                    Reply::Bytes(bytes)
                }
            },
            "*" => match usize::try_from(rest.parse::<i64>().unwrap()) {
                Err(_) => Reply::Nil,
                Ok(count) => Reply::Array((0..count).map(|_| self.reply()).collect()),
            },
            _ => panic!("no RESP2: {line}"),
        }
    }

    pub(crate) fn set(&mut self, key: &str, value: &str) {
        assert_eq!(self.call(&["SET", key, value]), Reply::Bytes(b"OK".to_vec()));
    }

    /// The JSON under a key.
    pub(crate) fn get(&mut self, key: &str) -> Option<serde_json::Value> {
        match self.call(&["GET", key]) {
            Reply::Bytes(bytes) => serde_json::from_slice(&bytes).ok(),
            _ => None,
        }
    }
}
