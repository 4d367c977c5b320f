// A VMM that does unusual things with descriptors. `descriptors WHAT` runs the function WHAT below, and `descriptors WHAT
// old-kernel` on a kernel that compares descriptors by kcmp(2) only.
#include "vmm.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>

static void limit(int files) {
    struct rlimit limit = { files, files };
    CHECK(setrlimit(RLIMIT_NOFILE, &limit));
}

// The number of this process's descriptors of VMs and vCPUs.
static int kvm_files(void) {
    char path[64], name[64];
    int files = 0;
    for (int fd = 0; fd < 10000; fd++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        int length = readlink(path, name, sizeof name - 1);
        name[length < 0 ? 0 : length] = 0;
        files += strstr(name, "kvm-v") != 0;
    }
    return files;
}

// Waits, without a KVM request, until no descriptor of a VM or vCPU is left.
static void wait_for_no_file(void) {
    for (int i = 0; i < 600 && kvm_files(); i++) usleep(50000);
    printf("left: %d\n", kvm_files());
}

static void reboot_on_same_numbers(void) {
    for (int i = 0; i < 10; i++) {
        struct vm one = make();
        printf("%d %d ", one.vm, one.vcpu);
        read_msr(one, 0x8b);
        drop(one);
        wait_for_no_file();
    }
}

// Each VM takes two descriptors of the VMM, and three of the library.
static void low_limit(void) {
    limit(kvm + 1 + 5);
    reboot_on_same_numbers();
}

// There is no number for the third descriptor of the library.
static void too_low_limit(void) {
    limit(kvm + 1 + 4);
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    printf("VM %d, vCPU %d, %s\n", vm, vcpu, strerror(errno));
}

static void lowered_limit(void) {
    struct vm one = make();
    read_msr(one, 0x8b);
    limit(one.vcpu + 1 + 5);
    struct vm other = make();
    read_msr(other, 0x8b);
    drop(other);
    drop(one);
    wait_for_no_file();
    reboot_on_same_numbers();
}

// Closes descriptors by each means that the library does not see, and makes no further request of KVM.
static void unseen(void) {
    struct vm all[4] = { make(), make(), make(), make() };
    for (int i = 0; i < 4; i++) read_msr(all[i], 0x8b);
    int other = open("/dev/null", O_RDONLY);
    dup2(other, all[0].vcpu), dup2(other, all[0].vm);
    dup3(other, all[1].vcpu, O_CLOEXEC), dup3(other, all[1].vm, 0);
    syscall(SYS_close_range, all[2].vm, all[2].vcpu, 0);
    syscall(SYS_close, all[3].vcpu), syscall(SYS_close, all[3].vm);
    for (int i = 0; i < 4; i++) munmap(all[i].run, 12288);
    wait_for_no_file();
}

static struct vm vcpu_of(struct vm one, int id) {
    one.vcpu = CHECK(ioctl(one.vm, KVM_CREATE_VCPU, id));
    one.run = mmap(0, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, one.vcpu, 0);
    struct kvm_mp_state state = { KVM_MP_STATE_RUNNABLE };
    ioctl(one.vcpu, KVM_SET_MP_STATE, &state);
    return one;
}

// Runs the guest of `other` through the number of `number`, which dup2 has given to it.
static void run_by(int number, struct vm other) {
    CHECK(dup2(other.vcpu, number));
    set_up(other.vcpu, other.memory, once, sizeof once, 0x8b, 0);
    run_line(number, other.run);
}

// Gives the number of a vCPU to another one: of the same VM and of another, one that has run and one that has not, one
// whose own number is closed and one whose number was a VM's.
static void exchanged(void) {
    struct vm one = make(), second = vcpu_of(one, 1), third = vcpu_of(one, 2), other = make();
    read_msr(one, 0x8b);
    run_by(one.vcpu, second);
    run_by(one.vcpu, other);
    run_by(one.vcpu, second);
    run_by(one.vcpu, third);
    syscall(SYS_close, third.vcpu);
    third.vcpu = one.vcpu;
    read_msr(third, 0x8b);
    read_msr(second, 0x8b);
    struct vm last = make();
    run_by(last.vm, last);
    run_by(last.vm, other);
}

