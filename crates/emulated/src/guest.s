# A multiboot guest in ring 0, 32-bit code, that executes the steps of a table and sends the table, with the result of each step,
# over the first serial port. The test puts the image at 0x400000 and the table behind it.
#
# All labels are local to the assembler (.L): others would be symbols of the program that contains this code.
#
# A step has four words: operation, index, low half, high half of a value. The result replaces them: 0 if the
# instruction was completed, or the vector of its exception; the index; and EDX:EAX.
.section .rodata.msrgate_svm_guest, "a", @progbits
.code32
.globl msrgate_svm_guest, msrgate_svm_guest_end
msrgate_svm_guest:
.set .Lguest_base, 0x400000
  jmp 1f
.align 4
  .long 0x1badb002, 3, -(0x1badb002 + 3)
1:
  mov $(.Lguest_base + .Lguest_stack_top - msrgate_svm_guest), %esp
  lgdt (.Lguest_base + .Lguest_gdt_register - msrgate_svm_guest)
  ljmp $8, $(.Lguest_base + 2f - msrgate_svm_guest)
2:
  mov $16, %eax
  mov %eax, %ds
  mov %eax, %es
  mov %eax, %ss
  # Gates for #UD, #GP and #PF.
  mov $(.Lguest_base + .Lguest_on_ud - msrgate_svm_guest), %eax
  mov $6, %ebx
  call .Lguest_gate
  mov $(.Lguest_base + .Lguest_on_gp - msrgate_svm_guest), %eax
  mov $13, %ebx
  call .Lguest_gate
  lidt (.Lguest_base + .Lguest_idt_register - msrgate_svm_guest)
  mov $(.Lguest_base + msrgate_svm_guest_end - msrgate_svm_guest), %ebp
.Lguest_next:
  mov (%ebp), %ebx
  cmp $0, %ebx
  je .Lguest_send
  mov $(.Lguest_base + .Lguest_completed - msrgate_svm_guest), %edi
  mov 4(%ebp), %ecx
  mov 8(%ebp), %eax
  mov 12(%ebp), %edx
  cmp $1, %ebx
  je .Lguest_op_read
  cmp $2, %ebx
  je .Lguest_op_write
  cmp $3, %ebx
  je .Lguest_op_prefixed
  cmp $4, %ebx
  je .Lguest_op_timed
  # Operations from 16 on are other instructions, at multiples of 8 bytes.
  sub $16, %ebx
  shl $3, %ebx
  add $(.Lguest_base + .Lguest_instructions - msrgate_svm_guest), %ebx
  jmp *%ebx
.Lguest_op_read:
  rdmsr
  jmp .Lguest_completed
.Lguest_op_write:
  wrmsr
  jmp .Lguest_completed
.Lguest_op_prefixed:
  .byte 0x3e, 0x67, 0x0f, 0x32
  jmp .Lguest_completed
.Lguest_op_timed:
  # EDX:EAX is the time of one RDMSR.
  rdtsc
  mov %eax, %esi
  mov %edx, %edi
  mov 4(%ebp), %ecx
  rdmsr
  rdtsc
  sub %esi, %eax
  sbb %edi, %edx
  jmp .Lguest_completed
.align 8
.Lguest_instructions:
  vmrun
  jmp .Lguest_completed
.align 8
  vmload
  jmp .Lguest_completed
.align 8
  vmsave
  jmp .Lguest_completed
.align 8
  stgi
  jmp .Lguest_completed
.align 8
  clgi
  jmp .Lguest_completed
.align 8
  .byte 0x0f, 0x01, 0xde     # skinit
  jmp .Lguest_completed
.align 8
  invlpga
  jmp .Lguest_completed
.align 8
  vmmcall
  jmp .Lguest_completed
.align 8
  mov %ecx, %eax             # CPUID of the leaf in the index: the result is EDX:ECX
  jmp .Lguest_op_cpuid
.align 8
  mov (%ecx), %eax           # a read of memory at the index
  jmp .Lguest_completed
.align 8
  mov %ecx, %edx             # a read of the port in the index
  jmp .Lguest_op_in
.align 8
  jmp .Lguest_op_start
.align 8
  jmp .Lguest_op_wait
