//! Unsafe: pointers that one thread takes away while another uses them.
//!
//! A table of this process's VMs and vCPUs by file descriptor number.
//!
//! The library's `close` may be called from anywhere, also by the library itself, so it takes no lock and
//! allocates nothing. `close` takes a VM or vCPU out of its slot, and the helper thread drops the VM or vCPU
//! when no thread uses it. A thread that looks up a VM or vCPU adds 1 to the slot's count of readers, then 1
//! to the entry's count of users, and then subtracts 1 from the slot's count. Once an entry was taken out of
//! its slot and the slot's count was seen to be 0, the entry's own count includes all its users.
#![expect(unsafe_code, reason = "a slot's pointer is followed under a count")]

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::ops::Deref;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::thread;

use crate::own_fds::OwnFds;
use crate::sys::{self, Compared};
use crate::thing::Thing;

/// The limit of descriptor numbers: a VM's or vCPU's number must be lower.
pub(crate) const FDS: usize = 1 << 16;

/// The table's slot for one descriptor number. A slot whose bytes are all 0 is empty.
#[repr(C)]
struct Slot {
    entry: AtomicPtr<Entry>,
    readers: AtomicU32,
}

/// An entry of the table: a VM or vCPU, and the number of threads that use it.
struct Entry {
    users: AtomicU32,
    /// The next entry in the list of entries that were taken out of their slots.
    next: AtomicPtr<Entry>,
    /// The number of the entry's slot.
    at: usize,
    thing: Thing,
}

/// A table of the process's VMs and vCPUs: a slot for each descriptor number, and a list of the entries that
/// were taken out of their slots.
pub(crate) struct Table {
    slots: Box<[Slot; FDS]>,
    taken: AtomicPtr<Entry>,
    /// A number above the descriptor numbers of all VMs and vCPUs that were ever in the table.
    end: AtomicUsize,
    /// The numbers of the library's own descriptors.
    pub(crate) own: OwnFds,
    /// A function that wakes the helper thread, which then calls [`Self::sweep`].
    wake: fn(),
}

/// The result of one pass of [`Table::sweep`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Swept {
    All,
    /// A VM or vCPU was put back under another descriptor number. The former entry of that number may now
    /// have to be swept.
    Moved,
}

/// A VM or vCPU of the table that counts as in use until this value is dropped.
pub(crate) struct Held<'t> {
    entry: &'t Entry,
    slot: &'t Slot,
    wake: fn(),
}

impl Deref for Held<'_> {
    type Target = Thing;

    fn deref(&self) -> &Thing {
        &self.entry.thing
    }
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        let (entry, slot) = (ptr::from_ref(self.entry), self.slot);
        self.entry.users.fetch_sub(1, Ordering::SeqCst);
        // From here on the entry may be dropped. If it was taken out of its slot before that, `sweep` may
        // have found it in use.
        if !ptr::eq(slot.entry.load(Ordering::SeqCst), entry) {
            (self.wake)();
        }
    }
}

impl Table {
    /// Makes an empty table. The table calls `wake` when the helper thread should call [`Self::sweep`].
    pub(crate) fn new(wake: fn()) -> Self {
        let layout = Layout::new::<[Slot; FDS]>();
        #[expect(clippy::cast_ptr_alignment, reason = "the layout has the alignment")]
        // SAFETY: the layout has a size.
        let slots = unsafe { alloc_zeroed(layout) }.cast::<[Slot; FDS]>();
        if slots.is_null() {
            handle_alloc_error(layout);
        }
        Self {
            // SAFETY: the memory was just allocated with this layout, and zeros are empty slots. The kernel
            // gives memory to a page only when it is used.
            slots: unsafe { Box::from_raw(slots) },
            taken: AtomicPtr::new(ptr::null_mut()),
            end: AtomicUsize::new(0),
            own: OwnFds::new(),
            wake,
        }
    }

    fn slot(&self, fd: RawFd) -> Option<&Slot> {
        self.slots.get(usize::try_from(fd).ok()?)
    }

