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

/// The connection to the watcher in the process that becomes the VMM.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) socket: OwnedFd,
}

/// The message that carries the door's listener, the one without it, and the one that the VMM does not start.
const WITH_LISTENER: &[u8] = b"L";
const WITHOUT: &[u8] = b"-";
const GIVES_UP: &[u8] = b"X";

/// Makes a connection: the end of the process that becomes the VMM, and the watcher's.
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
    /// Tells the watcher that this process does not become the VMM.
    pub(super) fn give_up(&self) {
        // A watcher that has died watches nothing.
        let _ = rustix::net::send(&self.socket, GIVES_UP, SendFlags::NOSIGNAL);
    }

    /// Gives the watcher the door's listener.
    ///
    /// # Errors
    /// The watcher has died.
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

/// The message that the VMM is about to start.
pub(super) struct Received {
    /// The door's listener, if it has one.
    pub(super) listener: Option<OwnedFd>,
}

/// Receives the message. Returns `None` if the other process has ended or given up without one.
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
    Some(Received {
        listener: descriptors,
    })
}

/// Waits until the other process has become the VMM, by which execve(2) closes its end of the connection. Returns false if
/// the process has given up instead.
pub(super) fn is_begun(socket: &OwnedFd) -> bool {
    let mut byte = [0];
    let received = rustix::net::recv(socket, &mut byte, RecvFlags::empty());
    !matches!(received, Ok((1.., _)))
}
