//! The guest's instruction that exited: its length, and the value that it stores.
//!
//! Processors with NRIPS give the address of the next instruction in the VMCB, and those with decode assists
//! the instruction's bytes. QEMU's emulator has neither, so the hypervisor reads the bytes itself.

use crate::memory::Memory;
use crate::vmcb::{Vmcb, field};
use crate::walk;

/// The greatest length of an instruction, in bytes (APM volume 3, 1.1).
const LONGEST: usize = 15;

/// The second byte of an instruction's opcode, whose first byte is 0x0f.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// RDMSR, `0f 32`.
    Rdmsr = 0x32,
    /// WRMSR, `0f 30`.
    Wrmsr = 0x30,
    /// CPUID, `0f a2`.
    Cpuid = 0xa2,
    /// MOV to a control register, `0f 22`.
    MovToControl = 0x22,
    /// VMMCALL, `0f 01 d9`: the third byte is not compared.
    Group7 = 0x01,
}

/// The bytes at the guest's RIP, up to the 15 that an instruction may have. There are fewer if the next page is missing.
pub struct Code {
    bytes: [u8; LONGEST],
    len: usize,
    is_long: bool,
}

/// A 32-bit store of the guest to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// The value that the guest stores.
    pub value: u32,
    /// The instruction's length, in bytes.
    pub len: u64,
}

impl Code {
    /// Reads the instruction at the guest's RIP.
    #[must_use]
    pub fn read(memory: &impl Memory, vmcb: &Vmcb) -> Self {
        let is_long = vmcb.is_long_code();
        let base = if is_long { 0 } else { vmcb.get(field::CS_BASE) };
        let mut code = Self {
            bytes: [0; LONGEST],
            len: 0,
            is_long,
        };
        // The instruction may end on the next page.
        let start = base.wrapping_add(vmcb.get(field::RIP));
        let on_page = 0x1000 - usize::from(u16::try_from(start & 0xfff).unwrap_or(0));
        let first = on_page.min(LONGEST);
        if code.extend(memory, vmcb, start, first) == Some(()) && first < LONGEST {
            code.extend(
                memory,
                vmcb,
                start.wrapping_add(first as u64),
                LONGEST - first,
            );
        }
        code
    }

    /// Adds `len` bytes, all on one page, from the linear address `linear` on.
    fn extend(&mut self, memory: &impl Memory, vmcb: &Vmcb, linear: u64, len: usize) -> Option<()> {
        let address = walk::physical(memory, vmcb, linear)?;
        let end = self.len + len;
        memory.read(address, &mut self.bytes[self.len..end])?;
        self.len = end;
        Some(())
    }

    /// Returns the number of prefixes, and the REX prefix or 0.
    fn prefixes(&self) -> (usize, u8) {
        let mut rex = 0;
        for (at, byte) in self.bytes[..self.len].iter().enumerate() {
            match byte {
                0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 => rex = 0,
                0x40..=0x4f if self.is_long => rex = *byte,
                _ => return (at, rex),
            }
        }
        (self.len, rex)
    }

    fn at(&self, at: usize) -> Option<u8> {
        self.bytes[..self.len].get(at).copied()
    }

    /// Returns the length of the instruction, if its opcode is `opcode`. Prefixes, which compilers do not
    /// write, count too.
    #[must_use]
    pub fn len_of(&self, opcode: Opcode) -> Option<u64> {
        let (prefixes, _) = self.prefixes();
        let is_opcode = self.at(prefixes)? == 0x0f && self.at(prefixes + 1)? == opcode as u8;
        let rest = if opcode == Opcode::Cpuid || opcode == Opcode::Rdmsr || opcode == Opcode::Wrmsr
        {
            2
        } else {
            3
        };
        is_opcode.then_some((prefixes + rest) as u64)
    }

    /// Returns the store that the instruction makes: a MOV of 32 bits from a register, from an immediate or
    /// from EAX. Linux and compilers write to an APIC by no other instruction. `register` returns the value
    /// of the general register with a number (APM volume 3, 1.4.1).
    #[must_use]
    pub fn store(&self, register: impl Fn(u8) -> u64) -> Option<Store> {
        let (prefixes, rex) = self.prefixes();
        // With 0x66 the operand has 16 bits, with 0x67 the address is another: no driver of an APIC uses them.
        if self.bytes[..prefixes]
            .iter()
            .any(|byte| matches!(byte, 0x66 | 0x67 | 0xf0..=0xf3))
        {
            return None;
        }
        let opcode = self.at(prefixes)?;
        if opcode == 0xa3 && rex & 8 == 0 {
            let address = if self.is_long { 8 } else { 4 };
            let len = (prefixes + 1 + address) as u64;
            return Some(Store {
                value: low(register(0)),
                len,
            });
        }
        if !matches!(opcode, 0x89 | 0xc7) || rex & 8 != 0 {
            return None;
        }
        let (number, after) = self.operand(prefixes + 1)?;
        if opcode == 0xc7 {
            let bytes = self.bytes[..self.len].get(after..after + 4)?;
            let value = u32::from_le_bytes(bytes.try_into().ok()?);
            return Some(Store {
                value,
                len: (after + 4) as u64,
            });
        }
        let value = low(register(number | (rex & 4) << 1));
        Some(Store {
            value,
            len: after as u64,
        })
    }

