//! Tests of devices: a VMM's own, and the microcode loader.

use std::sync::{Arc, Mutex};

use msrgate_filter::MsrIndex;

use super::machine::{Saw, TestGuest, on_each, policy};
use crate::errno::CallErrno;
use crate::gate::{
    BadState, Device, DeviceContext, GateOptions, GuestMemory, GuestPhysical, NotMapped, VcpuId,
    Written,
};
use crate::measure::guest::Op::{Read, Write};

/// An MSR that KVM does not offer to any guest.
const SPARE: MsrIndex = MsrIndex::new(0x1_0000);

/// A device of the VMM's, which answers for a handler in place of the VMM's loop.
struct Doubler(u64);

impl Device for Doubler {
    fn read(&mut self, _: MsrIndex, _: &mut dyn DeviceContext) -> Result<Option<u64>, CallErrno> {
        Ok(Some(self.0 * 2))
    }

    fn write(
        &mut self,
        _: MsrIndex,
        value: u64,
        _: &mut dyn DeviceContext,
    ) -> Result<Written, CallErrno> {
        self.0 = value;
        Ok(if value == 13 {
            Written::Fault
        } else {
            Written::Done
        })
    }

    fn reset(&mut self, _: &mut dyn DeviceContext) -> Result<(), CallErrno> {
        self.0 = 1;
        Ok(())
    }

    fn save(&self) -> Vec<u8> {
        self.0.to_le_bytes().into()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), BadState> {
        self.0 = u64::from_le_bytes(bytes.try_into().map_err(|_| BadState)?);
        Ok(())
    }
}

#[test]
fn device_of_vmm_answers_accesses_for_which_policy_names_its_handler() {
    let program = policy(
        "default = 'deny'",
        "0x10000 = { read = { handler = 'double' }, write = { handler = 'double' } }",
    );
    let options = GateOptions::new().device("double", |_: VcpuId| Box::new(Doubler(0)));
    on_each(&program, 1, &options, |machine| {
        let saw =
            machine
                .first()
                .run(&[Read(SPARE), Write(SPARE, 21), Read(SPARE), Write(SPARE, 13)]);
        assert_eq!(
            saw,
            [Saw::Value(2), Saw::Written, Saw::Value(42), Saw::Fault]
        );
    });
}

/// The built-in guest's memory, in which linear and physical addresses are equal.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<Region>>>);

/// An address, and the bytes there.
type Region = (u64, Vec<u8>);

impl GuestMemory for Memory {
    fn read(&self, from: GuestPhysical, into: &mut [u8]) -> Result<(), NotMapped> {
        let regions = self.0.lock().unwrap();
        for (start, bytes) in regions.iter() {
            if let Some(offset) = from.get().checked_sub(*start)
                && let Ok(offset) = usize::try_from(offset)
                && let Some(part) = bytes.get(offset..).and_then(|rest| rest.get(..into.len()))
            {
                into.copy_from_slice(part);
                return Ok(());
            }
        }
        Err(NotMapped)
    }
}

/// A microcode update that crosses a page changes the revision, and the revision survives a restore. An
/// update whose header is wrong changes nothing, and an update at an unmapped address is a #GP.
#[test]
fn microcode_update_changes_revision_which_vcpu_restore_keeps() {
    let trigger = MsrIndex::new(0x79);
    let revision = MsrIndex::new(0x8b);
    let program = policy(
        "default = 'deny'",
        "IA32_BIOS_UPDT_TRIG = { device = 'microcode' }\nIA32_BIOS_SIGN_ID = 'rw'\n\
         [device.microcode]\nrevision = '0x2b000000'\nupdate = 'accept'",
    );
    let memory = Memory::default();
    let options = GateOptions::new().memory(Arc::new(memory.clone()));
    on_each(&program, 1, &options, |machine| {
        let signature = machine
            .cpuid
            .iter()
            .find(|leaf| leaf.function == 1)
            .unwrap()
            .eax;
        let header = |signature: u32| -> Vec<u8> {
            let fields = [
                1,
                0x2b00_0590,
                0,
                signature,
                0,
                1,
                0,
                2000,
                2048,
                0,
                0,
                0_u32,
            ];
            fields
                .iter()
                .flat_map(|field| field.to_le_bytes())
                .collect()
        };
        // The guest's memory at the addresses that its page tables map, with the microcode updates.
        *memory.0.lock().unwrap() = vec![
            (0x1ff0, header(signature)[..0x10].to_vec()),
            (0x2000, header(signature)[0x10..].to_vec()),
            (0x3000, header(signature ^ 1)),
        ];
        let vendor = machine.cpuid[0];
        assert_eq!(vendor.function, 0);
        let is_amd = [*b"Auth", *b"Hygo"].contains(&vendor.ebx.to_le_bytes());
        let shown = |revision: u64| if is_amd { revision } else { revision << 32 };
        let saw = machine.first().run(&[
            Read(revision),
            Write(trigger, 0x3030),
            Read(revision),
            Write(trigger, 0x9_0000),
            Write(trigger, 1 << 62),
            Write(trigger, 0x2020),
            Write(revision, 0),
            Read(revision),
            Read(trigger),
        ]);
        assert_eq!(
            saw,
            [
                Saw::Value(shown(0x2b00_0000)),
                Saw::Written,
                Saw::Value(shown(0x2b00_0000)),
                Saw::Fault,
                Saw::Fault,
                Saw::Written,
                Saw::Written,
                Saw::Value(shown(0x2b00_0590)),
                Saw::Fault,
            ]
        );
        // A reset of the vCPU gives the device the policy's revision again, as on another host
        // before a restore.
        let vcpu = machine.first();
        let saved = vcpu.guest.save(&mut vcpu.msrs).unwrap();
        vcpu.guest.reset(&mut vcpu.msrs).unwrap();
        assert_eq!(
            vcpu.run(&[Read(revision)]),
            [Saw::Value(shown(0x2b00_0000))]
        );
        vcpu.guest.restore(&mut vcpu.msrs, &saved).unwrap();
        assert_eq!(
            vcpu.run(&[Read(revision)]),
            [Saw::Value(shown(0x2b00_0590))]
        );
    });
}
