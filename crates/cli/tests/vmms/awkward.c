// A VMM that does on purpose what is difficult for exec. `awkward WHAT` runs the function WHAT below.
#include "vmm.h"

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

static void read_last_msrs(struct vm one) {
    read_msr(one, 0xffffffff);
    read_msr(one, 0xfffffffe);
}

// Reads MSR 0xffffffff, which no range of a filter can have, and the one before it, neither of which exists.
static void last_msr(void) {
    static uint8_t all[0x600];
    memset(all, 0xff, sizeof all);
    struct kvm_msr_filter filter = { .flags = 1, .ranges[0] = { .flags = 3, .nmsrs = 0x2000, .bitmap = all } };
    struct vm one = make();
    read_last_msrs(one);
    set_mask(one.vm, 2);
    read_last_msrs(one);
    printf("filter: %d\n", ioctl(one.vm, KVM_X86_SET_MSR_FILTER, &filter));
    for (int mask = 0; mask < 8; mask += 2) {
        set_mask(one.vm, mask);
        read_last_msrs(one);
        read_msr(one, 0x8b);
    }
}

// Sets a filter with as many ranges as KVM has, far from each other.
static void many_ranges(void) {
    struct vm one = make();
    uint8_t deny[8] = { 0 };
    struct kvm_msr_filter filter = { 0 };
    set_filter(one.vm, 0, 0x8b, 1, deny);
    for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++)
        filter.ranges[i] = (struct kvm_msr_filter_range){ .flags = 3, .nmsrs = 1, .base = 0x20000 * (i + 1), .bitmap = deny };
    int answer = ioctl(one.vm, KVM_X86_SET_MSR_FILTER, &filter);
    printf("filter: %d %s\n", answer, answer ? strerror(errno) : "");
    read_msr(one, 0x8b);
}

// The guest writes reserved bits of EFER, and then writes '.', or '!' after a #GP.
static const uint8_t bad_write[] = {
    0xb3, '.',                           // mov bl, '.'
    0x66, 0x31, 0xc0, 0x66, 0x48,        // xor eax, eax; dec eax
    0x66, 0x89, 0xc2,                    // mov edx, eax
    0x0f, 0x30,                          // wrmsr
    0x88, 0xd8, 0xe6, 0x10,              // mov al, bl; out 0x10, al
    0xb0, '\n', 0xe6, 0x10, 0xf4,        // mov al, '\n'; out 0x10, al; hlt
};

// Asks for exits of writes that KVM refuses, by each mask.
static void invalid(void) {
    struct vm one = make();
    for (int mask = 0; mask < 8; mask++) {
        set_mask(one.vm, mask);
        set_up(one.vcpu, one.memory, bad_write, sizeof bad_write, 0xc0000080, 0);
        run_line(one.vcpu, one.run);
        read_msr(one, 0x12345678);
    }
}

// Asks for encrypted registers, which no policy's answers could reach.
static void encrypted(void) {
    struct vm one = make();
    int answer = ioctl(one.vm, KVM_MEMORY_ENCRYPT_OP, 0);
    printf("%d %s\n", answer, strerror(errno));
}

// Prints the names of the threads that neither this VMM nor the kernel has made, and the signals that they block.
static void print_threads(void) {
    // A new thread gives itself its name.
    usleep(200000);
    DIR *all = opendir("/proc/self/task");
    for (struct dirent *entry; (entry = readdir(all));) {
        char path[300], line[128], name[64] = "";
        if (atoi(entry->d_name) <= 0 || atoi(entry->d_name) == getpid()) continue;
        snprintf(path, sizeof path, "/proc/self/task/%s/status", entry->d_name);
        FILE *status = fopen(path, "r");
        while (fgets(line, sizeof line, status)) {
            sscanf(line, "Name: %63[^\n]", name);
            if (!strncmp(line, "SigBlk:", 7) && strncmp(name, "kvm-", 4)) printf("%s %s", name, line + 8);
        }
        fclose(status);
    }
    closedir(all);
}

static void threads(void) {
    struct vm one = make(), other = make();
    read_msr(one, 0x8b);
    read_msr(other, 0x8b);
    print_threads();
    for (int i = 0; i < 10; i++) {
        drop(other);
        other = make();
        read_msr(other, 0x8b);
    }
    print_threads();
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
    int seen = 0, kicks = 0;
    usleep(100000);
    for (; goes_on(kicks, 1000); kicks++) {
        int before = __atomic_load_n(&interrupted, __ATOMIC_SEQ_CST);
        pthread_kill(thread, SIGUSR1);
        for (int wait = 0; wait < 100000 && interrupted == before; wait++) usleep(100);
        seen += interrupted != before;
    }
    stop = 1;
    pthread_kill(thread, SIGUSR1);
    pthread_join(thread, 0);
    print_seen(seen, kicks);
    printf(", %s\n", exceptions ? "exceptions" : "no exception");
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
    const struct act all[] = {
        { "own-filter", own_filter }, { "last-msr", last_msr }, { "many-ranges", many_ranges }, { "invalid", invalid },
        { "encrypted", encrypted }, { "threads", threads }, { "reboots", reboots }, { "two", two }, { "unseen", unseen }, { "duplicated", duplicated }, { "children", children },
        { "kicks", kicks }, { "uncaught", uncaught }, { "shared-registers", shared_registers }, { 0 },
    };
    return act(all, argc, argv);
}
