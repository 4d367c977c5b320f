//! Random sequences of masks of exit reasons, filters and accesses for a VM.

use msrgate_filter::{Access, MsrIndex, X2APIC};
use msrgate_kvm::measure::{Step, StepReply};
use msrgate_kvm::sys::{RawFilter, RawRange};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::registers::{self, EXCEPTIONS};
use crate::requests::{FilterPlan, filter};

/// A round of the comparison: a mask of exit reasons, a filter, and the accesses that the guest makes after
/// both are set.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    /// `args[0]` of `KVM_CAP_X86_USER_SPACE_MSR`, the mask of exit reasons. Unknown bits may be set.
    pub(crate) reasons: Option<u64>,
    pub(crate) filter: Option<FilterPlan>,
    pub(crate) accesses: Vec<AccessPlan>,
}

/// A plan of an access. The MSR of the access is given by a place in a filter, since the filter is generated
/// only later.
#[derive(Clone, Debug)]
pub(crate) struct AccessPlan {
    place: Place,
    access: Access,
    value: u64,
    reply: StepReply,
}

#[derive(Clone, Debug)]
enum Place {
    /// An MSR near the first or last MSR of a range. The range belongs to the filter that was passed to
    /// the kernel last, or to the filter in force.
    Edge {
        whose: Whose,
        range: Index,
        edge: Edge,
        step: i32,
    },
    Known(MsrIndex),
    Anywhere(u32),
}

#[derive(Clone, Copy, Debug)]
enum Whose {
    Passed,
    InForce,
}

#[derive(Clone, Copy, Debug)]
enum Edge {
    Base,
    End,
    /// The end of the word of this number in the range's bitmap.
    Word(u32),
    /// The end of the last word of the range's bitmap. That word may have bits after the last MSR of the
    /// range (S3.6).
    LastWord,
}

/// Returns a proptest strategy that generates the rounds that one VM goes through.
pub(crate) fn rounds() -> impl Strategy<Value = Vec<Round>> {
    vec(round(), 1..=6)
}

fn round() -> impl Strategy<Value = Round> {
    let reasons = option::weighted(0.7, reasons());
    let filter = option::weighted(0.9, filter());
    (reasons, filter, vec(access(), 0..=84)).prop_map(|(reasons, filter, accesses)| Round {
        reasons,
        filter,
        accesses,
    })
}

fn reasons() -> impl Strategy<Value = u64> {
    let unknown = (3..64_u32, 0..8_u64).prop_map(|(bit, known)| 1 << bit | known);
    prop_oneof![
        4 => Just(7),
        2 => Just(4),
        1 => Just(0),
        4 => 1..7_u64,
        2 => unknown,
    ]
}

fn access() -> impl Strategy<Value = AccessPlan> {
    let reply = prop_oneof![
        Just(StepReply::Fault),
        any::<u64>().prop_map(StepReply::Value),
    ];
    (place(), select(Access::ALL.to_vec()), value(), reply).prop_map(
        |(place, access, value, reply)| AccessPlan {
            place,
            access,
            value,
            reply,
        },
    )
}

fn value() -> impl Strategy<Value = u64> {
    const VALUES: [u64; 8] = [
        0,
        1,
        0xffff_ffff,
        0x1122_3344_5566_7788,
        0x0000_7fff_ffff_ffff,
        0x0000_8000_0000_0000,
        0xffff_8000_0000_0000,
        u64::MAX,
    ];
    prop_oneof![3 => select(VALUES.to_vec()), 1 => any::<u64>()]
}

fn place() -> impl Strategy<Value = Place> {
    let whose = prop_oneof![2 => Just(Whose::Passed), 1 => Just(Whose::InForce)];
    let edge = prop_oneof![
        3 => Just(Edge::Base),
        3 => Just(Edge::End),
        1 => (1..6_u32).prop_map(Edge::Word),
        1 => Just(Edge::LastWord),
    ];
    let at_edge =
        (whose, any::<Index>(), edge, -1..=1_i32).prop_map(|(whose, range, edge, step)| {
            Place::Edge {
                whose,
                range,
                edge,
                step,
            }
        });
    prop_oneof![
        6 => at_edge,
        3 => select(known()).prop_map(Place::Known),
        1 => any::<u32>().prop_map(Place::Anywhere),
    ]
}

/// Returns MSRs that hold values, MSRs that no filter can deny, MSRs that only the default action decides,
/// and the neighbours of those.
fn known() -> Vec<MsrIndex> {
    const CORNERS: [u32; 12] = [
        0x0,
        0x7ff,
        0x801,
        0x900,
        0x1fff,
        0x2000,
        0x4000_0000,
        0xc000_0080,
        0xc000_1fff,
        0xc000_2000,
        0xffff_fffe,
        0xffff_ffff,
    ];
    let corners = CORNERS.map(MsrIndex::new);
    let exceptions = EXCEPTIONS.map(|exception| exception.index);
    [
        &registers::HARMLESS[..],
        &registers::HARMLESS,
        &corners,
        &exceptions,
        &[*X2APIC.start(), *X2APIC.end()],
    ]
    .concat()
}

impl AccessPlan {
    /// Returns the step for this plan. `asked` is the filter that was passed last, `in_force` the filter in
    /// force.
    pub(crate) fn step(&self, asked: &RawFilter, in_force: &RawFilter) -> Step {
        let index = match &self.place {
            Place::Known(index) => *index,
            Place::Anywhere(index) => MsrIndex::new(*index),
            Place::Edge {
                whose,
                range,
                edge,
                step,
            } => {
                let filter = match whose {
                    Whose::Passed => asked,
                    Whose::InForce => in_force,
                };
                let used = filter.ranges.iter().filter(|range| range.nmsrs != 0);
                let at = match used.collect::<Vec<_>>().as_slice() {
                    [] => 0,
                    used => {
                        let range: &&RawRange = range.get(used);
                        edge.of(range)
                    }
                };
                MsrIndex::new(at.wrapping_add_signed(*step))
            }
        };
        Step {
            index,
            access: self.access,
            value: registers::value_for(index, self.value),
            reply: self.reply,
        }
    }
}

impl Edge {
    fn of(self, range: &RawRange) -> u32 {
        let offset = match self {
            Self::Base => 0,
            Self::End => range.nmsrs,
            Self::Word(number) => number * 64,
            Self::LastWord => range.nmsrs.checked_next_multiple_of(64).unwrap_or(0),
        };
        range.base.wrapping_add(offset)
    }
}
