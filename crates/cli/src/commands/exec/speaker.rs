//! The watcher's output to standard error, whose reader may stall. A separate thread writes, so that the
//! watcher can meanwhile answer refused requests and write events.

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
    /// The caller's own thread writes, because this user's limits allow no further thread.
    Caller,
}

/// An order to the writing thread: write a text, or close standard error after all earlier texts.
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
    /// Starts the thread that writes to standard error.
    pub(super) fn start() -> Self {
        let (orders, received) = channel();
        let thread = Builder::new().spawn(move || carry_out_all(received));
        thread.map_or(Self::Caller, |thread| Self::Thread { orders, thread })
    }

    /// Hands over a text to be written to standard error.
    pub(super) fn talk(&self, text: String) {
        self.order(Order::Write(text));
    }

    /// Hands over a sentence to be written to standard error, with `msrgate: ` before it.
    pub(super) fn say(&self, text: &str) {
        self.talk(super::sentence(text));
    }

    /// Closes standard error after all texts were written.
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

    /// Waits until all texts were written.
    pub(super) fn finish(self) {
        if let Self::Thread { orders, thread } = self {
            drop(orders);
            // A panic of the thread has printed its own message.
            let _ = thread.join();
        }
    }
}
