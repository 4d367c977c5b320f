//! The machine code of the built-in guest. The code addresses all its data through RSI, so it runs at any
//! address.
//!
//! RSI points at the current [slot](super::slot); RAX, RCX and RDX are the operands of the access; the CPU
//! uses RSP when it delivers a #GP. The code has no SSE and no rare instruction, because on some hosts KVM's
//! instruction emulator runs it.

/// The machine code, which is loaded at the start of the guest's code page.
#[rustfmt::skip]
pub(super) const CODE: [u8; 0x57] = [
    // next: go on to the next slot
    0x48, 0x83, 0xc6, 0x40,       // 00  add  rsi, 0x40
    // start: load the slot's values, and jump to the code that the slot names
    0x48, 0x8b, 0x4e, 0x18,       // 04  mov  rcx, [rsi + 0x18]
    0x48, 0x8b, 0x46, 0x08,       // 08  mov  rax, [rsi + 0x08]
    0x48, 0x8b, 0x56, 0x10,       // 0c  mov  rdx, [rsi + 0x10]
    0xff, 0x26,                   // 10  jmp  [rsi]
    // read
    0x0f, 0x32,                   // 12  rdmsr
    0xeb, 0x0b,                   // 14  jmp  done
    // write
    0x0f, 0x30,                   // 16  wrmsr
    0xeb, 0x07,                   // 18  jmp  done
    // time
    0x0f, 0x31,                   // 1a  rdtsc
    0xeb, 0x03,                   // 1c  jmp  done
    // swap
    0x0f, 0x01, 0xf8,             // 1e  swapgs
    // done: the access completed without #GP
    0x48, 0x89, 0x46, 0x08,       // 21  mov  [rsi + 0x08], rax
    0x48, 0x89, 0x56, 0x10,       // 25  mov  [rsi + 0x10], rdx
    0x48, 0x89, 0x4e, 0x18,       // 29  mov  [rsi + 0x18], rcx
    0xc6, 0x46, 0x20, 0x01,       // 2d  mov  byte [rsi + 0x20], 1
    0xeb, 0xcd,                   // 31  jmp  next
    // fault: the #GP handler; it pops the six words that the CPU has pushed, without an IRET
    0x48, 0x89, 0x46, 0x08,       // 33  mov  [rsi + 0x08], rax
    0x48, 0x89, 0x56, 0x10,       // 37  mov  [rsi + 0x10], rdx
    0x48, 0x89, 0x4e, 0x18,       // 3b  mov  [rsi + 0x18], rcx
    0x59,                         // 3f  pop  rcx              the error code
    0x48, 0x89, 0x4e, 0x28,       // 40  mov  [rsi + 0x28], rcx
    0x59,                         // 44  pop  rcx              the faulting RIP
    0x48, 0x89, 0x4e, 0x30,       // 45  mov  [rsi + 0x30], rcx
    0x48, 0x83, 0xc4, 0x20,       // 49  add  rsp, 0x20        CS, RFLAGS, RSP, SS
    0xc6, 0x46, 0x20, 0x02,       // 4d  mov  byte [rsi + 0x20], 2
    0xeb, 0xad,                   // 51  jmp  next
    // end: exit to the host; if the guest is resumed, exit again
    0xe6, END_PORT,               // 53  out  0xf4, al
    0xeb, 0xfc,                   // 55  jmp  end
];

/// The port of the OUT that ends a script.
pub(super) const END_PORT: u8 = 0xf4;

/// The offsets of the entry points in [`CODE`], in bytes.
pub(super) const START: u64 = 0x04;
pub(super) const READ: u64 = 0x12;
pub(super) const WRITE: u64 = 0x16;
pub(super) const TIME: u64 = 0x1a;
pub(super) const SWAP: u64 = 0x1e;
pub(super) const FAULT: u64 = 0x33;
pub(super) const END: u64 = 0x53;

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the target of the two-byte jump at offset `at` of the code.
    fn target(at: usize) -> u64 {
        assert_eq!(CODE[at], 0xeb);
        let next = u64::try_from(at + 2).unwrap();
        next.wrapping_add_signed(i8::from_le_bytes([CODE[at + 1]]).into())
    }

    #[test]
    fn jumps_in_code_of_built_in_guest_reach_their_labels() {
        for jump in [0x14, 0x18, 0x1c] {
            assert_eq!(target(jump), 0x21);
        }
        for jump in [0x31, 0x51] {
            assert_eq!(target(jump), 0);
        }
        assert_eq!(target(0x55), END);
    }

    #[test]
    fn entry_points_in_code_of_built_in_guest_are_at_named_instructions() {
        for (entry, wanted) in [
            (START, &[0x48, 0x8b][..]),
            (READ, &[0x0f, 0x32]),
            (WRITE, &[0x0f, 0x30]),
            (TIME, &[0x0f, 0x31]),
            (SWAP, &[0x0f, 0x01, 0xf8]),
            (FAULT, &[0x48, 0x89]),
            (END, &[0xe6, END_PORT]),
        ] {
            assert!(
                CODE[usize::try_from(entry).unwrap()..].starts_with(wanted),
                "{entry:#x}"
            );
        }
    }
}
