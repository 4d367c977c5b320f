//! The registers that the guest's allowed accesses reach: the processor's own, and those in the VMCB.

use alloc::rc::Rc;
use core::cell::Cell;

use msrgate_filter::{Access, MsrIndex, Origin, RegisterFault, Registers};

use crate::msrs::{APIC_BASE, EFER, PAT, is_kept, is_known};
use crate::vmcb::{LMA, LME, SVME, Vmcb, field};

/// RDMSR and WRMSR as the processor executes them.
pub trait RealMsrs {
    /// Reads the register. Returns `None` if the processor raises #GP.
    fn read(&self, index: MsrIndex) -> Option<u64>;
    /// Writes the register. Returns `None` if the processor raises #GP.
    fn write(&self, index: MsrIndex, value: u64) -> Option<()>;
}

/// The registers of the guest that VMRUN switches, between an exit and the next VMRUN.
#[derive(Debug, Default)]
pub struct Switched {
    efer: Cell<u64>,
    pat: Cell<u64>,
    cr0: Cell<u64>,
}

impl Switched {
    /// Takes the registers from the VMCB.
    pub fn load(&self, vmcb: &Vmcb) {
        self.efer.set(vmcb.get(field::EFER));
        self.pat.set(vmcb.get(field::PAT));
        self.cr0.set(vmcb.get(field::CR0));
    }

    /// Puts the registers into the VMCB. If PAT has changed, the next VMRUN forgets all translations.
    pub fn store(&self, vmcb: &mut Vmcb) {
        const FLUSH_ALL: u8 = 1;
        vmcb.put(field::EFER, self.efer.get());
        if vmcb.get(field::PAT) != self.pat.get() {
            vmcb.put(field::PAT, self.pat.get());
            vmcb.put(field::TLB_CONTROL, FLUSH_ALL);
        }
    }

    fn write_efer(&self, value: u64) -> Option<()> {
        /// SCE, NXE, LMSLE, FFXSR, TCE and automatic IBRS (APM volume 2, 3.1.7).
        const WRITABLE: u64 = 1 | LME | 1 << 11 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 21;
        let old = self.efer.get();
        let has_paging = self.cr0.get() >> 31 & 1 == 1;
        if value & !(WRITABLE | LMA) != 0 || has_paging && (value ^ old) & LME != 0 {
            return None;
        }
        self.efer.set(value & WRITABLE | old & LMA | SVME);
        Some(())
    }

    fn write_pat(&self, value: u64) -> Option<()> {
        let is_legal = value
            .to_le_bytes()
            .iter()
            .all(|kind| matches!(kind, 0 | 1 | 4..=7));
        is_legal.then(|| self.pat.set(value))
    }
}

/// All registers of one processor's guest.
pub struct Machine<M> {
    real: M,
    switched: Rc<Switched>,
}

impl<M: RealMsrs> Machine<M> {
    /// Creates the registers from the processor's own and those that VMRUN switches.
    pub const fn new(real: M, switched: Rc<Switched>) -> Self {
        Self { real, switched }
    }

    /// Writes `APIC_BASE`. The APIC's page stays where the hypervisor guards it, and the APIC does not
    /// enter x2APIC mode, in which the page is unused.
    fn write_apic_base(&self, value: u64) -> Option<()> {
        const ENABLE: u64 = 1 << 11;
        const BOOT_PROCESSOR: u64 = 1 << 8;
        let old = self.real.read(MsrIndex::new(APIC_BASE))?;
        if (old ^ value) & !(ENABLE | BOOT_PROCESSOR) != 0 {
            return None;
        }
        self.real.write(MsrIndex::new(APIC_BASE), value)
    }
}

/// The origin of an access makes no difference: what is refused to the guest, the responder's answers do not
/// reach either. A register that the processor does not have is unknown.
impl<M: RealMsrs> Registers for Machine<M> {
    fn read(&mut self, index: MsrIndex, _: Origin) -> Result<u64, RegisterFault> {
        match index.get() {
            _ if is_kept(index, Access::Read) => Err(RegisterFault::Invalid),
            EFER => Ok(self.switched.efer.get() & !SVME),
            PAT => Ok(self.switched.pat.get()),
            _ if !is_known(index) => Err(RegisterFault::Unknown),
            _ => self.real.read(index).ok_or(RegisterFault::Invalid),
        }
    }