// Exchanges the numbers of two vCPUs. The library sees none of these calls.
static void exchange(struct vm *one, struct vm *other) {
    int third = CHECK(fcntl(one->vcpu, F_DUPFD, 200)), number = one->vcpu;
    CHECK(dup2(other->vcpu, one->vcpu));
    CHECK(dup2(third, other->vcpu));
    syscall(SYS_close, third);
    one->vcpu = other->vcpu, other->vcpu = number;
}

// Exchanges the numbers of two vCPUs just before it runs either, or both, and of three vCPUs in a circle.
static void swapped(void) {
    struct vm one = make(), second = vcpu_of(one, 1), other = make();
    struct vm *all[] = { &one, &second, &other };
    for (int i = 0; i < 12; i++) {
        struct vm *first = all[i % 3], *next = all[(i + 1) % 3];
        exchange(first, next);
        if (i % 2) read_msr(*first, 0x8b);
        read_msr(*next, 0x8b);
        if (i % 4 == 0) exchange(next, all[(i + 2) % 3]);
    }
    for (int i = 0; i < 3; i++) read_msr(*all[i], 0x8b);
    syscall(SYS_close, one.vcpu), syscall(SYS_close, second.vcpu), syscall(SYS_close, other.vcpu);
    munmap(second.run, 12288);
    drop(one), drop(other);
    wait_for_no_file();
}

static volatile int runs, ended;
static void *run_until_kicked(void *vm);
static void handler(int signal) {}

// Reads by a vCPU whose KVM_RUN may return early, since this process catches a signal.
static void read_msr_again(struct vm one) {
    set_up(one.vcpu, one.memory, once, sizeof once, 0x8b, 0);
    while (ioctl(one.vcpu, KVM_RUN, 0) < 0 && errno == EINTR);
    if (one.run->exit_reason != KVM_EXIT_IO) printf("exit %d ", one.run->exit_reason);
    run_line(one.vcpu, one.run);
}

// Exchanges the numbers of two vCPUs while a thread runs one of them, and runs the other.
static void swapped_while_running(void) {
    struct sigaction action = { .sa_handler = handler };
    sigaction(SIGUSR1, &action, 0);
    struct vm one = make(), other = make();
    for (int i = 0; i < 5; i++) {
        set_up(other.vcpu, other.memory, loop, sizeof loop, 0x10, 0);
        struct vm running = other;
        runs = ended = 0;
        pthread_t thread;
        pthread_create(&thread, 0, run_until_kicked, &running);
        while (!runs) usleep(1000);
        usleep(20000);
        exchange(&one, &other);
        read_msr_again(one);
        while (!ended) { pthread_kill(thread, SIGUSR1); usleep(1000); }
        pthread_join(thread, 0);
        read_msr_again(other);
        read_msr_again(one);
    }
}

// Keeps a VM and a vCPU by numbers far from all others, after their first ones were closed.
static void far(void) {
    struct vm one = make();
    int vm = CHECK(fcntl(one.vm, F_DUPFD, 700)), vcpu = CHECK(fcntl(one.vcpu, F_DUPFD, 650));
    close(one.vm), close(one.vcpu);
    usleep(100000);
    one.vm = vm, one.vcpu = vcpu;
    read_msr(one, 0x8b);
    read_msr(vcpu_of(one, 1), 0x8b);
}

// Waits until the library has looked for descriptors that were closed unseen, as those of a VM made here.
static void wait_for_a_look(void) {
    int files = kvm_files();
    struct vm gone = make();
    munmap(gone.run, 12288);
    syscall(SYS_close, gone.vcpu), syscall(SYS_close, gone.vm);
    for (int i = 0; i < 600 && kvm_files() > files; i++) usleep(50000);
}

// Adds a vCPU late, parks its descriptor as QEMU does with an unplugged vCPU, and takes it again with its page mapped anew.
static void parked(void) {
    struct vm one = make();
    read_msr(one, 0x8b);
    struct vm late = vcpu_of(one, 1);
    for (int i = 0; i < 2; i++) {
        read_msr(late, 0x8b);
        munmap(late.run, 12288);
        read_msr(one, 0x8b);
        wait_for_a_look();
        late.run = mmap(0, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, late.vcpu, 0);
    }
    read_msr(late, 0x8b);
    munmap(late.run, 12288);
    close(late.vcpu);
    drop(one);
    wait_for_no_file();
}