    /// Decodes the byte `ModRM` at `at`: the number of its register, and the position after the operand in
    /// memory. Returns `None` if the operand is a register.
    fn operand(&self, at: usize) -> Option<(u8, usize)> {
        let modrm = self.at(at)?;
        let (mode, place) = (modrm >> 6, modrm & 7);
        if mode == 3 {
            return None;
        }
        let sib = if place == 4 {
            Some(self.at(at + 1)?)
        } else {
            None
        };
        let displacement = match mode {
            0 if place == 5 || sib.is_some_and(|sib| sib & 7 == 5) => 4,
            0 => 0,
            1 => 1,
            _ => 4,
        };
        let after = at + 1 + usize::from(sib.is_some()) + displacement;
        Some((modrm >> 3 & 7, after))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is stored")]
const fn low(register: u64) -> u32 {
    register as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::Ram;

    /// The code of a guest in 32-bit mode without paging, or of one in long mode with one large page.
    fn code(bytes: &[u8], is_long: bool) -> Code {
        let mut ram = Ram::of_mib(1);
        ram.write(0x8000, bytes).unwrap();
        let mut vmcb = Vmcb::zeroed();
        vmcb.put(field::RIP, 0x8000);
        if is_long {
            for (at, entry) in [(0x1000, 0x2003u64), (0x2000, 0x83)] {
                ram.write(at, &entry.to_le_bytes()).unwrap();
            }
            vmcb.put(field::CR0, 0x8000_0001);
            vmcb.put(field::CR4, 0x20);
            vmcb.put(field::CR3, 0x1000);
            vmcb.put(field::EFER, crate::vmcb::LMA);
            vmcb.put(field::CS_ATTRIBUTES, 0x200);
        }
        Code::read(&ram, &vmcb)
    }

    #[test]
    fn prefixes_count_for_length_of_rdmsr() {
        assert_eq!(code(&[0x0f, 0x32], true).len_of(Opcode::Rdmsr), Some(2));
        assert_eq!(
            code(&[0x3e, 0x67, 0x0f, 0x32], true).len_of(Opcode::Rdmsr),
            Some(4)
        );
        assert_eq!(
            code(&[0x48, 0x0f, 0x30], true).len_of(Opcode::Wrmsr),
            Some(3)
        );
    }

    #[test]
    fn other_instruction_has_no_length() {
        assert_eq!(code(&[0x0f, 0x30], true).len_of(Opcode::Rdmsr), None);
        assert_eq!(code(&[0x90, 0x0f, 0x32], true).len_of(Opcode::Rdmsr), None);
        // In 32-bit code 0x48 is DEC EAX and no prefix.
        assert_eq!(code(&[0x48, 0x0f, 0x32], false).len_of(Opcode::Rdmsr), None);
        assert_eq!(code(&[0x66; 15], true).len_of(Opcode::Rdmsr), None);
    }

    #[test]
    fn instruction_cut_by_missing_page_has_no_length() {
        let mut ram = Ram::of_mib(1);
        ram.write(0xf_ffff, &[0x0f]).unwrap();
        let mut vmcb = Vmcb::zeroed();
        vmcb.put(field::RIP, 0xf_ffff);
        assert_eq!(Code::read(&ram, &vmcb).len_of(Opcode::Rdmsr), None);
    }

    #[test]
    fn stores_of_32_bits_are_decoded() {
        let register = |number: u8| 0x1_0000_0000 | u64::from(number);
        let store = |bytes: &[u8]| code(bytes, true).store(register);
        // mov %eax, (%rdi); mov %r9d, 0x300(%rax); movl $0x4500, 0x300(%rdi); mov %esi, (%rax,%rbx)
        assert_eq!(store(&[0x89, 0x07]), Some(Store { value: 0, len: 2 }));
        assert_eq!(
            store(&[0x44, 0x89, 0x88, 0, 3, 0, 0]),
            Some(Store { value: 9, len: 7 })
        );
        assert_eq!(
            store(&[0xc7, 0x87, 0, 3, 0, 0, 0, 0x45, 0, 0]),
            Some(Store {
                value: 0x4500,
                len: 10
            })
        );
        assert_eq!(store(&[0x89, 0x34, 0x18]), Some(Store { value: 6, len: 3 }));
        // mov %eax, absolute address of 64 bits
        assert_eq!(
            store(&[0xa3, 0, 3, 0xe0, 0xfe, 0, 0, 0, 0]),
            Some(Store { value: 0, len: 9 })
        );
    }

    #[test]
    fn stores_of_other_sizes_and_other_instructions_are_not_decoded() {
        let store = |bytes: &[u8]| code(bytes, true).store(|_| 0);
        assert_eq!(store(&[0x48, 0x89, 0x07]), None); // 64 bits
        assert_eq!(store(&[0x66, 0x89, 0x07]), None); // 16 bits
        assert_eq!(store(&[0x88, 0x07]), None); // 8 bits
        assert_eq!(store(&[0x89, 0xc7]), None); // to a register
        assert_eq!(store(&[0x87, 0x07]), None); // xchg
    }
}
