// A VMM that does on purpose what is difficult for exec. `awkward WHAT` runs the function WHAT below.
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

// Sets filters and masks of the VMM's own, valid and invalid, and changes them between runs.
static void own_filter(void) {
    struct vm one = make();
    uint8_t deny[8] = { 0 };
    read_msr(one, 0x8b);
    set_filter(one.vm, 0, 0x8b, 1, deny);
    read_msr(one, 0x8b);
    set_mask(one.vm, 4);
    read_msr(one, 0x8b);
    read_msr(one, 0x10);
    set_mask(one.vm, 6);
    read_msr(one, 0x12345678);
    set_mask(one.vm, 0);
    read_msr(one, 0x12345678);
    read_msr(one, 0x8b);
    set_mask(one.vm, 8);
    set_filter(one.vm, 2, 0x8b, 1, deny);
    set_filter(one.vm, 0, 0x8b, 4, deny);
    set_filter(one.vm, 0, 0x8b, 1, (void *)16);
    set_filter(one.vm, 1, 0, 0, 0);
    int answer = ioctl(one.vm, KVM_X86_SET_MSR_FILTER, (void *)16);
    printf("bad pointer: %d %s\n", answer, strerror(errno));
    answer = ioctl(one.vm, KVM_ENABLE_CAP, (void *)16);
    printf("bad pointer: %d %s\n", answer, strerror(errno));
    read_msr(one, 0x8b);
    set_filter(one.vm, 0, 0, 0, 0);
    read_msr(one, 0x8b);
    printf("valid %lx\n", (long)one.run->kvm_valid_regs);
}

// Makes ten VMs one after another on the same descriptor numbers, with two different CPUIDs.
static void reboots(void) {
    int fds = 0, threads = 0, vm = 0, vcpu = 0, same = 0;
    for (int i = 0; i < 10; i++) {
        struct vm one = make();
        give_cpuid(one.vcpu, i % 3 ? 0x606a6 : 0x806f8);
        if (!i) { vm = one.vm; vcpu = one.vcpu; }
        same += one.vm == vm && one.vcpu == vcpu;
        read_msr(one, 0x8b);
        drop(one);
        if (!i) {
            usleep(200000);
            fds = count("/proc/self/fd");
            threads = count("/proc/self/task");
        }
    }
    usleep(200000);
    printf("same numbers %d of 10, more files %d, more threads %d\n", same, count("/proc/self/fd") - fds, count("/proc/self/task") - threads);
}

// Runs two VMs at once.
static void two(void) {
    struct vm one = make(), other = make();
    read_msr(one, 0x8b);
    read_msr(other, 0x8b);
    drop(one);
    read_msr(other, 0x8b);
}

// Closes descriptors by dup2(2) and close_range(2), unseen by the library, and then makes further VMs.
static void unseen(void) {
    int files = 0;
    for (int i = 0; i < 3; i++) {
        struct vm one = make();
        read_msr(one, 0x8b);
        int other = open("/dev/null", O_RDONLY);
        dup2(other, one.vcpu);
        close(other);
        syscall(SYS_close_range, one.vm, one.vcpu, 0);
        munmap(one.run, 12288);
    }
    struct vm last = make();
    read_msr(last, 0x8b);
    drop(last);
    usleep(200000);
    char path[64], name[64];
    for (int fd = 0; fd < 10000; fd++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        int length = readlink(path, name, sizeof name - 1);
        name[length < 0 ? 0 : length] = 0;
        files += strstr(name, "kvm-v") != 0;
    }
    printf("left: %d\n", files);
}

// Runs a VM by descriptors from dup(2), after the original ones were closed.
static void duplicated(void) {
    struct vm one = make();
    int vm = dup(one.vm);
    set_up(one.vcpu, one.memory, once, sizeof once, 0x8b, 0);
    int vcpu = dup(one.vcpu);
    close(one.vcpu);
    run_line(vcpu, one.run);
    set_up(vcpu, one.memory, once, sizeof once, 0x8b, 0);
    run_line(vcpu, one.run);
    int second = CHECK(ioctl(vm, KVM_CREATE_VCPU, 1));
    close(one.vm);
    struct kvm_run *run = mmap(0, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, second, 0);
    struct kvm_mp_state state = { KVM_MP_STATE_RUNNABLE };
    ioctl(second, KVM_SET_MP_STATE, &state);
    set_up(second, one.memory, once, sizeof once, 0x8b, 0);
    run_line(second, run);
}

