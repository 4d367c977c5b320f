//! Unsafe: pointers that one thread takes away while another uses them.
//!
//! The VMs and vCPUs of this process by the numbers of their file descriptors.
//!
//! close(2) is ours, and may be called from anywhere, by ourselves too: it takes no lock and allocates nothing. It takes
//! the thing out of its slot and leaves it to the helper thread, which drops it when nobody uses it any more. Whoever looks
//! a thing up counts itself in the slot, then in the thing, and then out of the slot: so a thing whose slot has been seen
//! without readers after it was taken out is used by those alone who have counted themselves in it.
#![expect(unsafe_code, reason = "a slot's pointer is followed under a count")]

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::ops::Deref;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::thread;

use crate::sys;
use crate::thing::Thing;

/// Descriptors that can be a VM's or a vCPU's have lower numbers.
pub(crate) const FDS: usize = 1 << 16;

/// The slot of one descriptor. All zeros are an empty one.
#[repr(C)]
struct Slot {
    entry: AtomicPtr<Entry>,
    readers: AtomicU32,
}

/// A thing, and who uses it.
struct Entry {
    users: AtomicU32,
    /// The next of those that were taken out.
    next: AtomicPtr<Entry>,
    /// Its slot.
    at: usize,
    thing: Thing,
}

/// A number by which the VMM has the file of a descriptor of ours. Each is tried: to list them takes a descriptor, and the VMM
/// may count on the lowest one that is free.
fn other_number(own: RawFd) -> Option<RawFd> {
    (0..sys::lowest_fd()).find(|fd| sys::is_one_file(own, *fd) == Some(true))
}

/// The slots, and what was taken out of them.
pub(crate) struct Table {
    slots: Box<[Slot; FDS]>,
    taken: AtomicPtr<Entry>,
}

/// A thing that somebody uses.
pub(crate) struct Held<'t>(&'t Entry);

impl Deref for Held<'_> {
    type Target = Thing;

    fn deref(&self) -> &Thing {
        &self.0.thing
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Table {
    /// An empty one.
    pub(crate) fn new() -> Self {
        let layout = Layout::new::<[Slot; FDS]>();
        #[expect(clippy::cast_ptr_alignment, reason = "the layout has the alignment")]
        // SAFETY: the layout has a size.
        let slots = unsafe { alloc_zeroed(layout) }.cast::<[Slot; FDS]>();
        if slots.is_null() {
            handle_alloc_error(layout);
        }
        Self {
            // SAFETY: it was allocated by this layout just now, and zeros are empty slots. They are zero pages until used.
            slots: unsafe { Box::from_raw(slots) },
            taken: AtomicPtr::new(ptr::null_mut()),
        }
    }

    fn slot(&self, fd: RawFd) -> Option<&Slot> {
        self.slots.get(usize::try_from(fd).ok()?)
    }

    /// The thing behind a descriptor.
    #[inline]
    pub(crate) fn get(&self, fd: RawFd) -> Option<Held<'_>> {
        let slot = self.slot(fd)?;
        if slot.entry.load(Ordering::Relaxed).is_null() {
            return None;
        }
        slot.readers.fetch_add(1, Ordering::SeqCst);
        let entry = slot.entry.load(Ordering::SeqCst);
        // SAFETY: it is null, or an entry that is not dropped before the slot has been seen without readers after the
        // entry was taken out of it; this is one.
        let held = unsafe { entry.as_ref() }.map(|entry| {
            entry.users.fetch_add(1, Ordering::SeqCst);
            Held(entry)
        });
        slot.readers.fetch_sub(1, Ordering::SeqCst);
        held
    }

    /// Tells if there is something behind a descriptor.
    #[inline]
    pub(crate) fn has(&self, fd: RawFd) -> bool {
        let slot = self.slot(fd);
        slot.is_some_and(|slot| !slot.entry.load(Ordering::Relaxed).is_null())
    }

    /// The numbers behind which there is something.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = RawFd> {
        let all = (0..).zip(self.slots.iter());
        all.filter(|(_, slot)| !slot.entry.load(Ordering::Relaxed).is_null())
            .map(|(fd, _)| fd)
    }

    /// Puts a thing behind a descriptor, in the place of what was there.
    pub(crate) fn put(&self, fd: RawFd, thing: Thing) {
        let (Some(slot), Ok(at)) = (self.slot(fd), usize::try_from(fd)) else {
            return;
        };
        let entry = Box::new(Entry {
            users: AtomicU32::new(0),
            next: AtomicPtr::new(ptr::null_mut()),
            at,
            thing,
        });
        self.retire(slot.entry.swap(Box::into_raw(entry), Ordering::SeqCst));
    }

    /// Takes away what is behind a descriptor. Returns true if there was something, which [`Self::sweep`] is to drop.
    pub(crate) fn take(&self, fd: RawFd) -> bool {
        let Some(slot) = self.slot(fd) else {
            return false;
        };
        let entry = slot.entry.swap(ptr::null_mut(), Ordering::SeqCst);
        self.retire(entry);
        !entry.is_null()
    }

    fn retire(&self, entry: *mut Entry) {
        // SAFETY: null, or an entry that was in a slot until now: `sweep` has yet to find it.
        let Some(one) = (unsafe { entry.as_ref() }) else {
            return;
        };
        let mut first = self.taken.load(Ordering::Relaxed);
        loop {
            one.next.store(first, Ordering::Relaxed);
            let set =
                self.taken
                    .compare_exchange(first, entry, Ordering::AcqRel, Ordering::Relaxed);
            match set {
                Ok(_) => return,
                Err(other) => first = other,
            }
        }
    }

    /// Takes away what is behind a number that has another file by now: by dup2(2) or `close_range(2)`, which nobody sees.
    pub(crate) fn take_stale(&self) {
        for fd in self.numbers() {
            let is_stale = self
                .get(fd)
                .is_some_and(|held| sys::is_one_file(fd, held.own()) == Some(false));
            if is_stale {
                self.take(fd);
            }
        }
    }

    /// Drops what was taken away and is not used any more, but for what the VMM has by another number, too. Returns true if
    /// something is still used. Of one thread.
    pub(crate) fn sweep(&self) -> bool {
        let mut entry = self.taken.swap(ptr::null_mut(), Ordering::AcqRel);
        let mut is_used = false;
        while !entry.is_null() {
            // SAFETY: this thread has taken the list, and nobody else drops an entry of it.
            let one = unsafe { &*entry };
            let next = one.next.load(Ordering::Relaxed);
            if let Some(slot) = self.slots.get(one.at) {
                // Each of them stays for a few instructions.
                while slot.readers.load(Ordering::SeqCst) > 0 {
                    thread::yield_now();
                }
            }
            if one.users.load(Ordering::SeqCst) > 0 {
                is_used = true;
                self.retire(entry);
            } else {
                // SAFETY: `put` made it of a Box; it is in no slot, and whoever found it there has counted out.
                let one = unsafe { Box::from_raw(entry) };
                if let Some(fd) = other_number(one.thing.own()).filter(|fd| !self.has(*fd)) {
                    self.put(fd, one.thing);
                }
            }
            entry = next;
        }
        is_used
    }
}
