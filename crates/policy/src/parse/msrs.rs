//! The keys of `[msrs]`.

use msrgate_filter::X2APIC;

use super::{Key, Reader};
use crate::mistake::Mistake;
use crate::policy::MsrRange;
use crate::selector::parse_msrs;
use crate::source::quoted;

impl Reader<'_> {
    /// The MSRs that a key speaks of.
    pub(super) fn msr_range(&mut self, key: Key<'_>) -> Option<MsrRange> {
        match parse_msrs(key.text) {
            Ok(range) => self.without_x2apic(key, range),
            Err(error) => {
                self.mistakes.push(Mistake::Msrs {
                    help: error.help(),
                    error,
                    at: key.at,
                });
                None
            }
        }
    }

    /// S3.1: KVM asks no filter about x2APIC registers, so a policy that spoke of them would lie.
    fn without_x2apic(&mut self, key: Key<'_>, range: MsrRange) -> Option<MsrRange> {
        let (first, last) = (*X2APIC.start(), *X2APIC.end());
        if range.last() < first || range.first() > last {
            return Some(range);
        }
        let below = (range.first() < first).then(|| format!("`\"{}..=0x7ff\"`", range.first()));
        let above = (range.last() > last).then(|| format!("`\"0x900..={}\"`", range.last()));
        let rest: Vec<_> = below.into_iter().chain(above).collect();
        self.mistakes.push(Mistake::NamesX2apic {
            text: quoted(key.text),
            help: if rest.is_empty() {
                "delete the entry: a guest that has an x2APIC reaches it whatever a policy says"
                    .to_owned()
            } else {
                format!("write {} instead", rest.join(" and "))
            },
            at: key.at,
        });
        None
    }
}
