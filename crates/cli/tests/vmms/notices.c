// A VMM that looks for what it should not notice of the library. `notices WHAT` runs the function WHAT below.
#include "vmm.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>

static struct sock_filter step(int code, uint32_t value, int yes, int no) { return (struct sock_filter){ code, yes, no, value }; }

// Forbids the calling thread these system calls, and a futex(2) that waits: the process is then killed with status 159.
static void forbid(const int *calls, int count) {
    struct sock_filter code[64];
    int n = 0;
    code[n++] = step(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr), 0, 0);
    for (int i = 0; i < count; i++) {
        code[n++] = step(BPF_JMP | BPF_JEQ | BPF_K, calls[i], 0, 1);
        code[n++] = step(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS, 0, 0);
    }
    code[n++] = step(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
    struct sock_fprog program = { n, code };
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

// Counts the allocations of the closing thread.
static __thread int is_closing;
static volatile int allocations;
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void *malloc(size_t size) { allocations += is_closing; return __libc_malloc(size); }
void *calloc(size_t count, size_t size) { allocations += is_closing; return __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { allocations += is_closing; return __libc_realloc(old, size); }

#define VMS 20
static struct vm all[VMS];
static volatile int closing, closed;

static void *close_all(void *unused) {
    int calls[] = { SYS_futex, SYS_getpid, SYS_mmap, SYS_munmap, SYS_brk, SYS_madvise, SYS_sched_yield };
    // A thread that waits for a lock calls futex(2). One that wakes another does, too: the helper sleeps.
    forbid(calls + 1, sizeof calls / sizeof *calls - 1);
    closing = is_closing = 1;
    for (int i = 0; i < VMS; i++) closed += !close(all[i].vcpu) + !close(all[i].vm);
    is_closing = 0;
    closing = 0;
    for (;;) pause();
}

// Closes descriptors on a thread that may do little else, while another thread makes and drops VMs.
static void closes(void) {
    for (int i = 0; i < VMS; i++) { all[i] = make(); read_msr(all[i], 0x8b); }
    pthread_t thread;
    pthread_create(&thread, 0, close_all, 0);
    while (closed < 2 * VMS) { struct vm one = make(); drop(one); }
    printf("closed %d, allocations %d\n", closed, allocations);
}

static volatile int asks, stop;
static struct vm asked;
static void *ask_for_ever(void *unused) {
    int calls[] = { SYS_munmap, SYS_close };
    // The thread's part of the heap takes a call of munmap(2) to begin with.
    free(malloc(64));
    forbid(calls, 2);
    struct kvm_enable_cap cap = { .cap = 0xffff };
    struct { struct kvm_msrs head; struct kvm_msr_entry one; } msrs = { { .nmsrs = 1 }, { .index = 0x8b } };
    while (!stop) {
        ioctl(asked.vm, KVM_ENABLE_CAP, &cap);
        ioctl(asked.vcpu, KVM_SET_MSRS, &msrs);
        asks++;
    }
    return 0;
}

// Closes a VM's descriptors while a thread makes requests on them that may neither close nor unmap anything.
static void closed_while_asked(void) {
    asked = make();
    pthread_t thread;
    pthread_create(&thread, 0, ask_for_ever, 0);
    for (int i = 0; i < 200; i++) {
        int before = asks;
        while (asks == before);
        struct vm one = asked;
        drop(one);
        asked = make();
    }
    stop = 1;
    pthread_join(thread, 0);
    printf("closed\n");
}

static struct vm kicked;
static volatile int is_kicked, returned, entered;
// True if the kick came while the thread executed the VMM's own code, between the VMM's look and the call of ioctl.
static volatile int came_early;
static void note_kick(int signal, siginfo_t *unused, void *context) {
    extern char __executable_start, etext;
    char *at = (char *)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    came_early = at >= &__executable_start && at < &etext;
    is_kicked = 1;
}
static void *run_to_kick(void *unused) {
    entered = 1;
    while (!is_kicked) {
        if (ioctl(kicked.vcpu, KVM_RUN, 0) == 0 || errno != EINTR) { printf("exit %d: %s\n", kicked.run->exit_reason, strerror(errno)); exit(1); }
        if (kicked.run->exit_reason != KVM_EXIT_INTR) { printf("exit %d\n", kicked.run->exit_reason); exit(1); }
    }
    returned = 1;
    return 0;
}

// The guest reads MSR ECX once, and then makes no exit any more.
static const uint8_t spin[] = { 0x0f, 0x32, 0xeb, 0xfe }; // rdmsr; again: jmp again

// Kicks a vCPU by a signal without immediate_exit during its first KVM_RUN, in which the library binds it and its only access
// waits. The VMM looks for a kick before each KVM_RUN.
static void early_kicks(void) {
    struct sigaction action = { .sa_sigaction = note_kick, .sa_flags = SA_SIGINFO };
    sigaction(SIGUSR1, &action, 0);
    int seen = 0;
    for (int i = 0, tries = 0; i < 100 && tries < 1000; i++, tries++) {
        kicked = make();
        set_up(kicked.vcpu, kicked.memory, spin, sizeof spin, 0x8b, 0);
        is_kicked = returned = entered = 0;
        pthread_t thread;
        pthread_create(&thread, 0, run_to_kick, 0);
        while (!entered);
        // A kick that comes between the VMM's look and the KVM_RUN is the VMM's own fault, and is repeated. It may come then if
        // the thread has to wait for a processor.
        struct timespec now, end;
        clock_gettime(CLOCK_MONOTONIC, &end);
        end.tv_nsec += 20000 + i * 30000;
        do clock_gettime(CLOCK_MONOTONIC, &now);
        while ((now.tv_sec - end.tv_sec) * 1000000000L + now.tv_nsec < end.tv_nsec);
        pthread_kill(thread, SIGUSR1);
        for (int wait = 0; wait < 20000 && !returned; wait++) usleep(100);
        seen += returned;
        if (!returned && came_early) i--;
        if (!returned) pthread_kill(thread, SIGUSR1);
        pthread_join(thread, 0);
        drop(kicked);
    }
    printf("seen %d of 100\n", seen);
}

static void *run_to_exit(void *unused) {
    CHECK(ioctl(kicked.vcpu, KVM_RUN, 0));
    returned = 1;
    return 0;
}

// Looks at kvm_valid_regs while the guest runs, and after it, for each value of the VMM's own.
static void valid_registers(void) {
    for (int own = 0; own < 8; own++) {
        kicked = make();
        kicked.run->kvm_valid_regs = own;
        set_up(kicked.vcpu, kicked.memory, loop, sizeof loop, 0x8b, 0);
        returned = 0;
        pthread_t thread;
        pthread_create(&thread, 0, run_to_exit, 0);
        usleep(100000);
        uint64_t seen = 0;
        for (int i = 0; i < 1000 && !returned; i++, usleep(10)) seen |= kicked.run->kvm_valid_regs;
        kicked.memory[0x1000 + 4] = kicked.memory[0x1000 + 5] = 0x90;
        pthread_join(thread, 0);
        printf("own %d, during KVM_RUN %d, after it %d\n", own, (int)seen, (int)kicked.run->kvm_valid_regs);
        drop(kicked);
    }
}

static volatile int exits;
static void *count_exits(void *unused) {
    while (ioctl(kicked.vcpu, KVM_RUN, 0) == 0 && kicked.run->exit_reason == KVM_EXIT_X86_RDMSR && kicked.run->msr.reason == KVM_MSR_EXIT_REASON_FILTER) exits++;
    if (kicked.run->exit_reason != KVM_EXIT_IO) printf("exit %d: %s\n", kicked.run->exit_reason, strerror(errno));
    return 0;
}

// Changes the mask while the guest reads an MSR that the VMM's own filter denies.
static void mask_while_running(void) {
    static uint8_t bits[8];
    struct kvm_msr_filter filter = { .ranges[0] = { .flags = 1, .nmsrs = 1, .base = 0x8b, .bitmap = bits } };
    struct kvm_enable_cap none = { .cap = KVM_CAP_X86_USER_SPACE_MSR }, asks = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { 4 } };
    kicked = make();
    CHECK(ioctl(kicked.vm, KVM_X86_SET_MSR_FILTER, &filter));
    set_up(kicked.vcpu, kicked.memory, loop, sizeof loop, 0x8b, 0);
    pthread_t thread;
    pthread_create(&thread, 0, count_exits, 0);
    int with = 0, without = 0;
    for (int i = 0; i < 50; i++) {
        int before = exits;
        CHECK(ioctl(kicked.vm, KVM_ENABLE_CAP, &asks));
        for (int wait = 0; wait < 100000 && exits == before; wait++) usleep(100);
        with += exits != before;
        CHECK(ioctl(kicked.vm, KVM_ENABLE_CAP, &none));
        // Some exits may be on their way.
        for (int wait = 0; wait < 1000; wait++) {
            before = exits;
            usleep(10000);
            if (exits == before) { without++; break; }
        }
    }
    kicked.memory[0x1000 + 4] = kicked.memory[0x1000 + 5] = 0x90;
    pthread_join(thread, 0);
    printf("exits with the mask %d of 50, none without it %d of 50\n", with, without);
}

// Prints all of the vCPU's pages except those parts of the union that the exit's reason does not define.
static void print_run(struct kvm_run *run) {
    static uint64_t words[12288 / 8];
    memcpy(words, run, sizeof words);
    int defined = run->exit_reason == KVM_EXIT_IO ? 16 : run->exit_reason == KVM_EXIT_X86_RDMSR ? 24 : 0;
    memset((char *)words + 32 + defined, 0, 256 - defined);
    // The number of an exception means nothing where there is none.
    struct kvm_vcpu_events *events = &((struct kvm_run *)words)->s.regs.events;
    if (!events->exception.injected && !events->exception.pending) memset(&events->exception, 0, sizeof events->exception);
    printf("exit %d:", run->exit_reason);
    for (int i = 0; i < 12288 / 8; i++) if (words[i]) printf(" %x:%lx", i * 8, (long)words[i]);
    printf("\n");
}

static void print_exits(struct vm one, int valid) {
    one.run->kvm_valid_regs = valid;
    set_up(one.vcpu, one.memory, once, sizeof once, 0x8b, 0);
    for (;;) {
        CHECK(ioctl(one.vcpu, KVM_RUN, 0));
        print_run(one.run);
        if (one.run->exit_reason == KVM_EXIT_X86_RDMSR) one.run->msr.data = 7;
        if (one.run->exit_reason == KVM_EXIT_IO && *((char *)one.run + one.run->io.data_offset) == '\n') return;
        if (one.run->exit_reason != KVM_EXIT_IO && one.run->exit_reason != KVM_EXIT_X86_RDMSR) return;
    }
}

// Prints the pages at each exit, without registers and with some, without a filter of the VMM's and with one.
static void whole_pages(void) {
    uint8_t deny[8] = { 0 };
    struct vm one = make();
    // The VMM has values of its own where it asks for no registers.
    memset(&one.run->s.regs.regs, 0x5a, sizeof one.run->s.regs.regs);
    for (int valid = 0; valid < 8; valid++) print_exits(one, valid);
    set_filter(one.vm, 0, 0x8b, 1, deny);
    print_exits(one, 0);
    set_mask(one.vm, 4);
    print_exits(one, 0);
    print_exits(one, 7);
}

// Sets filters on descriptors that are no VM's, and one of the size that it has in 32-bit programs.
static void wrong_files(void) {
    struct vm one = make();
    static uint8_t bits[8];
    struct kvm_msr_filter filter = { .ranges[0] = { .flags = 1, .nmsrs = 1, .base = 0x8b, .bitmap = bits } };
    int pipes[2];
    CHECK(pipe(pipes));
    int files[] = { kvm, one.vcpu, pipes[0], open("/dev/null", O_RDONLY), 1000, -1 };
    for (int i = 0; i < sizeof files / sizeof *files; i++) {
        int answer = ioctl(files[i], KVM_X86_SET_MSR_FILTER, &filter);
        printf("%d %s\n", answer, strerror(errno));
        answer = ioctl(files[i], KVM_X86_SET_MSR_FILTER, (void *)16);
        printf("%d %s\n", answer, strerror(errno));
    }
    int answer = ioctl(one.vm, 0x4104aec6, &filter);
    printf("of 32 bits: %d %s\n", answer, strerror(errno));
    read_msr(one, 0x8b);
}

// Prints the descriptors of VMs and vCPUs of this process, and the mappings of vCPUs' pages.
static void print_kvm(const char *who) {
    char path[300], name[64], line[512];
    int mappings = 0;
    printf("%s:", who);
    for (int fd = 0; fd < 10000; fd++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        int length = readlink(path, name, sizeof name - 1);
        name[length < 0 ? 0 : length] = 0;
        if (strstr(name, "kvm-v")) printf(" %d", fd);
    }
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps)) mappings += strstr(line, "kvm-vcpu") != 0;
    fclose(maps);
    printf(", %d mappings\n", mappings);
}