    fn write(&mut self, index: MsrIndex, value: u64, _: Origin) -> Result<(), RegisterFault> {
        let written = match index.get() {
            _ if !is_known(index) => return Err(RegisterFault::Unknown),
            _ if is_kept(index, Access::Write) => None,
            EFER => self.switched.write_efer(value),
            PAT => self.switched.write_pat(value),
            APIC_BASE => self.write_apic_base(value),
            _ => self.real.write(index, value),
        };
        written.ok_or(RegisterFault::Invalid)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use core::cell::RefCell;

    /// Registers of a test, which accept any value but `u64::MAX`.
    #[derive(Clone, Default)]
    pub(crate) struct Known(pub(crate) Rc<RefCell<BTreeMap<u32, u64>>>);

    impl RealMsrs for Known {
        fn read(&self, index: MsrIndex) -> Option<u64> {
            self.0.borrow().get(&index.get()).copied()
        }

        fn write(&self, index: MsrIndex, value: u64) -> Option<()> {
            let mut known = self.0.borrow_mut();
            let register = known.get_mut(&index.get())?;
            (value != u64::MAX).then(|| *register = value)
        }
    }

    fn machine(known: &[(u32, u64)]) -> (Machine<Known>, Rc<Switched>) {
        let switched = Rc::new(Switched::default());
        switched.efer.set(SVME | LME | LMA);
        switched.cr0.set(1 << 31);
        let known = Known(Rc::new(RefCell::new(known.iter().copied().collect())));
        (Machine::new(known, Rc::clone(&switched)), switched)
    }

    fn read(machine: &mut Machine<Known>, index: u32) -> Result<u64, RegisterFault> {
        machine.read(MsrIndex::new(index), Origin::Guest)
    }

    fn write(machine: &mut Machine<Known>, index: u32, value: u64) -> Result<(), RegisterFault> {
        machine.write(MsrIndex::new(index), value, Origin::Guest)
    }

    #[test]
    fn efer_of_guest_has_no_svme_and_cannot_get_it() {
        let (mut machine, switched) = machine(&[]);
        assert_eq!(read(&mut machine, EFER), Ok(LME | LMA));
        assert_eq!(
            write(&mut machine, EFER, LME | SVME),
            Err(RegisterFault::Invalid)
        );
        assert_eq!(write(&mut machine, EFER, LME | 1), Ok(()));
        assert_eq!(switched.efer.get(), SVME | LME | LMA | 1);
    }

    #[test]
    fn write_of_lme_fails_while_paging_is_on() {
        let (mut machine, switched) = machine(&[(EFER, 0)]);
        assert_eq!(write(&mut machine, EFER, 0), Err(RegisterFault::Invalid));
        switched.cr0.set(0);
        assert_eq!(write(&mut machine, EFER, 0), Ok(()));
    }

    #[test]
    fn illegal_memory_type_in_pat_is_invalid() {
        let (mut machine, switched) = machine(&[(PAT, 0)]);
        assert_eq!(write(&mut machine, PAT, 2), Err(RegisterFault::Invalid));
        assert_eq!(write(&mut machine, PAT, 0x0007_0406_0007_0406), Ok(()));
        assert_eq!(switched.pat.get(), 0x0007_0406_0007_0406);
    }

    #[test]
    fn apic_keeps_its_page_and_its_mode() {
        let (mut machine, _) = machine(&[(APIC_BASE, 0xfee0_0900)]);
        for moved in [0xfed0_0900, 0xfee0_0d00] {
            assert_eq!(
                write(&mut machine, APIC_BASE, moved),
                Err(RegisterFault::Invalid)
            );
        }
        assert_eq!(write(&mut machine, APIC_BASE, 0xfee0_0100), Ok(()));
    }

    #[test]
    fn register_outside_of_list_is_unknown_and_refused_value_is_invalid() {
        let (mut machine, _) = machine(&[(0x10, 5)]);
        assert_eq!(read(&mut machine, 0x11), Err(RegisterFault::Unknown));
        assert_eq!(write(&mut machine, 0x11, 1), Err(RegisterFault::Unknown));
        assert_eq!(
            write(&mut machine, 0x10, u64::MAX),
            Err(RegisterFault::Invalid)
        );
        assert_eq!(read(&mut machine, 0x10), Ok(5));
    }

    #[test]
    fn register_that_hypervisor_keeps_is_invalid_even_where_processor_has_it() {
        let (mut machine, _) = machine(&[(0xc001_0117, 0x1000), (0xc001_001a, 1)]);
        assert_eq!(read(&mut machine, 0xc001_0117), Err(RegisterFault::Invalid));
        assert_eq!(
            write(&mut machine, 0xc001_0117, 0),
            Err(RegisterFault::Invalid)
        );
        assert_eq!(read(&mut machine, 0xc001_001a), Ok(1));
        assert_eq!(
            write(&mut machine, 0xc001_001a, 0),
            Err(RegisterFault::Invalid)
        );
    }
}
