//! The machine code of the guest and of its nested guest. General registers only, as everywhere here.
//!
//! The host sets the registers before each step, and each step ends with an OUT of the guest. The
//! instructions of SVM are AMD's (APM volume 3): each takes an address of physical memory in RAX.

/// The guest, a hypervisor. In RBX is where the nested guest's VMCB is, in RDI where the part of the
/// guest's own state goes that VMRUN leaves alone (VMSAVE).
#[rustfmt::skip]
pub(crate) const GUEST: [u8; 0x36] = [
    // read
    0x0f, 0x32,             // 00  rdmsr
    0xeb, 0x22,             // 02  jmp  done
    // write
    0x0f, 0x30,             // 04  wrmsr
    0xeb, 0x1e,             // 06  jmp  done
    // enter: what another guest is to see of FS, GS, TR, LDTR, the registers of SYSCALL and
    // SYSENTER is loaded by VMLOAD; all else by VMRUN, which comes back at an intercept
    0x0f, 0x01, 0xdd,       // 08  clgi
    0x48, 0x89, 0xf8,       // 0b  mov  rax, rdi
    0x0f, 0x01, 0xdb,       // 0e  vmsave
    0x48, 0x89, 0xd8,       // 11  mov  rax, rbx
    0x0f, 0x01, 0xda,       // 14  vmload
    0x0f, 0x01, 0xd8,       // 17  vmrun
    0x0f, 0x01, 0xdb,       // 1a  vmsave
    0x48, 0x89, 0xf8,       // 1d  mov  rax, rdi
    0x0f, 0x01, 0xda,       // 20  vmload
    0x0f, 0x01, 0xdc,       // 23  stgi
    // done: leave to the host
    0xe6, DONE_PORT,        // 26  out  0xf4, al
    0xeb, 0xfc,             // 28  jmp  done
    // fault: the #GP handler; the error code is on the stack, and above it RIP
    0xe6, FAULT_PORT,       // 2a  out  0xf5, al
    0xeb, 0xfc,             // 2c  jmp  fault
    // load: VMLOAD alone
    0x48, 0x89, 0xd8,       // 2e  mov  rax, rbx
    0x0f, 0x01, 0xda,       // 31  vmload
    0xeb, 0xf0,             // 34  jmp  done
];

/// The nested guest.
#[rustfmt::skip]
pub(crate) const NESTED: [u8; 0xa] = [
    // read
    0x0f, 0x32,             // 00  rdmsr
    0x0f, 0x01, 0xd9,       // 02  vmmcall
    // write
    0x0f, 0x30,             // 05  wrmsr
    0x0f, 0x01, 0xd9,       // 07  vmmcall
];

/// The ports of the OUTs that end a step.
pub(crate) const DONE_PORT: u8 = 0xf4;
pub(crate) const FAULT_PORT: u8 = 0xf5;

/// Where things are in [`GUEST`], in bytes from its start.
pub(crate) const GUEST_READ: u64 = 0x00;
pub(crate) const GUEST_WRITE: u64 = 0x04;
pub(crate) const ENTER: u64 = 0x08;
pub(crate) const FAULT: u64 = 0x2a;
pub(crate) const LOAD: u64 = 0x2e;

/// And in [`NESTED`].
pub(crate) const NESTED_READ: u64 = 0x00;
pub(crate) const NESTED_WRITE: u64 = 0x05;

/// Bytes of an RDMSR, and of a WRMSR.
pub(crate) const LENGTH: u64 = 2;

#[test]
fn every_jump_and_entry_is_where_its_comment_says() {
    let target = |at: usize| {
        assert_eq!(GUEST[at], 0xeb);
        let next = u64::try_from(at + 2).unwrap();
        next.wrapping_add_signed(i8::from_le_bytes([GUEST[at + 1]]).into())
    };
    for jump in [0x02, 0x06, 0x28, 0x34] {
        assert_eq!(target(jump), 0x26, "{jump:#x}");
    }
    assert_eq!(target(0x2c), FAULT);
    for (code, entry, wanted) in [
        (&GUEST[..], GUEST_READ, &[0x0f, 0x32][..]),
        (&GUEST, GUEST_WRITE, &[0x0f, 0x30]),
        (&GUEST, ENTER, &[0x0f, 0x01, 0xdd]),
        (&GUEST, FAULT, &[0xe6, FAULT_PORT]),
        (&GUEST, LOAD, &[0x48, 0x89, 0xd8, 0x0f, 0x01, 0xda]),
        (&NESTED, NESTED_READ, &[0x0f, 0x32]),
        (&NESTED, NESTED_WRITE, &[0x0f, 0x30]),
    ] {
        let code = &code[usize::try_from(entry).unwrap()..];
        assert!(code.starts_with(wanted), "{entry:#x}");
    }
}
