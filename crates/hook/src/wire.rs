//! What the client asks the resident process, and how: one request and one answer a connection, each
//! a length of four bytes (big endian) and so many bytes of JSON, over a socket of the user's own.
//!
//! The socket's name holds the version of this, so that a client never asks a process of another
//! version.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{answer::Refusal, input::Call};

/// Largest request or answer, in bytes.
pub const FRAME_BYTES_MAX: usize = 512 * 1024;

/// A request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// May this be?
    Call {
        /// What.
        call: Box<Call>,
        /// How long an answer may take, for a process that has no lease yet.
        wait_ms: u64,
    },
    /// How do you stand?
    Standing {
        /// How long an answer may take, for a process that has no lease yet.
        wait_ms: u64,
    },
    /// Refuse this session, which is nobody's, for half a minute: to try the hook.
    Canary {
        /// The session.
        session: String,
    },
    /// End.
    End,
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It may be.
    Go,
    /// It must not be.
    Refuse(Refusal),
    /// How the process stands.
    Standing(Standing),
    /// It is done.
    Done,
    /// The request was not understood.
    Misunderstood {
        /// What was wrong.
        why: String,
    },
}

/// How the resident process stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Its process.
    pub pid: u32,
    /// The server that it is in step with.
    pub connected_to: Option<String>,
    /// Whether it holds a lease.
    pub lease: bool,
    /// How many orders are in force in it.
    pub orders_in_force: usize,
    /// How many calls of tools are under way.
    pub tools_under_way: usize,
    /// What is wrong, in words.
    pub problem: Option<String>,
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection failed, or was over time.
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    /// The frame is too large.
    #[error("a frame of {bytes} bytes: at most {FRAME_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The frame is none of these.
    #[error("a frame that is none of ours")]
    Malformed(#[from] serde_json::Error),
}

/// The socket in a state folder.
pub fn socket(state: &Path) -> PathBuf {
    state.join("hook-1.sock")
}

/// The file that is locked by the one process that serves a state folder.
pub fn lock(state: &Path) -> PathBuf {
    state.join("hook-1.lock")
}

/// A message as a frame.
///
/// # Errors
/// When it is too large.
pub fn frame(message: &impl Serialize) -> Result<Vec<u8>, WireError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let bytes = frame.len() - 4;
    let length = u32::try_from(bytes).ok().filter(|_| bytes <= FRAME_BYTES_MAX);
    let length = length.ok_or(WireError::TooLarge { bytes })?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// The length that a frame begins with.
///
/// # Errors
/// When it is too large.
pub fn length(head: [u8; 4]) -> Result<usize, WireError> {
    let bytes = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
    if bytes > FRAME_BYTES_MAX { Err(WireError::TooLarge { bytes }) } else { Ok(bytes) }
}

/// Writes a message.
///
/// # Errors
/// When it is too large, or the connection fails.
pub fn write(to: &mut impl Write, message: &impl Serialize) -> Result<(), WireError> {
    Ok(to.write_all(&frame(message)?)?)
}

/// Reads a message.
///
/// # Errors
/// When it is too large or none of ours, or the connection fails.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> Result<T, WireError> {
    let mut head = [0; 4];
    from.read_exact(&mut head)?;
    let mut body = vec![0; length(head)?];
    from.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_as_it_went() {
        let call = crate::input::parse(
            br#"{"session_id":"a","hook_event_name":"PreToolUse","tool_name":"Bash","tool_input":{"command":"ls"}}"#,
        )
        .unwrap();
        let mut bytes = Vec::new();
        write(&mut bytes, &Request::Call { call: Box::new(call), wait_ms: 7 }).unwrap();
        let Request::Call { call, wait_ms } = read(&mut bytes.as_slice()).unwrap() else {
            panic!("another request")
        };
        assert_eq!((call.params.unwrap().get(), wait_ms), (r#"{"command":"ls"}"#, 7));
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let check = |bytes: &[u8], expect: &str| {
            let error = read::<Answer>(&mut &*bytes).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(&[0, 0], "failed");
        check(&[0, 0, 0, 9, b'{'], "failed");
        check(&[255; 8], "at most");
        check(&[0, 0, 0, 2, b'{', b'}'], "none of ours");
        let large = Answer::Misunderstood { why: "x".repeat(FRAME_BYTES_MAX) };
        assert!(matches!(frame(&large), Err(WireError::TooLarge { .. })));
    }
}
