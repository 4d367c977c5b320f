// A VMM whose threads are under seccomp as those of cloud-hypervisor are, and more strictly: the thread that makes the
// VM may set no MSR filter, and a vCPU's thread may call KVM_RUN, KVM_GET_REGS and little else. A forbidden call ends the
// process with status 159.
//
// Its guest reads MSR 0x8b once, and writes '.' or, after a #GP, '!'. `strict own-filter` has a guest that reads it on and
// on, while a thread without restrictions sets a filter that denies the read and lifts it again.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHECK(call) ({ long answer = (call); \
    if (answer < 0) { fprintf(stderr, "%s: %s\n", #call, strerror(errno)); exit(1); } answer; })

static int kvm, vm, vcpu, sets_filter;
static uint8_t *memory;
static struct kvm_run *run;
static volatile int runs, has_ended;

static void trapped(int signal, siginfo_t *info, void *context) {
    char text[64];
    int length = snprintf(text, sizeof text, "SIGSYS: system call %d\n", info->si_syscall);
    write(2, text, length);
    _exit(159);
}

static struct sock_filter load(unsigned offset) { return (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset); }
static struct sock_filter unless(uint32_t value) { return (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1); }
static struct sock_filter end(uint32_t action) { return (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action); }

// Allows these ioctls and these other system calls; without a list of other calls, all of them.
static void restrict_thread(const uint32_t *requests, int request_count, const int *calls, int call_count) {
    struct sock_filter code[128];
    int n = 0;
    code[n++] = load(offsetof(struct seccomp_data, nr));
    for (int i = 0; i < call_count; i++) {
        code[n++] = unless(calls[i]);
        code[n++] = end(SECCOMP_RET_ALLOW);
    }
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 1, 0);
    code[n++] = end(calls ? SECCOMP_RET_TRAP : SECCOMP_RET_ALLOW);
    code[n++] = load(offsetof(struct seccomp_data, args[1]));
    for (int i = 0; i < request_count; i++) {
        code[n++] = unless(requests[i]);
        code[n++] = end(SECCOMP_RET_ALLOW);
    }
    code[n++] = end(SECCOMP_RET_TRAP);
    struct sock_fprog program = { .len = n, .filter = code };
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

static void *vcpu_thread(void *unused) {
    uint32_t requests[] = { KVM_RUN, KVM_GET_REGS };
    int calls[] = { SYS_brk, SYS_clock_gettime, SYS_close, SYS_exit, SYS_exit_group, SYS_futex, SYS_madvise, SYS_mmap,
        SYS_mprotect, SYS_munmap, SYS_rt_sigreturn, SYS_sched_yield, SYS_sigaltstack, SYS_write };
    restrict_thread(requests, 2, calls, sizeof calls / sizeof *calls);
    for (;;) {
        runs = 1;
        if (ioctl(vcpu, KVM_RUN, 0) < 0) { fprintf(stderr, "KVM_RUN: %s\n", strerror(errno)); exit(1); }
        if (run->exit_reason != KVM_EXIT_IO) { fprintf(stderr, "exit %d\n", run->exit_reason); exit(1); }
        char byte = *((char *)run + run->io.data_offset);
        write(1, &byte, 1);
        struct kvm_regs regs;
        CHECK(ioctl(vcpu, KVM_GET_REGS, &regs));
        if (byte == '\n') break;
    }
    close(vcpu);
    has_ended = 1;
    // The C library's end of a thread changes the thread's signals, which is forbidden.
    syscall(SYS_exit, 0);
    return 0;
}

static const uint8_t guest[] = {
    0xb3, '.',                           // mov bl, '.'
    0x66, 0xb9, 0x8b, 0, 0, 0,           // mov ecx, 0x8b
    0x0f, 0x32,                          // rdmsr
    0x88, 0xd8, 0xe6, 0x10,              // mov al, bl; out 0x10, al
    0xb0, '\n', 0xe6, 0x10, 0xf4,        // mov al, '\n'; out 0x10, al; hlt
};
static const uint8_t loop[] = {
    0x66, 0xb9, 0x8b, 0, 0, 0,           // mov ecx, 0x8b
    0x0f, 0x32,                          // again: rdmsr
    0x66, 0x4f, 0x75, 0xfa,              // dec edi; jnz again
    0xb0, '\n', 0xe6, 0x10, 0xf4,        // mov al, '\n'; out 0x10, al; hlt
};
static const uint8_t fault_handler[] = {
    0xb3, '!',                           // mov bl, '!'
    0x55, 0x89, 0xe5,                    // push bp; mov bp, sp
    0x83, 0x46, 0x02, 0x02,              // add word [bp + 2], 2: past the instruction
    0x5d, 0xcf,                          // pop bp; iret
};

static void *vmm_thread(void *unused) {
    uint32_t requests[] = { KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_ENABLE_CAP, KVM_CHECK_EXTENSION, KVM_SET_USER_MEMORY_REGION,
        KVM_GET_REGS, KVM_SET_REGS, KVM_GET_SREGS, KVM_SET_SREGS, KVM_GET_MSRS, KVM_SET_MSRS, KVM_SET_CPUID2,
        KVM_RUN }; // The vCPU's thread inherits this list, and gets a second one.
    restrict_thread(requests, sizeof requests / sizeof *requests, 0, 0);
    vm = CHECK(ioctl(kvm, KVM_CREATE_VM, 0));
    memory = mmap(0, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = { .memory_size = 0x10000, .userspace_addr = (uint64_t)memory };
    CHECK(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
    vcpu = CHECK(ioctl(vm, KVM_CREATE_VCPU, 0));
    run = mmap(0, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    struct kvm_sregs sregs;
    CHECK(ioctl(vcpu, KVM_GET_SREGS, &sregs));
    sregs.cs.base = sregs.cs.selector = 0;
    CHECK(ioctl(vcpu, KVM_SET_SREGS, &sregs));
    *(uint16_t *)(memory + 13 * 4) = 0x520;
    memcpy(memory + 0x520, fault_handler, sizeof fault_handler);
    if (sets_filter) memcpy(memory + 0x1000, loop, sizeof loop);
    else memcpy(memory + 0x1000, guest, sizeof guest);
    struct kvm_regs regs = { .rip = 0x1000, .rsp = 0x8000, .rflags = 2 };
    CHECK(ioctl(vcpu, KVM_SET_REGS, &regs));
    pthread_t thread;
    pthread_create(&thread, 0, vcpu_thread, 0);
    while (!has_ended) usleep(1000);
    return 0;
}

// Sets and lifts the VMM's own filter while the vCPU stays in one KVM_RUN, and then lets the guest end.
static void change_filter(void) {
    static uint8_t bits[8];
    struct kvm_msr_filter none = { 0 }, filter = { .ranges[0] = { .flags = 1, .nmsrs = 1, .base = 0x8b, .bitmap = bits } };
    while (!runs) usleep(1000);
    usleep(10000);
    for (int i = 0; i < 1000; i++) {
        CHECK(ioctl(vm, KVM_X86_SET_MSR_FILTER, &filter));
        CHECK(ioctl(vm, KVM_X86_SET_MSR_FILTER, &none));
    }
    memory[0x1000 + 10] = memory[0x1000 + 11] = 0x90;
}

int main(int argc, char **argv) {
    sets_filter = argc > 1 && !strcmp(argv[1], "own-filter");
    struct sigaction action = { .sa_sigaction = trapped, .sa_flags = SA_SIGINFO };
    sigaction(SIGSYS, &action, 0);
    // Both before any thread is restricted, as cloud-hypervisor's main thread does.
    kvm = CHECK(open("/dev/kvm", O_RDWR));
    CHECK(ioctl(kvm, KVM_GET_API_VERSION, 0));
    pthread_t thread;
    pthread_create(&thread, 0, vmm_thread, 0);
    if (sets_filter) change_filter();
    pthread_join(thread, 0);
    return 0;
}
