# The entry from the boot loader, the hypervisor's exceptions, the world switch, and guarded MSR accesses.

# The PVH note, by which QEMU's -kernel finds the 32-bit entry (Xen's document "x86/HVM direct boot ABI").
.section .note.pvh, "a", @note
.align 4
.long 4, 4, 18
.asciz "Xen"
.long _start32

.section .text.boot, "ax", @progbits
.code32
# Paging is off, and EBX holds the address of the start information.
.globl _start32
_start32:
  cli
  cld
  mov $stack_top, %esp
  mov %ebx, %edi             # CPUID writes EBX
  mov $0x80000000, %eax
  cpuid
  cmp $0x80000001, %eax
  jb no_svm
  mov $0x80000001, %eax      # without SVM, setting EFER.SVME would be #GP and then a triple fault
  cpuid
  test $4, %ecx
  jz no_svm
  # The page table maps 512 GiB one to one, by pages of 1 GiB.
  mov $host_pdpt, %eax
  or $3, %eax
  mov %eax, host_pml4
  xor %ecx, %ecx
1: mov %ecx, %eax
  shl $30, %eax
  or $0x83, %eax
  mov %eax, host_pdpt(,%ecx,8)
  mov %ecx, %eax
  shr $2, %eax
  mov %eax, host_pdpt+4(,%ecx,8)
  inc %ecx
  cmp $512, %ecx
  jne 1b
  call enter_long_mode
  lgdt gdt_register
  ljmp $8, $boot_processor

# Turns on PAE, SSE, SVM, long mode and paging. Write protection stays off: firmware's tables may be anywhere.
enter_long_mode:
  mov %cr4, %eax
  or $0x620, %eax
  mov %eax, %cr4
  mov $host_pml4, %eax
  mov %eax, %cr3
  mov $0xc0000080, %ecx
  rdmsr
  or $0x1100, %eax
  wrmsr
  mov %cr0, %eax
  and $0x9ffffffb, %eax      # caches on, no emulation of x87
  or $0x80000003, %eax
  mov %eax, %cr0
  ret

# Says on the first serial port and on the debug console that there is no SVM, and ends the machine.
no_svm:
  mov $no_svm_text, %esi
1: lodsb
  test %al, %al
  jz 2f
  mov $0x3f8, %dx
  outb %al, %dx
  mov $0xe9, %dx
  outb %al, %dx
  jmp 1b
2: mov $0x39, %al
  mov $0xf4, %dx
  outb %al, %dx
  lidt no_idt
  int3
no_svm_text: .asciz "msrgate-svm: this processor has no SVM; start QEMU with -cpu EPYC,+svm,+npt\n"
.align 4
no_idt: .word 0
  .quad 0

.code64
boot_processor:
  mov $16, %eax
  mov %eax, %ds
  mov %eax, %es
  mov %eax, %ss
  mov %edi, %edi
  # GIF stays 0 in the hypervisor: nothing interrupts it, not even an NMI. VMRUN sets GIF for the guest.
  clgi
  call boot_processor_main
  ud2

# The 32 exceptions: each pushes an error code, if the processor did not, and its vector. Only #GP at a guarded
# access returns.
.align 16
.globl exception_stubs
exception_stubs:
.set vector, 0
.rept 32
  .align 16
  .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
  .else
  pushq $0
  .endif
  pushq $vector
  jmp exception
  .set vector, vector + 1
.endr
exception:
  cmpq $2, (%rsp)            # an NMI that the hypervisor let in; see take_nmi
  je 3f
  cmpq $13, (%rsp)
  jne 2f
  cmpq $rdmsr_instruction, 16(%rsp)
  je 1f
  cmpq $wrmsr_instruction, 16(%rsp)
  jne 2f
1: movq $msr_fault, 16(%rsp)
3: add $16, %rsp
  iretq
2: mov %rsp, %rdi
  and $-16, %rsp
  call exception_in_hypervisor
  ud2

