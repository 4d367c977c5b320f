//! The watcher's way to standard error, whose reader may stall. A thread writes, so that the watcher itself goes on to
//! answer at the door and to write events.

use std::os::fd::AsRawFd as _;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use super::process;

/// The writer to standard error.
pub(super) enum Speaker {
    Thread {
        orders: Sender<Order>,
        thread: JoinHandle<()>,
    },
    /// The caller's own thread, since the limits of this user allow no other one.
    Caller,
}

/// The order to write a text, or to close standard error after all earlier texts.
pub(super) enum Order {
    Write(String),
    Close,
}

impl Order {
    fn carry_out(self) {
        match self {
            Self::Write(text) => crate::results::talk(&text),
            Self::Close => process::replace_by_nothing(process::standard_error().as_raw_fd()),
        }
    }
}

fn carry_out_all(orders: Receiver<Order>) {
    for order in orders {
        order.carry_out();
    }
}

impl Speaker {
    /// Starts the thread.
    pub(super) fn start() -> Self {
        let (orders, received) = channel();
        let thread = Builder::new().spawn(move || carry_out_all(received));
        thread.map_or(Self::Caller, |thread| Self::Thread { orders, thread })
    }

    /// Prints a text.
    pub(super) fn talk(&self, text: String) {
        self.order(Order::Write(text));
    }

    /// Prints a sentence.
    pub(super) fn say(&self, text: &str) {
        self.talk(super::sentence(text));
    }

    /// Closes standard error after all that was said.
    pub(super) fn close(&self) {
        self.order(Order::Close);
    }

    fn order(&self, order: Order) {
        match self {
            Self::Thread { orders, .. } => {
                // The thread ends only after `finish`.
                let _ = orders.send(order);
            }
            Self::Caller => order.carry_out(),
        }
    }

    /// Waits until all is said.
    pub(super) fn finish(self) {
        if let Self::Thread { orders, thread } = self {
            drop(orders);
            // A panic of the thread has printed its own message.
            let _ = thread.join();
        }
    }
}
