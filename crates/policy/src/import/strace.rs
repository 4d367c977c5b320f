//! Output of strace.
//!
//! strace (6.17 by source) has no decoder for `KVM_X86_SET_MSR_FILTER`: it prints the address of the
//! struct, and neither the struct nor its bitmaps. There is nothing to import, and that is what is
//! said of each call.

use msrgate_program::Action;

use super::drafts::Drafts;
use super::lines;

/// How the call is printed, with the name of the request and without.
const CALLS: [&str; 2] = [
    "KVM_X86_SET_MSR_FILTER",
    "_IOC(_IOC_WRITE, 0xae, 0xc6, 0x188)",
];

/// Whether a line is a call that sets a filter.
pub(super) fn is_filter_call(line: &str) -> bool {
    line.contains("ioctl(") && CALLS.iter().any(|call| line.contains(call))
}

pub(super) fn read(bytes: &[u8]) -> Drafts {
    let mut drafts = Drafts::new(Action::Allow);
    for (number, line) in lines(bytes) {
        if is_filter_call(&line) {
            drafts.unsaid(
                Some(number),
                "a filter was set, and strace prints only its address: neither its ranges nor their bitmaps are there",
            );
        }
    }
    drafts
}
