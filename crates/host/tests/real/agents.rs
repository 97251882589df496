//! What the agents of these tests do when a shell cannot.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    time::Duration,
};

pub(crate) const SUBCOMMAND: &str = "agent";

pub(crate) fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<String> =
        arguments.map(|argument| argument.into_string().unwrap()).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["reach", out, addresses @ ..] => reach(out, addresses),
        ["keep-reaching", out, address] => loop {
            reach(out, &[address]);
            crate::machine::pause(Duration::from_millis(5));
        },
        ["listen", out] => listen(out),
        other => panic!("no such agent: {other:?}"),
    }
    ExitCode::SUCCESS
}

/// Connects without any proxy, and writes what came of it.
fn reach(out: &str, addresses: &[&str]) {
    let mut text = String::new();
    for address in addresses {
        let address: SocketAddr = address.parse().unwrap();
        let result = TcpStream::connect_timeout(&address, Duration::from_secs(2))
            .and_then(|mut stream| {
                let mut answer = String::new();
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                stream.read_to_string(&mut answer)?;
                Ok(answer)
            })
            .unwrap_or_else(|error| format!("{:?}", error.kind()));
        text.push_str(&format!("{address} {result}\n"));
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(out)
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
}

/// Listens, holds a file open, and does nothing more.
fn listen(out: &str) {
    let listener = TcpListener::bind("127.0.0.1:5555").unwrap();
    let mut file = OpenOptions::new().create(true).append(true).open(out).unwrap();
    writeln!(file, "ready").unwrap();
    let _ = listener.accept();
}