.Lguest_op_cpuid:
  xor %ecx, %ecx
  cpuid
  mov %ecx, %eax
  jmp .Lguest_completed
.Lguest_op_in:
  xor %eax, %eax
  inb %dx, %al
  jmp .Lguest_completed

# Starts the other processors, which read LSTAR over and over. The result is the number of their reads so far.
.Lguest_op_start:
  mov %edi, %ebx
  mov $(.Lguest_base + .Lguest_other - msrgate_svm_guest), %esi
  mov $0x9000, %edi
  mov $(.Lguest_other_end - .Lguest_other), %ecx
  rep movsb
  mov %ebx, %edi
  movl $0, 0x9800
  movl $0, 0x9804
  # The real mode's vector of #GP.
  movl $(0x9000 + .Lguest_other_gp - .Lguest_other), 0x34
  movl $0xc4500, 0xfee00300  # INIT for the others
  movl $0xc4609, 0xfee00300  # SIPI for the others, at the page 9
  mov $100000000, %ecx
7:
  mov 0x9800, %eax
  cmp $0, %eax
  loope 7b
  xor %edx, %edx
  jmp .Lguest_completed
# Waits until another processor has had #GP. The result is 1, or 0 if that does not happen for long.
.Lguest_op_wait:
  mov $100000000, %ecx
8:
  mov 0x9804, %eax
  cmp $0, %eax
  loope 8b
  xor %edx, %edx
  jmp .Lguest_completed

.Lguest_completed:
  movl $0, (%ebp)
  mov %eax, 8(%ebp)
  mov %edx, 12(%ebp)
.Lguest_advance:
  add $16, %ebp
  jmp .Lguest_next
.Lguest_on_ud:
  movl $6, (%ebp)
  jmp .Lguest_after_exception
.Lguest_on_gp:
  movl $13, (%ebp)
.Lguest_after_exception:
  mov $(.Lguest_base + .Lguest_stack_top - msrgate_svm_guest), %esp
  jmp .Lguest_advance

# Sends the table, then ends the machine by isa-debug-exit.
.Lguest_send:
  mov $(.Lguest_base + msrgate_svm_guest_end - msrgate_svm_guest), %esi
3:
  cmp %ebp, %esi
  jae 5f
4:
  mov $0x3fd, %dx
  inb %dx, %al
  test $0x20, %al
  jz 4b
  mov $0x3f8, %dx
  outsb
  jmp 3b
5:
  mov $0x3fd, %dx            # waits until the last byte is sent
  inb %dx, %al
  test $0x40, %al
  jz 5b
  mov $0x10, %al
  mov $0xf4, %dx
  outb %al, %dx
6:
  hlt
  jmp 6b

.Lguest_gate:
  mov %ax, (.Lguest_base + .Lguest_idt - msrgate_svm_guest)(,%ebx,8)
  movw $8, (.Lguest_base + .Lguest_idt + 2 - msrgate_svm_guest)(,%ebx,8)
  movw $0x8e00, (.Lguest_base + .Lguest_idt + 4 - msrgate_svm_guest)(,%ebx,8)
  shr $16, %eax
  mov %ax, (.Lguest_base + .Lguest_idt + 6 - msrgate_svm_guest)(,%ebx,8)
  ret
# The code of the other processors, in real mode. It counts reads of LSTAR at 0x9800, and #GP at 0x9804.
.code16
.Lguest_other:
  cli
  xor %ax, %ax
  mov %ax, %ds
9:
  mov $0xc0000082, %ecx
  rdmsr
  incl 0x9800
  jmp 9b
.Lguest_other_gp:
  incl 0x9804
10:
  hlt
  jmp 10b
.Lguest_other_end:
.code32
.align 8
.Lguest_gdt: .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
.Lguest_gdt_register: .word 23
  .long .Lguest_base + .Lguest_gdt - msrgate_svm_guest
.align 8
.Lguest_idt_register: .word 127
  .long .Lguest_base + .Lguest_idt - msrgate_svm_guest
.align 16
.Lguest_idt: .skip 128
  .skip 1024
.Lguest_stack_top:
.align 16
msrgate_svm_guest_end:
.code64
.text
