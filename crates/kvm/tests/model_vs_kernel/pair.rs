//! A VM of KVM and a VM of the model that run the same operations.

use std::cell::RefCell;
use std::fmt::Debug;
use std::rc::Rc;

use msrgate_filter::{Access, Revision, Verdict};
use msrgate_kvm::measure::{Backend, GuestError, KvmBackend, ModelBackend, Step};
use msrgate_kvm::sys::RawFilter;
use msrgate_kvm::{HostCaps, RawReasons};
use proptest::test_runner::TestCaseError;

use crate::linear;
use crate::registers::{Baseline, Learnt, LearntRegisters, comparable, may_be_written};
use crate::sequence::Round;
use crate::tally::Tally;

/// A difference between the kernel and the model, or an error that prevented the comparison.
#[derive(Debug)]
pub(crate) struct Difference(String);

impl Difference {
    fn between(what: &str, kernel: &impl Debug, model: &impl Debug) -> Self {
        Self(format!("{what}\nkernel: {kernel:?}\n model: {model:?}"))
    }
}

impl From<GuestError> for Difference {
    fn from(error: GuestError) -> Self {
        Self(error.to_string())
    }
}

impl From<Difference> for TestCaseError {
    fn from(Difference(text): Difference) -> Self {
        Self::fail(text)
    }
}

/// A VM of KVM and a VM of the model, which get the same masks, filters and accesses.
pub(crate) struct Pair {
    kernel: KvmBackend,
    model: ModelBackend<LearntRegisters>,
    baseline: Rc<RefCell<Baseline>>,
    /// The last filter that was passed to both VMs, accepted or not.
    asked: RawFilter,
    /// The last filter that the kernel accepted.
    in_force: RawFilter,
}

impl Pair {
    /// Creates the VM of KVM and the VM of the model.
    pub(crate) fn new(
        host: &HostCaps,
        baseline: &Rc<RefCell<Baseline>>,
    ) -> Result<Self, Difference> {
        let registers = LearntRegisters::new(baseline);
        Ok(Self {
            kernel: KvmBackend::new(host)?,
            model: ModelBackend::new(Revision::Mainline, registers),
            baseline: Rc::clone(baseline),
            asked: RawFilter::default(),
            in_force: RawFilter::default(),
        })
    }

    /// Runs one round on both VMs, and compares everything observable.
    pub(crate) fn go(&mut self, round: &Round, tally: &Tally) -> Result<(), Difference> {
        if let Some(bits) = round.reasons {
            self.set_reasons(RawReasons::new(bits), tally)?;
        }
        if let Some(plan) = &round.filter {
            self.set_filter(plan.request(), tally)?;
        }
        let steps = round.accesses.iter();
        let script = steps.map(|plan| plan.step(&self.asked, &self.in_force));
        self.run(script.collect(), tally)
    }

    fn set_reasons(&mut self, mask: RawReasons, tally: &Tally) -> Result<(), Difference> {
        let kernel = self.kernel.set_reasons(mask);
        let model = self.model.set_reasons(mask);
        tally.count_reasons(kernel);
        same(&format!("the mask {mask}"), &kernel, &model)
    }

    fn set_filter(&mut self, request: RawFilter, tally: &Tally) -> Result<(), Difference> {
        let kernel = self.kernel.set_filter(&request);
        let model = self.model.set_filter(&request);
        tally.count_filter(kernel);
        same(&format!("the filter {}", show(&request)), &kernel, &model)?;
        if kernel.is_ok() {
            self.in_force = request.clone();
        }
        self.asked = request;
        Ok(())
    }

    fn run(&mut self, mut script: Vec<Step>, tally: &Tally) -> Result<(), Difference> {
        for step in &mut script {
            self.tame(step);
        }
        self.baseline.borrow_mut().learn(&script)?;
        script.retain(|step| self.is_comparable(step));
        let kernel = self.kernel.run(&script)?;
        let model = self.model.run(&script)?;
        if let Some((index, access)) = self.baseline.borrow_mut().take_stray() {
            let what = format!("the model lets the {access} of {index} pass; the kernel does not");
            return Err(Difference(format!(
                "{what}, under {}",
                show(&self.in_force)
            )));
        }
        for (step, (kernel, model)) in script.iter().zip(kernel.into_iter().zip(model)) {
            tally.count_access(&kernel);
            let what = format!("{step:x?} under {}", show(&self.in_force));
            let [kernel, model] = [kernel, model].map(|seen| comparable(step.index, seen));
            same(&what, &kernel, &model)?;
        }
        Ok(())
    }

    /// Replaces a write that would have side effects by a read. `linear`, not the model, decides if the
    /// filter lets the write pass: a mistake of the model must not let such a write through.
    fn tame(&self, step: &mut Step) {
        if step.access == Access::Write
            && !may_be_written(step.index, step.value)
            && self.decides(step) == Verdict::Allow
        {
            step.access = Access::Read;
            step.value = 0;
        }
    }

    /// Returns true if the model can predict the access. The model cannot predict a fault that the CPU
    /// itself raises.
    fn is_comparable(&self, step: &Step) -> bool {
        let learnt = self
            .baseline
            .borrow()
            .find(step.index, step.access, step.value);
        learnt != Some(Learnt::Hardware) || self.decides(step) == Verdict::Deny
    }

    fn decides(&self, step: &Step) -> Verdict {
        linear::decide(&self.in_force, step.index, step.access)
    }
}

/// Formats a filter for a message, without its empty ranges.
fn show(filter: &RawFilter) -> String {
    let used = filter.ranges.iter().filter(|range| range.nmsrs != 0);
    format!(
        "flags {:#x} and {:x?}",
        filter.flags,
        used.collect::<Vec<_>>()
    )
}

fn same<T: Debug + PartialEq>(what: &str, kernel: &T, model: &T) -> Result<(), Difference> {
    if kernel == model {
        Ok(())
    } else {
        Err(Difference::between(what, kernel, model))
    }
}
