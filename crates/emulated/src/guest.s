# A multiboot guest in ring 0, 32-bit code, that executes the steps of a table and sends the table, with the result of each step,
# over the first serial port. The test puts the image at 0x400000 and the table behind it.
#
# A step has four words: operation, index, low half, high half of a value. The result replaces them: 0 if the
# instruction was completed, or the vector of its exception; the index; and EDX:EAX.
.section .rodata.msrgate_svm_guest, "a", @progbits
.code32
.globl msrgate_svm_guest, msrgate_svm_guest_end
msrgate_svm_guest:
.set base, 0x400000
  jmp 1f
.align 4
  .long 0x1badb002, 3, -(0x1badb002 + 3)
1:
  mov $(base + stack_top - msrgate_svm_guest), %esp
  lgdt (base + gdt_register - msrgate_svm_guest)
  ljmp $8, $(base + 2f - msrgate_svm_guest)
2:
  mov $16, %eax
  mov %eax, %ds
  mov %eax, %es
  mov %eax, %ss
  # Gates for #UD, #GP and #PF.
  mov $(base + on_ud - msrgate_svm_guest), %eax
  mov $6, %ebx
  call gate
  mov $(base + on_gp - msrgate_svm_guest), %eax
  mov $13, %ebx
  call gate
  lidt (base + idt_register - msrgate_svm_guest)
  mov $(base + msrgate_svm_guest_end - msrgate_svm_guest), %ebp
next:
  mov (%ebp), %ebx
  cmp $0, %ebx
  je send
  mov $(base + completed - msrgate_svm_guest), %edi
  mov 4(%ebp), %ecx
  mov 8(%ebp), %eax
  mov 12(%ebp), %edx
  cmp $1, %ebx
  je op_read
  cmp $2, %ebx
  je op_write
  cmp $3, %ebx
  je op_prefixed
  cmp $4, %ebx
  je op_timed
  # Operations from 16 on are other instructions, at multiples of 8 bytes.
  sub $16, %ebx
  shl $3, %ebx
  add $(base + instructions - msrgate_svm_guest), %ebx
  jmp *%ebx
op_read:
  rdmsr
  jmp completed
op_write:
  wrmsr
  jmp completed
op_prefixed:
  .byte 0x3e, 0x67, 0x0f, 0x32
  jmp completed
op_timed:
  # EDX:EAX is the time of one RDMSR.
  rdtsc
  mov %eax, %esi
  mov %edx, %edi
  mov 4(%ebp), %ecx
  rdmsr
  rdtsc
  sub %esi, %eax
  sbb %edi, %edx
  jmp completed
.align 8
instructions:
  vmrun
  jmp completed
.align 8
  vmload
  jmp completed
.align 8
  vmsave
  jmp completed
.align 8
  stgi
  jmp completed
.align 8
  clgi
  jmp completed
.align 8
  .byte 0x0f, 0x01, 0xde     # skinit
  jmp completed
.align 8
  invlpga
  jmp completed
.align 8
  vmmcall
  jmp completed
.align 8
  mov %ecx, %eax             # CPUID of the leaf in the index: the result is EDX:ECX
  jmp op_cpuid
.align 8
  mov (%ecx), %eax           # a read of memory at the index
  jmp completed
.align 8
  mov %ecx, %edx             # a read of the port in the index
  jmp op_in
op_cpuid:
  xor %ecx, %ecx
  cpuid
  mov %ecx, %eax
  jmp completed
op_in:
  xor %eax, %eax
  inb %dx, %al
  jmp completed

completed:
  movl $0, (%ebp)
  mov %eax, 8(%ebp)
  mov %edx, 12(%ebp)
advance:
  add $16, %ebp
  jmp next
on_ud:
  movl $6, (%ebp)
  jmp after_exception
on_gp:
  movl $13, (%ebp)
after_exception:
  mov $(base + stack_top - msrgate_svm_guest), %esp
  jmp advance

# Sends the table, then ends the machine by isa-debug-exit.
send:
  mov $(base + msrgate_svm_guest_end - msrgate_svm_guest), %esi
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

gate:
  mov %ax, (base + idt - msrgate_svm_guest)(,%ebx,8)
  movw $8, (base + idt + 2 - msrgate_svm_guest)(,%ebx,8)
  movw $0x8e00, (base + idt + 4 - msrgate_svm_guest)(,%ebx,8)
  shr $16, %eax
  mov %ax, (base + idt + 6 - msrgate_svm_guest)(,%ebx,8)
  ret
.align 8
gdt: .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdt_register: .word 23
  .long base + gdt - msrgate_svm_guest
.align 8
idt_register: .word 127
  .long base + idt - msrgate_svm_guest
.align 16
idt: .skip 128
  .skip 1024
stack_top:
.align 16
msrgate_svm_guest_end:
.code64
.text
