//! Tests of a program whose filter the kernel refuses after vCPUs have taken over the program.

mod kernel;
mod state;

use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use kvm_ioctls::VmFd;
use msrgate_filter::{Filter, MsrIndex, ReasonMask, Vm};
use msrgate_policy::Program;

use super::machine::{AnyGuest, Machine, policy};
use super::model::{self, ModelGuest};
use crate::errno::{CallErrno, RawErrno};
use crate::exit::RawReasons;
use crate::gate::vm::VmPort;
use crate::gate::{Gate, GateError, GateOptions};
use crate::install::{Filtered, InstallError, Mask};

/// MSRs for emulated registers, and an MSR of KVM's.
const SPARE: MsrIndex = MsrIndex::new(0x1_0000);
const SHARED: MsrIndex = MsrIndex::new(0x1_0001);
const NEW: MsrIndex = MsrIndex::new(0x1_0002);
const CSTAR: MsrIndex = MsrIndex::new(0xc000_0083);

const ENOMEM: CallErrno = CallErrno::Other(RawErrno::new(12));

/// The reaction of the kernel to a filter that the gate sets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Takes,
    Refuses,
    /// The call that sets the filter panics.
    Panics,
}

/// The reactions of the kernel to the next filters that are set, in order. The kernel accepts all later
/// filters.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<VecDeque<Next>>>);

enum Next {
    Is(Kernel),
    /// The call that sets the filter sends the test a message, and then waits until the test sends the
    /// reaction.
    Asks(Sender<()>, Receiver<Kernel>),
}

impl Script {
    fn next(&self, next: Next) {
        self.0.lock().unwrap().push_back(next);
    }

    fn refuse(&self, count: usize) {
        (0..count).for_each(|_| self.next(Next::Is(Kernel::Refuses)));
    }

    fn decide(&self) -> Kernel {
        // Release the lock of the script before waiting for the reaction.
        let next = self.0.lock().unwrap().pop_front();
        match next {
            None => Kernel::Takes,
            Some(Next::Is(kernel)) => kernel,
            Some(Next::Asks(called, answer)) => {
                called.send(()).unwrap();
                answer.recv().unwrap()
            }
        }
    }

    /// Replaces the gate's program by a new one. Runs `meanwhile` while the new program is in force and the
    /// kernel has not reacted to its filter yet.
    fn replace(
        &self,
        gate: &Gate,
        program: Program,
        kernel: Kernel,
        meanwhile: impl FnOnce(),
    ) -> Result<(), GateError> {
        /// A guard that sends the reaction when it is dropped, even if the test panics: otherwise the test
        /// would wait for its other threads for ever.
        struct Answer(Sender<Kernel>, Kernel);
        impl Drop for Answer {
            fn drop(&mut self) {
                let _ = self.0.send(self.1);
            }
        }
        let (called, was_called) = channel();
        let (answer, answered) = channel();
        self.next(Next::Asks(called, answered));
        thread::scope(|scope| {
            let answer = Answer(answer, kernel);
            let replacing = scope.spawn(|| gate.replace(program));
            was_called.recv().unwrap();
            meanwhile();
            drop(answer);
            replacing
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}

/// A VM whose kernel reacts to filters as a script says.
struct Scripted<V> {
    vm: V,
    mask: Mask,
    script: Script,
}

impl<V> Scripted<V> {
    fn new(vm: V, script: &Script) -> Self {
        Self {
            vm,
            mask: Mask::unknown(),
            script: script.clone(),
        }
    }
}

struct Follows<'s, V>(&'s V, &'s Script);

impl<V: Filtered> Filtered for Follows<'_, V> {
    fn set_reasons(&self, reasons: RawReasons) -> Result<(), CallErrno> {
        self.0.set_reasons(reasons)
    }

    fn set_filter(&self, filter: &Filter) -> Result<(), CallErrno> {
        match self.1.decide() {
            Kernel::Takes => self.0.set_filter(filter),
            Kernel::Refuses => Err(ENOMEM),
            Kernel::Panics => panic!("as the test wants it"),
        }
    }
}

impl<V: Filtered + Send> VmPort for Scripted<V> {
    fn replace(&mut self, filter: &Filter, reasons: ReasonMask) -> Result<(), InstallError> {
        let vm = Follows(&self.vm, &self.script);
        self.mask.replace(&vm, filter, reasons)
    }

    fn has_nested_state(&self) -> bool {
        false
    }

    fn has_shared_registers(&self) -> bool {
        true
    }
}

/// A real VM, which the test reaches by a duplicate of the VM's file descriptor.
struct RealVm(std::os::fd::OwnedFd);

impl RealVm {
    fn new(vm: &VmFd) -> Self {
        Self(crate::sys::calls::duplicate(vm).unwrap())
    }
}

impl Filtered for RealVm {
    fn set_reasons(&self, reasons: RawReasons) -> Result<(), CallErrno> {
        crate::sys::calls::enable_reasons(&self.0, reasons)
    }

    fn set_filter(&self, filter: &Filter) -> Result<(), CallErrno> {
        crate::sys::raw::set_filter(&self.0, filter)
    }
}

impl<V: Filtered> Filtered for Arc<V> {
    fn set_reasons(&self, reasons: RawReasons) -> Result<(), CallErrno> {
        (**self).set_reasons(reasons)
    }

    fn set_filter(&self, filter: &Filter) -> Result<(), CallErrno> {
        (**self).set_filter(filter)
    }
}

/// Makes a VM of the model and its guests.
fn of_model(count: usize) -> (Vm, Vec<ModelGuest>) {
    let vm = Vm::new(msrgate_filter::Revision::Mainline);
    let guests = (0..count).map(|_| ModelGuest::new(&vm)).collect();
    (vm, guests)
}

/// Runs a test body on the model and on a real KVM, whose reactions to filters follow a script.
fn on_each(program: &Program, count: usize, body: impl Fn(&mut Machine<AnyGuest>, &Script)) {
    let options = GateOptions::new();
    let script = Script::default();
    let (vm, guests) = of_model(count);
    let port = Box::new(Scripted::new(vm, &script));
    let cpuid = model::cpuid();
    let model = Machine::in_model(program.clone(), port, guests, options.clone(), cpuid);
    body(&mut model.any(), &script);
    let kvm = Machine::in_kvm(program.clone(), count, options, |vm| {
        Box::new(Scripted::new(RealVm::new(vm), &script))
    });
    if let Some(kvm) = kvm {
        body(&mut kvm.any(), &script);
    }
}

fn is_refused(seen: &Result<(), GateError>) -> bool {
    matches!(
        seen,
        Err(GateError::Install(InstallError::Filter(errno))) if *errno == ENOMEM
    )
}

const SHARED_REGISTER: &str = "0x10001 = { register = { reset = 8, mask = '0xff' } }\n\
    IA32_CSTAR = { read = 'allow', write = 'pin' }\n";

/// Returns a policy with two registers and two pins.
fn old() -> Program {
    let entries = format!(
        "{SHARED_REGISTER}0x10000 = {{ register = {{ reset = 7, mask = '0xff' }} }}\n\
         IA32_LSTAR = {{ read = 'allow', write = 'pin' }}"
    );
    policy("default = 'deny'", &entries)
}

/// Returns a policy that shares one register and one pin with [`old`].
fn new() -> Program {
    let entries = format!(
        "{SHARED_REGISTER}0x10002 = {{ register = {{ reset = 3, mask = '0xff' }} }}\n\
         IA32_STAR = {{ read = 'allow', write = 'pin' }}"
    );
    policy("default = 'deny'", &entries)
}