// Gives the number of a VM to another one, which has a filter of its own.
static void exchanged_vms(void) {
    struct vm one = make(), other = make();
    uint8_t deny[8] = { 0 };
    set_filter(other.vm, 0, 0x10, 1, deny);
    CHECK(dup2(other.vm, one.vm));
    set_mask(one.vm, 4);
    struct vm second = vcpu_of((struct vm){ .vm = one.vm, .memory = other.memory }, 1);
    read_msr(second, 0x10);
    read_msr(other, 0x10);
    read_msr(one, 0x10);
    set_filter(one.vm, 0, 0x8b, 1, deny);
    read_msr(other, 0x10);
    read_msr(one, 0x8b);
}

// Puts another file on the library's own descriptors, which are the highest, and waits until the library sees it.
static void stolen(void) {
    struct vm one = make();
    read_msr(one, 0x8b);
    int other = open("/dev/null", O_RDONLY);
    for (int fd = 100; fd < 10000; fd++) if (fcntl(fd, F_GETFD) >= 0) dup2(other, fd);
    for (int i = 0; i < 600; i++) {
        usleep(50000);
        read_msr(one, 0x8b);
    }
}

static void *run_until_kicked(void *vm) {
    struct vm *one = vm;
    runs = 1;
    while (ioctl(one->vcpu, KVM_RUN, 0) == 0);
    ended = 1;
    return 0;
}

// Closes the descriptors while a thread is in KVM_RUN, and kicks it until it returns.
static void closed_while_running(void) {
    struct sigaction action = { .sa_handler = handler };
    sigaction(SIGUSR1, &action, 0);
    for (int i = 0; i < 5; i++) {
        struct vm one = make();
        set_up(one.vcpu, one.memory, loop, sizeof loop, 0x8b, 0);
        runs = ended = 0;
        pthread_t thread;
        pthread_create(&thread, 0, run_until_kicked, &one);
        while (!runs) usleep(1000);
        usleep(20000);
        drop(one);
        while (!ended) { pthread_kill(thread, SIGUSR1); usleep(1000); }
        pthread_join(thread, 0);
        wait_for_no_file();
    }
}

// The number of mappings, and the memory without files in KiB.
static void used(int *mappings, int *kib) {
    char line[256];
    *mappings = *kib = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps)) ++*mappings;
    fclose(maps);
    FILE *rollup = fopen("/proc/self/smaps_rollup", "r");
    while (fgets(line, sizeof line, rollup)) sscanf(line, "Anonymous: %d", kib);
    fclose(rollup);
}

// After 10 VMs there is as much as after 110: descriptors, threads, mappings and memory. The memory of the allocator has
// holes, which 160 KiB allow for: gates of 100 VMs take more.
static void nothing_is_left(void) {
    int files = 0, threads = 0, mappings = 0, kib = 0, more_mappings, more_kib;
    for (int i = 0; i < 110; i++) {
        struct vm one = make(), second = vcpu_of(one, 1);
        read_msr(one, 0x8b);
        read_msr(second, 0x8b);
        munmap(second.run, 12288);
        close(second.vcpu);
        drop(one);
        for (int wait = 0; wait < 600 && kvm_files(); wait++) usleep(2000);
        if (i != 9) continue;
        files = count("/proc/self/fd"), threads = count("/proc/self/task");
        used(&mappings, &kib);
    }
    used(&more_mappings, &more_kib);
    printf("more files %d, more threads %d, more mappings %d\n", count("/proc/self/fd") - files, count("/proc/self/task") - threads,
        more_mappings - mappings);
    if (more_kib > kib + 160) printf("%d KiB, then %d KiB\n", kib, more_kib);
}

// Has the kernel answer F_DUPFD_QUERY as one before Linux 6.10 does.
static void be_old_kernel(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fcntl, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 1024 + 3, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof code / sizeof *code, code };
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

int main(int argc, char **argv) {
    if (argc > 2) be_old_kernel();
    syscall(SYS_close_range, 3, ~0u, 0);
    const struct act all[] = {
        { "low-limit", low_limit }, { "too-low-limit", too_low_limit }, { "lowered-limit", lowered_limit }, { "unseen", unseen },
        { "exchanged", exchanged }, { "swapped", swapped }, { "swapped-while-running", swapped_while_running }, { "stolen", stolen }, { "far", far }, { "exchanged-vms", exchanged_vms }, { "closed-while-running", closed_while_running },
        { "parked", parked }, { "nothing-is-left", nothing_is_left }, { 0 },
    };
    return act(all, argc, argv);
}
