//! Brings the loopback interface of the own network namespace up, without `ip`.
//!
//! One RTM_NEWLINK request over rtnetlink(7): a new namespace has `lo`, and it is down. Numbers are
//! in the machine's byte order, as netlink has them.

use std::{io, os::fd::AsRawFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 1;
/// `lo` is the first interface of every namespace.
const LOOPBACK_INDEX: i32 = 1;
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: u32 = 32;

/// Sets `lo` up and waits for the kernel's word on it.
///
/// # Errors
/// The kernel's error, such as EPERM without CAP_NET_ADMIN in the namespace.
pub(crate) fn loopback_up() -> io::Result<()> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let kernel = NetlinkAddr::new(0, 0);
    bind(netlink.as_raw_fd(), &kernel)?;
    setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
    let request = set_up(LOOPBACK_INDEX);
    sendto(netlink.as_raw_fd(), &request, &kernel, MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let received = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    acknowledged(&answer[..received])
}

/// `nlmsghdr` and `ifinfomsg` that set IFF_UP of one interface.
fn set_up(index: i32) -> Vec<u8> {
    let mut request = Vec::with_capacity(REQUEST_BYTES as usize);
    request.extend(REQUEST_BYTES.to_ne_bytes());
    request.extend(RTM_NEWLINK.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    request.extend(1_u32.to_ne_bytes()); // sequence
    request.extend(0_u32.to_ne_bytes()); // to the kernel
    request.extend([0, 0]); // AF_UNSPEC, padding
    request.extend(0_u16.to_ne_bytes()); // device type
    request.extend(index.to_ne_bytes());
    request.extend(IFF_UP.to_ne_bytes());
    request.extend(IFF_UP.to_ne_bytes()); // which flags change
    request
}

/// Reads `nlmsghdr` and `nlmsgerr`: an error of 0 is the acknowledgement.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "netlink answered nonsense");
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).ok_or_else(malformed)?;
    let errno = answer
        .get(HEADER_BYTES..HEADER_BYTES + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes)
        .ok_or_else(malformed)?;
    match (u16::from_ne_bytes(kind), errno) {
        (NLMSG_ERROR, 0) => Ok(()),
        (NLMSG_ERROR, errno) => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_an_acknowledgement_an_error_or_nonsense() {
        let answer = |kind: u16, errno: i32| {
            let mut bytes = vec![0; HEADER_BYTES];
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes.extend(errno.to_ne_bytes());
            bytes
        };
        assert!(acknowledged(&answer(NLMSG_ERROR, 0)).is_ok());
        let error = acknowledged(&answer(NLMSG_ERROR, -1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(acknowledged(&answer(RTM_NEWLINK, 0)).is_err());
        for length in 0..HEADER_BYTES + 4 {
            assert!(acknowledged(&answer(NLMSG_ERROR, 0)[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn the_request_is_as_long_as_it_says() {
        assert_eq!(set_up(1).len(), REQUEST_BYTES as usize);
    }
}
