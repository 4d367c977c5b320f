//! Parses the keys of `[msrs]` into MSRs.

use msrgate_filter::{MsrIndex, X2APIC};
use msrgate_program::{MsrRange, MsrSet};

use super::Reader;
use super::value::Key;
use crate::mistake::MistakeKind;
use crate::selector::parse_msrs;
use crate::source::quoted;

impl Reader<'_> {
    /// Returns the MSRs that a key names.
    pub(super) fn msrs_of(&mut self, key: Key<'_>) -> Option<MsrSet> {
        match parse_msrs(key.text) {
            Ok(msrs) => self.without_x2apic(key, msrs),
            Err(error) => {
                self.report(self.key_at(key), MistakeKind::Msrs(error));
                None
            }
        }
    }

    /// Reports x2APIC registers, and returns the other MSRs. KVM asks no filter about x2APIC
    /// registers (S3.1), so an entry for them would have no effect.
    fn without_x2apic(&mut self, key: Key<'_>, msrs: MsrSet) -> Option<MsrSet> {
        let x2apic = MsrSet::from(MsrRange::new(*X2APIC.start(), *X2APIC.end())?);
        if !msrs.overlaps(&x2apic) {
            return Some(msrs);
        }
        let rest = msrs.without(&x2apic);
        // The proposed entry leaves out MSR 0xffffffff, too, because only `default` can decide
        // about this MSR (S3.5).
        let last = MsrSet::from(MsrRange::one(MsrIndex::MAX));
        let rest = rest.and_then(|rest| rest.without(&last));
        let help = match &rest {
            None => {
                "delete the entry: a guest with an x2APIC reaches these registers under every policy"
                    .to_owned()
            }
            Some(rest) => {
                let each: Vec<_> = rest
                    .ranges()
                    .iter()
                    .map(|range| format!("`\"{range}\"`"))
                    .collect();
                format!("write {} instead", each.join(" and "))
            }
        };
        let text = quoted(key.text);
        self.report(self.key_at(key), MistakeKind::NamesX2apic { text, help });
        None
    }
}