// Forks children that close the parent's descriptors, and one that makes a VM of its own.
static void children(void) {
    struct vm one = make();
    if (!vfork()) {
        close(one.vcpu);
        close(one.vm);
        _exit(0);
    }
    pid_t child = fork();
    if (!child) {
        for (int fd = 3; fd < 20; fd++) close(fd);
        kvm = CHECK(open("/dev/kvm", O_RDWR));
        printf("child ");
        read_msr(make(), 0x8b);
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, 0, 0);
    printf("parent ");
    read_msr(one, 0x8b);
}

static volatile int interrupted, stop, exceptions;
static void handler(int signal) {}
static void *run_for_ever(void *vm) {
    struct vm *one = vm;
    while (!stop) {
        if (ioctl(one->vcpu, KVM_RUN, 0) < 0 && errno == EINTR) {
            struct kvm_vcpu_events events;
            CHECK(ioctl(one->vcpu, KVM_GET_VCPU_EVENTS, &events));
            // A VMM may write these events back: after a denied access they have the #GP, after an answered one none.
            exceptions += events.exception.injected || events.exception.pending;
            if (one->run->exit_reason != KVM_EXIT_INTR) printf("exit %d\n", one->run->exit_reason);
            __atomic_add_fetch(&interrupted, 1, __ATOMIC_SEQ_CST);
        } else if (!stop) { printf("exit %d\n", one->run->exit_reason); exit(1); }
    }
    return 0;
}

// Kicks the vCPU by a signal with an empty handler, without immediate_exit: the guest reads an MSR for ever.
static void kicks(void) {
    struct sigaction action = { .sa_handler = handler };
    sigaction(SIGUSR1, &action, 0);
    struct vm one = make();
    set_up(one.vcpu, one.memory, loop, sizeof loop, 0x8b, 0);
    pthread_t thread;
    pthread_create(&thread, 0, run_for_ever, &one);
    int seen = 0;
    usleep(100000);
    for (int i = 0; i < 1000; i++) {
        int before = __atomic_load_n(&interrupted, __ATOMIC_SEQ_CST);
        pthread_kill(thread, SIGUSR1);
        for (int wait = 0; wait < 100000 && interrupted == before; wait++) usleep(100);
        seen += interrupted != before;
    }
    stop = 1;
    pthread_kill(thread, SIGUSR1);
    pthread_join(thread, 0);
    printf("seen %d of 1000, %s\n", seen, exceptions ? "exceptions" : "no exception");
}

// Runs a guest that reads an MSR for a while. The VMM catches no signal, so KVM_RUN is never interrupted.
static void uncaught(void) {
    struct vm one = make();
    set_up(one.vcpu, one.memory, loop, sizeof loop, 0x8b, 300000);
    int answer = ioctl(one.vcpu, KVM_RUN, 0);
    printf("%d, exit %d\n", answer, one.run->exit_reason);
}

// Has KVM put all registers into the shared page at each exit, and writes them from there.
static void shared_registers(void) {
    struct vm one = make();
    set_up(one.vcpu, one.memory, once, sizeof once, 0x8b, 0);
    one.run->kvm_valid_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;
    CHECK(ioctl(one.vcpu, KVM_RUN, 0));
    printf("exit %d, valid %llx, rip %llx, exception %d\n", one.run->exit_reason, one.run->kvm_valid_regs, one.run->s.regs.regs.rip,
        one.run->s.regs.events.exception.pending | one.run->s.regs.events.exception.injected);
    one.run->s.regs.regs.rip = 0x1000;
    one.run->s.regs.regs.rbx = 0;
    one.run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
    run_line(one.vcpu, one.run);
}

int main(int argc, char **argv) {
    const struct { const char *name; void (*act)(void); } all[] = {
        { "own-filter", own_filter }, { "reboots", reboots }, { "two", two }, { "unseen", unseen }, { "duplicated", duplicated }, { "children", children },
        { "kicks", kicks }, { "uncaught", uncaught }, { "shared-registers", shared_registers },
    };
    setvbuf(stdout, 0, _IOLBF, 0);
    kvm = CHECK(open("/dev/kvm", O_RDWR));
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        if (argc > 1 && !strcmp(argv[1], all[i].name)) { all[i].act(); return 0; }
    return 2;
}
