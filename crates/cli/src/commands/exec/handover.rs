//! The connection between the process that becomes the VMM and the watcher.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::door::Door;
use crate::failure::Failure;

/// The end of the connection that the process that becomes the VMM uses to talk to the watcher.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) socket: OwnedFd,
}

/// Three messages to the watcher: the VMM starts, with the seccomp listener attached; the VMM starts,
/// without a listener; the VMM does not start.
const WITH_LISTENER: &[u8] = b"L";
const WITHOUT: &[u8] = b"-";
const GIVES_UP: &[u8] = b"X";

/// Makes a connection, and returns the end for the process that becomes the VMM and the end for the watcher.
pub(super) fn pair() -> io::Result<(Watcher, OwnedFd)> {
    let (socket, its) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok((Watcher { socket }, its))
}

impl Watcher {
    /// Tells the watcher that the VMM does not start.
    pub(super) fn give_up(&self) {
        // A watcher that has died watches nothing.
        let _ = rustix::net::send(&self.socket, GIVES_UP, SendFlags::NOSIGNAL);
    }

    /// Tells the watcher that the VMM starts, and passes the seccomp listener to the watcher, if there is
    /// one.
    ///
    /// # Errors
    /// The watcher has ended.
    pub(super) fn hand_over(&self, door: &Door) -> Result<(), Failure> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        let listener = match door {
            Door::Heard(listener) => Some([listener.as_fd()]),
            Door::Silent | Door::Open => None,
        };
        let bytes = match &listener {
            Some(listener) => {
                message.push(SendAncillaryMessage::ScmRights(listener));
                WITH_LISTENER
            }
            None => WITHOUT,
        };
        let sent = sendmsg(
            &self.socket,
            &[IoSlice::new(bytes)],
            &mut message,
            SendFlags::NOSIGNAL,
        );
        match sent {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::Host(format!(
                "the process that watches the VMM has died: {error}"
            ))),
        }
    }
}

/// The message by which the watcher learns that the VMM is about to start.
pub(super) struct Received {
    /// The listener of the run's seccomp filter, if the filter has one.
    pub(super) listener: Option<OwnedFd>,
}

/// Receives the message that the VMM is about to start. Returns `None` if the other process has ended, or
/// has sent that the VMM does not start, or if there is no descriptor left for the listener.
pub(super) fn receive(socket: &OwnedFd) -> Option<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut message,
        RecvFlags::CMSG_CLOEXEC,
    );
    if received.ok()?.bytes == 0 || byte == *GIVES_UP {
        return None;
    }
    let descriptors = message.drain().find_map(|one| match one {
        RecvAncillaryMessage::ScmRights(mut all) => all.next(),
        _ => None,
    });
    if byte == *WITH_LISTENER && descriptors.is_none() {
        return None;
    }
    Some(Received {
        listener: descriptors,
    })
}

/// Waits until the other process has become the VMM: execve(2) then closes that process's end of the
/// connection. Returns false if the process has sent that the VMM does not start.
pub(super) fn is_begun(socket: &OwnedFd) -> bool {
    let mut byte = [0];
    let received = rustix::net::recv(socket, &mut byte, RecvFlags::empty());
    !matches!(received, Ok((1.., _)))
}
