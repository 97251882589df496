//! A server of the real binary on free ports, with a data folder of its own.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Liveness, not speed: ten times what anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The variable, for tests alone, of a server that must come back at the same address.
pub(crate) const LISTEN: &str = "ESTOPPEL_TEST_LISTEN";

pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
    /// Where metrics are told without a token.
    pub(crate) metrics: Option<String>,
    pub(crate) admin: String,
    pub(crate) data: PathBuf,
    folder: Option<tempfile::TempDir>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// Starts a server with these lines of configuration.
    pub(crate) fn start_with(config: &str) -> Self {
        Self::start_in(config, &[])
    }

    /// As [`Server::start_with`], in an environment with more variables.
    pub(crate) fn start_in(config: &str, variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("estoppel.toml"), config).unwrap();
        let data = folder.path().join("data");
        let mut server = Self::at_in(&data, variables);
        server.folder = Some(folder);
        server
    }

    /// Starts a server on a data folder that may have been used before.
    pub(crate) fn at(data: &Path) -> Self {
        Self::at_in(data, &[])
    }

    /// As [`Server::at`], in an environment with more variables.
    pub(crate) fn at_in(data: &Path, variables: &[(&str, &str)]) -> Self {
        Self::launch(Command::new(env!("CARGO_BIN_EXE_estoppel")), data, variables)
    }

    /// Starts a server that may have so many file descriptors.
    pub(crate) fn with_descriptors(count: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let mut shell = Command::new("sh");
        let script = format!("ulimit -n {count} && exec \"$0\" \"$@\"");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_estoppel")]);
        let mut server = Self::launch(shell, &data, &[]);
        server.folder = Some(folder);
        server
    }

    fn launch(mut command: Command, data: &Path, variables: &[(&str, &str)]) -> Self {
        let config = data.with_file_name("estoppel.toml");
        let listen = variables.iter().find(|(name, _)| *name == LISTEN);
        let listen = listen.map_or("127.0.0.1:0", |(_, address)| address);
        command
            .args(["--json", "serve", "--no-gateway", "--listen", listen, "--data"])
            .arg(data)
            .envs(variables.iter().copied());
        if config.exists() {
            command.arg("--config").arg(config);
        }
        let log = std::fs::File::create(data.with_extension("log")).unwrap();
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        for line in stdout.lines().map_while(Result::ok) {
            text.push_str(&line);
            if line == "}" {
                break;
            }
        }
        let ready: Value = serde_json::from_str(&text).unwrap_or_else(|error| {
            let log = std::fs::read_to_string(data.with_extension("log")).unwrap();
            panic!("the server did not start: {error}: {text}{log}")
        });
        let url = ready["api"].as_str().unwrap().to_owned();
        let metrics = ready["metrics"].as_str().map(str::to_owned);
        let admin = std::fs::read_to_string(ready["admin_token_file"].as_str().unwrap()).unwrap();
        Self { child, url, metrics, admin, data: data.to_owned(), folder: None }
    }

    /// Waits until its ledger is open and all of it works.
    pub(crate) fn ready(&self) {
        wait_for("readiness", || (self.send("", "GET", "/readyz", b"").0 == 200).then_some(()));
    }

    /// Ends it as a power cut does, and starts it again.
    pub(crate) fn crash_and_restart(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mut server = Self::at(&self.data);
        server.folder = self.folder.take();
        server
    }

    /// Ends it as a power cut does, does something while it is away, and starts it again on the same
    /// folder and port.
    pub(crate) fn away_while<T>(mut self, meanwhile: impl FnOnce() -> T) -> (Self, T) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let result = meanwhile();
        let mut server = Self::at_in(&self.data, &[(LISTEN, self.address())]);
        server.folder = self.folder.take();
        (server, result)
    }

    /// Ends it as a power cut does, then does something while it is away.
    pub(crate) fn crash_with(mut self, meanwhile: impl FnOnce()) -> Option<tempfile::TempDir> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        meanwhile();
        self.folder.take()
    }

    /// Asks it to end, waits until it has, and starts it again.
    pub(crate) fn stop_and_restart(mut self) -> Self {
        signal(self.pid(), "TERM");
        let ended = self.child.wait().unwrap();
        assert!(ended.success(), "{ended}: {}", self.log());
        let mut server = Self::at(&self.data);
        server.folder = self.folder.take();
        server
    }

    /// Waits until it has ended by itself.
    pub(crate) fn ended(&mut self) -> std::process::ExitStatus {
        wait_for("the server's end", || self.child.try_wait().unwrap())
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.data.with_extension("log")).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    /// Sends a request with a token; the status and the JSON of the answer.
    pub(crate) fn send(&self, token: &str, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
        self.try_send(token, method, path, body).unwrap()
    }

    /// As [`Server::send`]; `None` when there was no answer.
    pub(crate) fn try_send(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Option<(u16, Value)> {
        let mut stream = TcpStream::connect(self.address()).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.address(),
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        // A server that refuses early stops reading; its answer is what counts.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Some((status, serde_json::from_str(body).unwrap_or(Value::String(body.to_owned()))))
    }

    /// Sends a request as the admin, waiting while the server still recovers.
    pub(crate) fn admin(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap() };
        wait_for("the server's recovery", || {
            let answer = self.send(&self.admin, method, path, &body);
            (answer.0 != 503).then_some(answer)
        })
    }

    /// Mints a token.
    pub(crate) fn token(&self, name: &str, role: &str, tenant: Option<&str>) -> String {
        let body = serde_json::json!({ "name": name, "role": role, "tenant": tenant });
        let (status, minted) = self.admin("POST", "/v1/tokens", &body);
        assert_eq!(status, 201, "{minted}");
        minted["token"].as_str().unwrap().to_owned()
    }

    /// Runs a command of the binary against this server.
    pub(crate) fn cli(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_estoppel"))
            .args(args)
            .env("ESTOPPEL_URL", &self.url)
            .env("ESTOPPEL_TOKEN", &self.admin)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a command that prints JSON and succeeds.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.cli(&[&["--json"], args].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(crate) fn events(&self, body: &[u8]) -> (u16, Value) {
        wait_for("the event log", || {
            let answer = self.send(&self.admin, "POST", "/v1/events", body);
            (answer.0 != 503).then_some(answer)
        })
    }

    pub(crate) fn sql(&self, query: &str) -> Vec<Value> {
        let (status, table) = self.admin("POST", "/v1/sql", &serde_json::json!({ "query": query }));
        assert_eq!(status, 200, "{table}");
        table["rows"].as_array().unwrap().clone()
    }
}

/// Sends a signal to a process that this test started.
pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// Whether the ledger's files hold a text: records are stored as they were written.
pub(crate) fn ledger_holds(data: &Path, text: &str) -> bool {
    ["ledger/ledger.db", "ledger/ledger.db-wal"].iter().any(|file| {
        std::fs::read(data.join(file))
            .is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text))
    })
}

/// Children of all threads of a process: each is listed at the thread that started it.
pub(crate) fn all_children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
        })
        .collect()
}

/// Makes the ledger of a server that has ended one that no server can open.
pub(crate) fn break_ledger(data: &Path) {
    // SQLite would recover the file from its logs.
    for log in ["ledger.db-wal", "ledger.db-shm", "ledger.db-journal"] {
        let _ = std::fs::remove_file(data.join("ledger").join(log));
    }
    std::fs::write(data.join("ledger/ledger.db"), b"this is no database").unwrap();
}

/// Asks until there is an answer.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