# u32 read_msr(u32 index, u64 *value), u32 write_msr(u32 index, u64 value): 0, or 1 if the processor raised #GP.
.globl read_msr, write_msr
read_msr:
  mov %edi, %ecx
rdmsr_instruction: rdmsr
  mov %eax, (%rsi)
  mov %edx, 4(%rsi)
  xor %eax, %eax
  ret
write_msr:
  mov %edi, %ecx
  mov %esi, %eax
  mov %rsi, %rdx
  shr $32, %rdx
wrmsr_instruction: wrmsr
  xor %eax, %eax
  ret
msr_fault:
  mov $1, %eax
  ret

# void take_nmi(void): lets in the NMI that made the guest exit, which would otherwise make each VMRUN exit.
.globl take_nmi
take_nmi:
  stgi
  nop
  clgi
  ret

# void run_guest(u64 vmcb, struct Guest *guest). VMRUN switches RAX, RSP, RIP, RFLAGS, CR0, CR2, CR3, CR4, EFER, DR6, DR7,
# CS, SS, DS, ES, GDTR and IDTR; this function switches the other general registers, x87 and SSE.
.globl run_guest
run_guest:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  push %rsi
  mov %rdi, %rax
  fxrstor64 128(%rsi)
  mov 0(%rsi), %rbx
  mov 8(%rsi), %rcx
  mov 16(%rsi), %rdx
  mov 32(%rsi), %rdi
  mov 40(%rsi), %rbp
  mov 48(%rsi), %r8
  mov 56(%rsi), %r9
  mov 64(%rsi), %r10
  mov 72(%rsi), %r11
  mov 80(%rsi), %r12
  mov 88(%rsi), %r13
  mov 96(%rsi), %r14
  mov 104(%rsi), %r15
  mov 24(%rsi), %rsi
  vmrun %rax
  mov (%rsp), %rax
  mov %rbx, 0(%rax)
  mov %rcx, 8(%rax)
  mov %rdx, 16(%rax)
  mov %rsi, 24(%rax)
  mov %rdi, 32(%rax)
  mov %rbp, 40(%rax)
  mov %r8, 48(%rax)
  mov %r9, 56(%rax)
  mov %r10, 64(%rax)
  mov %r11, 72(%rax)
  mov %r12, 80(%rax)
  mov %r13, 88(%rax)
  mov %r14, 96(%rax)
  mov %r15, 104(%rax)
  fxsave64 128(%rax)
  pop %rsi
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret

.align 8
gdt: .quad 0, 0x00209a0000000000, 0x0000920000000000, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdt_register: .word 39
  .quad gdt

# The way of another processor from its SIPI to long mode. The first part is copied to TRAMPOLINE.
.code16
.globl trampoline, trampoline_end
trampoline:
  cli
  cld
  xor %ax, %ax
  mov %ax, %ds
  lgdtl (trampoline_gdt - trampoline + 0x8000)
  mov $0x11, %eax
  mov %eax, %cr0
  ljmpl $0x18, $other_processor_32
trampoline_gdt: .word 39
  .long gdt
trampoline_end:
.code32
other_processor_32:
  mov $0x20, %eax
  mov %eax, %ds
  mov %eax, %es
  mov %eax, %ss
  # A stack of its own: the number of the processor, counted from 1, chooses it.
  mov $1, %edi
  lock xadd %edi, processors_started
  cmp $8, %edi               # MOST in hardware.rs: there is no stack for more
  jae 1f
  mov %edi, %eax
  shl $14, %eax
  lea other_stacks(%eax), %esp
  push %edi
  call enter_long_mode
  pop %edi
  ljmp $8, $other_processor
1: hlt
  jmp 1b
.code64
other_processor:
  mov $16, %eax
  mov %eax, %ds
  mov %eax, %es
  mov %eax, %ss
  mov %edi, %edi
  clgi
  call other_processor_main
  ud2

.section .bss
.align 4096
host_pml4: .skip 4096
host_pdpt: .skip 4096
stack: .skip 65536
stack_top:
other_stacks: .skip 7 * 16384
