//! The machine code of the guest and of its nested guest. Like the built-in guest's code it uses general
//! registers only.
//!
//! The host sets the registers before each step, and each step ends with an OUT of the guest. The
//! instructions of SVM are described in the APM, volume 3; each takes a physical address in RAX.

/// The machine code of the guest, which is a hypervisor. RBX holds the address of the nested guest's VMCB;
/// RDI holds the address where VMSAVE stores the guest's own state, which VMRUN does not save.
#[rustfmt::skip]
pub(crate) const GUEST: [u8; 0x36] = [
    // read: the guest's RDMSR
    0x0f, 0x32,             // 00  rdmsr
    0xeb, 0x22,             // 02  jmp  done
    // write: the guest's WRMSR
    0x0f, 0x30,             // 04  wrmsr
    0xeb, 0x1e,             // 06  jmp  done
    // enter: VMLOAD loads the nested guest's FS, GS, TR, LDTR and the registers of SYSCALL and SYSENTER;
    // VMRUN loads the rest, and returns at an intercept
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
    // done: exit to the host
    0xe6, DONE_PORT,        // 26  out  0xf4, al
    0xeb, 0xfc,             // 28  jmp  done
    // fault: the #GP handler; the stack has the error code, and RIP above it
    0xe6, FAULT_PORT,       // 2a  out  0xf5, al
    0xeb, 0xfc,             // 2c  jmp  fault
    // load: VMLOAD alone
    0x48, 0x89, 0xd8,       // 2e  mov  rax, rbx
    0x0f, 0x01, 0xda,       // 31  vmload
    0xeb, 0xf0,             // 34  jmp  done
];

/// The machine code of the nested guest.
#[rustfmt::skip]
pub(crate) const NESTED: [u8; 0xa] = [
    // read: the nested guest's RDMSR
    0x0f, 0x32,             // 00  rdmsr
    0x0f, 0x01, 0xd9,       // 02  vmmcall
    // write: the nested guest's WRMSR
    0x0f, 0x30,             // 05  wrmsr
    0x0f, 0x01, 0xd9,       // 07  vmmcall
];

/// The ports of the OUTs that end a step.
pub(crate) const DONE_PORT: u8 = 0xf4;
pub(crate) const FAULT_PORT: u8 = 0xf5;

/// Offsets of entry points in [`GUEST`], in bytes.
pub(crate) const GUEST_READ: u64 = 0x00;
pub(crate) const GUEST_WRITE: u64 = 0x04;
pub(crate) const ENTER: u64 = 0x08;
pub(crate) const FAULT: u64 = 0x2a;
pub(crate) const LOAD: u64 = 0x2e;

/// Offsets of entry points in [`NESTED`], in bytes.
pub(crate) const NESTED_READ: u64 = 0x00;
pub(crate) const NESTED_WRITE: u64 = 0x05;

/// The length of RDMSR and of WRMSR, in bytes.
pub(crate) const LENGTH: u64 = 2;

#[test]
fn nested_code_jumps_and_entry_points_match_their_labels() {
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
