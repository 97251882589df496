//! What supervisor and shim say to each other over a SEQPACKET socket: one JSON text a packet, at
//! most one file descriptor beside it. The end of the stream after `Go` means that `exec` worked.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Longest packet; a socket's default buffer takes several.
const PACKET_BYTES_MAX: usize = 64 * 1024;

/// What the shim is to become. Standard input comes beside it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// Make a network namespace and listen in it on 127.0.0.1 at this port.
    pub(crate) listen_port: Option<u16>,
    /// Paths to cover in a mount namespace.
    pub(crate) hide: Vec<PathBuf>,
    /// Become this uid and gid, and leave all groups.
    pub(crate) identity: Option<(u32, u32)>,
    /// Take the terminal over as the foreground process group.
    pub(crate) foreground: bool,
}

/// What the shim says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromShim {
    /// All is prepared that could be. The listener comes beside it.
    Ready {
        /// The paths that are covered.
        hidden: Vec<PathBuf>,
        /// Whether it can signal and trace its own descendants alone.
        scoped: bool,
        /// What could not be done.
        problems: Vec<String>,
    },
    /// It ends: the command could not be started safely, or not at all.
    Failed {
        /// Why.
        message: String,
        /// The exit code that a shell gives: 127 for a command that was not found, else 126.
        code: u8,
    },
}

/// What the supervisor says once the gateway listens.
#[derive(Serialize, Deserialize)]
pub(crate) struct Go {
    /// The proxy that the agent is told to use. It may hold a credential: no `Debug`.
    pub(crate) proxy: String,
    /// The variables by which the agent's own guard finds its server.
    pub(crate) guard: Vec<(String, String)>,
}

/// Sends one message.
pub(crate) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    beside: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    if text.len() > PACKET_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the setup has {} bytes: at most {PACKET_BYTES_MAX}", text.len()),
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = beside.into_iter().collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    sendmsg(socket, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message and what came beside it; `None` at the end of the stream.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut text = vec![0; PACKET_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(
            socket.as_fd(),
            &mut [IoSliceMut::new(&mut text)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet was cut"));
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let beside = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .last();
    Ok(Some((serde_json::from_slice(&text[..received.bytes])?, beside)))
}