// Forks a child that goes on without execve(2), which forks another one.
static void forked(void) {
    struct vm one = make();
    read_msr(one, 0x8b);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        print_kvm("child");
        fflush(stdout);
        child = fork();
        if (!child) { print_kvm("grandchild"); fflush(stdout); _exit(0); }
        waitpid(child, 0, 0);
        _exit(0);
    }
    waitpid(child, 0, 0);
    read_msr(one, 0x8b);
}

static int passed(int fd, int first_closes) {
    int ends[2], got = -1;
    char byte = 0;
    union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr head; } control;
    struct iovec data = { &byte, 1 };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
    control.head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
    memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
    CHECK(sendmsg(ends[0], &message, 0));
    if (first_closes) { close(fd); usleep(1500000); }
    CHECK(recvmsg(ends[1], &message, 0));
    memcpy(&got, CMSG_DATA(&control.head), sizeof got);
    if (!first_closes) close(fd);
    return got;
}

// Runs a vCPU by a descriptor that came through a socket, before the first one was closed.
static void passed_while_open(void) {
    struct vm one = make();
    read_msr(one, 0x8b);
    one.vcpu = passed(one.vcpu, 0);
    read_msr(one, 0x8b);
}

// The vCPU has no descriptor for a while but the one in the socket.
static void passed_alone(void) {
    struct vm one = make();
    set_up(one.vcpu, one.memory, once, sizeof once, 0x8b, 0);
    one.vcpu = passed(one.vcpu, 1);
    printf("received\n");
    run_line(one.vcpu, one.run);
}

// Takes all descriptors below 65,536 before it makes a VM.
static void high_numbers(void) {
    struct rlimit limit = { 70000, 70000 };
    if (setrlimit(RLIMIT_NOFILE, &limit)) { printf("no such limit\n"); return; }
    while (dup(0) < 65535);
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    printf("VM %d, %s\n", vm, strerror(errno));
    int next = dup(0);
    printf("next %d\n", next);
}

int main(int argc, char **argv) {
    const struct act all[] = {
        { "closes", closes }, { "closed-while-asked", closed_while_asked }, { "early-kicks", early_kicks },
        { "valid-registers", valid_registers }, { "mask-while-running", mask_while_running }, { "whole-pages", whole_pages },
        { "wrong-files", wrong_files }, { "forked", forked }, { "passed-while-open", passed_while_open },
        { "passed-alone", passed_alone }, { "high-numbers", high_numbers }, { 0 },
    };
    return act(all, argc, argv);
}
