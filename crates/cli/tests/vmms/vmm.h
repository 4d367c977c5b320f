// What the small VMMs of these tests share: a VM with one vCPU in real mode, and guests for it.
#pragma once
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(call) ({ long answer = (call); \
    if (answer < 0) { fprintf(stderr, "%s: %s\n", #call, strerror(errno)); exit(1); } answer; })

struct vm { int vm, vcpu; uint8_t *memory; struct kvm_run *run; };
static int kvm;

// The guest reads MSR ECX, writes '.' and the value, or '!' after a #GP, then a line feed, and halts.
static const uint8_t once[] = {
    0xb3, '.',                           // mov bl, '.'
    0x0f, 0x32,                          // rdmsr
    0x04, '0',                           // add al, '0'
    0xe6, 0x11,                          // out 0x11, al
    0x88, 0xd8, 0xe6, 0x10,              // mov al, bl; out 0x10, al
    0xb0, '\n', 0xe6, 0x10, 0xf4,        // mov al, '\n'; out 0x10, al; hlt
};
// The guest reads MSR ECX EDI times, or for ever if EDI is 0, and then writes a line feed.
static const uint8_t loop[] = {
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

// Returns true if a VMM that kicks its vCPU `most` times goes on after `done` of them. A kick waits for the vCPU's thread to get a
// processor, which may take a tenth of a second on a busy machine: after ten seconds a tenth of the kicks is enough.
static int goes_on(int done, int most) {
    static time_t began;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!began) began = now.tv_sec;
    return done < most && (done < most / 10 || now.tv_sec - began < 10);
}

static void print_seen(int seen, int kicks) {
    if (seen == kicks) printf("all kicks seen");
    else printf("%d of %d kicks seen", seen, kicks);
}

static void set_up(int vcpu, uint8_t *memory, const uint8_t *code, int size, uint32_t msr, uint32_t count) {
    struct kvm_sregs sregs;
    CHECK(ioctl(vcpu, KVM_GET_SREGS, &sregs));
    sregs.cs.base = sregs.cs.selector = 0;
    CHECK(ioctl(vcpu, KVM_SET_SREGS, &sregs));
    *(uint16_t *)(memory + 13 * 4) = 0x520;
    memcpy(memory + 0x520, fault_handler, sizeof fault_handler);
    memcpy(memory + 0x1000, code, size);
    struct kvm_regs regs = { .rip = 0x1000, .rsp = 0x8000, .rflags = 2, .rcx = msr, .rdi = count };
    CHECK(ioctl(vcpu, KVM_SET_REGS, &regs));
}

static struct vm make(void) {
    struct vm one;
    one.vm = CHECK(ioctl(kvm, KVM_CREATE_VM, 0));
    one.memory = mmap(0, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = { .memory_size = 0x10000, .userspace_addr = (uint64_t)one.memory };
    CHECK(ioctl(one.vm, KVM_SET_USER_MEMORY_REGION, &region));
    one.vcpu = CHECK(ioctl(one.vm, KVM_CREATE_VCPU, 0));
    one.run = mmap(0, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, one.vcpu, 0);
    return one;
}

static void drop(struct vm one) {
    munmap(one.run, 12288);
    munmap(one.memory, 0x10000);
    close(one.vcpu);
    close(one.vm);
}

static void give_cpuid(int vcpu, uint32_t signature) {
    struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[2]; } cpuid = { .head.nent = 2 };
    cpuid.entries[0] = (struct kvm_cpuid_entry2){ .function = 0, .eax = 1, .ebx = 0x756e6547, .edx = 0x49656e69, .ecx = 0x6c65746e };
    cpuid.entries[1] = (struct kvm_cpuid_entry2){ .function = 1, .eax = signature };
    CHECK(ioctl(vcpu, KVM_SET_CPUID2, &cpuid));
}

// Runs the vCPU of the descriptor `vcpu` until the guest's line ends. Reads that exit to this VMM get 7.
static void run_line(int vcpu, struct kvm_run *run) {
    for (;;) {
        if (ioctl(vcpu, KVM_RUN, 0) < 0) { printf("KVM_RUN: %s\n", strerror(errno)); return; }
        if (run->exit_reason == KVM_EXIT_IO) {
            char byte = *((char *)run + run->io.data_offset);
            if (run->io.port == 0x11 && byte == '0' + 7) printf("7");
            if (run->io.port != 0x10) continue;
            printf("%c", byte);
            if (byte == '\n') return;
        } else if (run->exit_reason == KVM_EXIT_X86_WRMSR) {
            printf("[write %x %d]", run->msr.index, (int)run->msr.reason);
        } else if (run->exit_reason == KVM_EXIT_X86_RDMSR) {
            printf("[exit %x %d]", run->msr.index, (int)run->msr.reason);
            run->msr.data = 7;
        } else { printf("exit %d\n", run->exit_reason); return; }
    }
}

static void read_msr(struct vm one, uint32_t msr) {
    set_up(one.vcpu, one.memory, once, sizeof once, msr, 0);
    run_line(one.vcpu, one.run);
}

static int count(const char *folder) {
    int n = 0;
    DIR *all = opendir(folder);
    while (readdir(all)) n++;
    closedir(all);
    return n - 2;
}

static void set_mask(int vm, uint64_t mask) {
    struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { mask } };
    int answer = ioctl(vm, KVM_ENABLE_CAP, &cap);
    printf("mask %lx: %d %s\n", (long)mask, answer, answer ? strerror(errno) : "");
}

static void set_filter(int vm, uint32_t flags, uint32_t base, uint32_t range_flags, void *bitmap) {
    struct kvm_msr_filter filter = { .flags = flags };
    if (bitmap) filter.ranges[0] = (struct kvm_msr_filter_range){ .flags = range_flags, .nmsrs = 1, .base = base, .bitmap = bitmap };
    int answer = ioctl(vm, KVM_X86_SET_MSR_FILTER, &filter);
    printf("filter: %d %s\n", answer, answer ? strerror(errno) : "");
}

// Runs the function that the command line names.
struct act { const char *name; void (*act)(void); };
static int act(const struct act *all, int argc, char **argv) {
    setvbuf(stdout, 0, _IOLBF, 0);
    kvm = CHECK(open("/dev/kvm", O_RDWR));
    for (; all->name; all++)
        if (argc > 1 && !strcmp(argv[1], all->name)) { all->act(); return 0; }
    return 2;
}