    /// Returns the VM or vCPU behind a descriptor, which counts as in use until the result is dropped.
    #[inline]
    pub(crate) fn get(&self, fd: RawFd) -> Option<Held<'_>> {
        let slot = self.slot(fd)?;
        if slot.entry.load(Ordering::Relaxed).is_null() {
            return None;
        }
        slot.readers.fetch_add(1, Ordering::SeqCst);
        let entry = slot.entry.load(Ordering::SeqCst);
        // SAFETY: the pointer is null or to an entry. An entry that was taken out of its slot is dropped
        // only after the slot was seen without readers, and this thread is a reader.
        let held = unsafe { entry.as_ref() }.map(|entry| {
            entry.users.fetch_add(1, Ordering::SeqCst);
            Held {
                entry,
                slot,
                wake: self.wake,
            }
        });
        slot.readers.fetch_sub(1, Ordering::SeqCst);
        held
    }

    /// Returns true if the table has a VM or vCPU for this descriptor.
    #[inline]
    pub(crate) fn has(&self, fd: RawFd) -> bool {
        let slot = self.slot(fd);
        slot.is_some_and(|slot| !slot.entry.load(Ordering::Relaxed).is_null())
    }

    /// Returns the numbers of all descriptors for which the table has a VM or vCPU.
    fn numbers(&self) -> impl Iterator<Item = RawFd> {
        let all = (0..).zip(self.slots.iter());
        all.take(self.end.load(Ordering::Acquire))
            .filter(|(_, slot)| !slot.entry.load(Ordering::Relaxed).is_null())
            .map(|(fd, _)| fd)
    }

    /// Returns true if the table has no VM and no vCPU.
    pub(crate) fn is_empty(&self) -> bool {
        self.numbers().next().is_none()
    }

    /// Enters a VM or vCPU for a descriptor number, in place of the former entry for the number. Only the
    /// helper thread calls this.
    pub(crate) fn put(&self, fd: RawFd, thing: Thing) {
        let (Some(slot), Ok(at)) = (self.slot(fd), usize::try_from(fd)) else {
            return;
        };
        self.own.remove(fd);
        self.end.fetch_max(at + 1, Ordering::AcqRel);
        let entry = Box::new(Entry {
            users: AtomicU32::new(0),
            next: AtomicPtr::new(ptr::null_mut()),
            at,
            thing,
        });
        self.retire(slot.entry.swap(Box::into_raw(entry), Ordering::SeqCst));
    }

    /// Takes the VM or vCPU behind a descriptor out of its slot, so that [`Self::sweep`] may drop it.
    /// Returns true if the slot had one.
    pub(crate) fn take(&self, fd: RawFd) -> bool {
        let Some(slot) = self.slot(fd) else {
            return false;
        };
        if slot.entry.load(Ordering::Relaxed).is_null() {
            return false;
        }
        let entry = slot.entry.swap(ptr::null_mut(), Ordering::SeqCst);
        self.retire(entry);
        !entry.is_null()
    }

    fn retire(&self, entry: *mut Entry) {
        // SAFETY: the pointer is null, or to an entry that was in a slot until now: `sweep` has not found it
        // yet.
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

    /// Takes each VM or vCPU out of its slot whose descriptor number is closed or has another file by now:
    /// the library does not see dup2(2) and `close_range(2)`. Only the helper thread calls this.
    pub(crate) fn take_stale(&self) {
        for fd in self.numbers() {
            self.take_if_stale(fd);
        }
    }

    fn take_if_stale(&self, fd: RawFd) {
        let Some(held) = self.get(fd) else { return };
        if matches!(
            sys::compare(fd, held.own()),
            Compared::Same | Compared::Unknown
        ) {
            return;
        }
        let entry = ptr::from_ref(held.entry).cast_mut();
        // The VMM may have closed the number since, by the library's `close`.
        let taken = held.slot.entry.compare_exchange(
            entry,
            ptr::null_mut(),
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
        drop(held);
        if taken.is_ok() {
            self.retire(entry);
        }
    }

    /// Finds out which VM or vCPU a descriptor number is of, and corrects the table. The VMM may have given
    /// the number to another file, for example by dup2(2), and the library does not see such calls. Only the
    /// helper thread calls this.
    pub(crate) fn identify(&self, fd: RawFd) {
        self.take_if_stale(fd);
        // A thing whose number was closed a moment ago may be behind this number, too.
        self.sweep();
        if self.has(fd) {
            return;
        }
        let is_same = |thing: &Thing| sys::compare(thing.own(), fd) == Compared::Same;
        let in_slots = self.numbers().find_map(|known| {
            let held = self.get(known)?;
            is_same(&held).then(|| (*held).clone())
        });
        if let Some(thing) = in_slots.or_else(|| self.in_use(is_same)) {
            self.put(fd, thing);
        }
    }

    /// Returns a VM or vCPU that was taken out of its slot, was not dropped yet, and meets `is_wanted`. Only
    /// the helper thread calls this.
    fn in_use(&self, is_wanted: impl Fn(&Thing) -> bool) -> Option<Thing> {
        let mut entry = self.taken.load(Ordering::Acquire);
        loop {
            // SAFETY: the pointer is null, or to an entry of the list. Only this thread takes entries from the list
            // and drops them.
            let one = unsafe { entry.as_ref() }?;
            if is_wanted(&one.thing) {
                return Some(one.thing.clone());
            }
            entry = one.next.load(Ordering::Relaxed);
        }
    }

    /// Returns true if the table's VM or vCPU for a descriptor number is the one that the VMM has under that
    /// number.
    fn is_right(&self, fd: RawFd) -> bool {
        let held = self.get(fd);
        held.is_some_and(|held| sys::compare(fd, held.own()) == Compared::Same)
    }

    /// Returns a descriptor number under which the VMM has the same file as the library's descriptor `own`.
    /// The function tries every number, because listing `/proc` would take a descriptor, and the VMM may
    /// rely on the lowest free number.
    fn other_number(&self, own: RawFd) -> Option<RawFd> {
        /// The count of further numbers to try once all open descriptors were seen: the VMM may open and
        /// close some meanwhile.
        const MARGIN: usize = 256;
        let mut left = sys::open_fds().map(|all| all.saturating_sub(self.own.count()));
        let mut beyond = 0;
        for fd in (0..).take(FDS).filter(|fd| !self.own.has(*fd)) {
            let compared = sys::compare(own, fd);
            if compared == Compared::Same {
                return Some(fd);
            }
            match &mut left {
                Some(0) if beyond == MARGIN => break,
                Some(0) => beyond += 1,
                Some(left) if compared != Compared::Closed => *left -= 1,
                None if fd >= self.last_number() => break,
                _ => {}
            }
        }
        None
    }

    /// Returns the descriptor number at which [`Self::other_number`] stops if the kernel does not tell how
    /// many descriptors are open.
    fn last_number(&self) -> RawFd {
        let lowest_own = sys::lowest_fd();
        match RawFd::try_from(self.end.load(Ordering::Acquire)) {
            Ok(end) if end <= lowest_own => lowest_own,
            _ => RawFd::MAX,
        }
    }

    /// Drops the VMs and vCPUs that were taken out of their slots and are not in use. A VM or vCPU that the
    /// VMM still has under another descriptor number is put back under that number: the VMM may have
    /// exchanged two numbers by dup2(2). Only the helper thread calls this.
    pub(crate) fn sweep(&self) {
        while self.swept() == Swept::Moved {}
    }

    fn swept(&self) -> Swept {
        let mut swept = Swept::All;
        let mut entry = self.taken.swap(ptr::null_mut(), Ordering::AcqRel);
        while !entry.is_null() {
            // SAFETY: this thread has taken the list, and no other thread drops an entry of it.
            let one = unsafe { &*entry };
            let next = one.next.load(Ordering::Relaxed);
            if let Some(slot) = self.slots.get(one.at) {
                // A reader leaves the count after a few instructions.
                while slot.readers.load(Ordering::SeqCst) > 0 {
                    thread::yield_now();
                }
            }
            if one.users.load(Ordering::SeqCst) > 0 {
                // The last user wakes this thread.
                self.retire(entry);
            } else {
                // SAFETY: `put` made the entry from a Box. No slot has it, and every thread that found it
                // there has left its count.
                let one = unsafe { Box::from_raw(entry) };
                let other = self.other_number(one.thing.own());
                if let Some(fd) = other.filter(|fd| !self.is_right(*fd)) {
                    self.put(fd, one.thing);
                    swept = Swept::Moved;
                }
            }
            entry = next;
        }
        swept
    }
}
