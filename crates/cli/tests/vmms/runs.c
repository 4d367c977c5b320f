// A VMM that runs vCPUs with steps, kicks and interruptions. `runs WHAT` runs the function WHAT below.
#include "vmm.h"

// Steps the guest through its accesses, and prints each exit.
static void step(struct vm one) {
    struct kvm_guest_debug debug = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP };
    struct kvm_regs regs;
    for (int turn = 0; turn < 3; turn++) {
        set_up(one.vcpu, one.memory, once, sizeof once, 0x8b, 0);
        CHECK(ioctl(one.vcpu, KVM_SET_GUEST_DEBUG, &debug));
        for (int i = 0; i < 30; i++) {
            if (ioctl(one.vcpu, KVM_RUN, 0) < 0) { printf("KVM_RUN: %s\n", strerror(errno)); return; }
            CHECK(ioctl(one.vcpu, KVM_GET_REGS, &regs));
            printf("exit %d at %llx, al %llx, bl %llx\n", one.run->exit_reason, regs.rip, regs.rax & 0xff, regs.rbx & 0xff);
            if (one.run->exit_reason == KVM_EXIT_IO && *((char *)one.run + one.run->io.data_offset) == '\n') break;
        }
    }
}

static void steps(void) { step(make()); }

// The same in a VM whose own filter refuses the access.
static void refused_steps(void) {
    static uint8_t deny[8];
    struct vm one = make();
    struct kvm_msr_filter filter = { .ranges[0] = { .flags = 1, .nmsrs = 1, .base = 0x8b, .bitmap = deny } };
    CHECK(ioctl(one.vm, KVM_X86_SET_MSR_FILTER, &filter));
    step(one);
}

// Enters with immediate_exit set, before the first run, after an exit, and with an answer of the gate's to come.
static void immediate_exit(void) {
    struct vm one = make();
    struct kvm_regs before, after;
    set_up(one.vcpu, one.memory, once, sizeof once, 0x8b, 0);
    for (int i = 0; i < 8; i++) {
        CHECK(ioctl(one.vcpu, KVM_GET_REGS, &before));
        one.run->immediate_exit = 1;
        int answer = ioctl(one.vcpu, KVM_RUN, 0);
        CHECK(ioctl(one.vcpu, KVM_GET_REGS, &after));
        printf("%d %s, moved by %d, flag %d\n", answer, answer ? strerror(errno) : "", (int)(after.rip - before.rip), one.run->immediate_exit);
        one.run->immediate_exit = 0;
        answer = ioctl(one.vcpu, KVM_RUN, 0);
        printf("exit %d\n", one.run->exit_reason);
        if (answer || one.run->exit_reason != KVM_EXIT_IO) break;
        if (*((char *)one.run + one.run->io.data_offset) == '\n') break;
    }
}

static struct vm kicked;
static volatile int rounds, stop;
static void set_flag(int signal) { kicked.run->immediate_exit = 1; }
static void nothing(int signal) {}

static void *run_to_flags(void *unused) {
    for (;;) {
        if (ioctl(kicked.vcpu, KVM_RUN, 0) == 0 || errno != EINTR) { printf("exit %d\n", kicked.run->exit_reason); exit(1); }
        if (!kicked.run->immediate_exit) continue;
        kicked.run->immediate_exit = 0;
        __atomic_add_fetch(&rounds, 1, __ATOMIC_SEQ_CST);
        if (stop) return 0;
    }
}

// Kicks by a signal whose handler sets immediate_exit, as QEMU's does: the guest reads an MSR for ever.
static void flag_kicks(void) {
    struct sigaction action = { .sa_handler = set_flag };
    sigaction(SIGUSR1, &action, 0);
    kicked = make();
    set_up(kicked.vcpu, kicked.memory, loop, sizeof loop, 0x8b, 0);
    pthread_t thread;
    pthread_create(&thread, 0, run_to_flags, 0);
    usleep(100000);
    int seen = 0, kicks = 0;
    while (!stop) {
        int before = rounds;
        stop = !goes_on(++kicks, 1000);
        pthread_kill(thread, SIGUSR1);
        for (int wait = 0; wait < 100000 && rounds == before; wait++) usleep(100);
        seen += rounds != before;
    }
    pthread_join(thread, 0);
    print_seen(seen, kicks);
    printf("\n");
}

static void *run_to_signals(void *unused) {
    sigset_t kick, got;
    sigemptyset(&kick);
    sigaddset(&kick, SIGUSR1);
    struct timespec none = { 0 };
    for (;;) {
        if (ioctl(kicked.vcpu, KVM_RUN, 0) == 0 || errno != EINTR) { printf("exit %d\n", kicked.run->exit_reason); exit(1); }
        if (sigtimedwait(&kick, 0, &none) != SIGUSR1) { printf("no signal\n"); exit(1); }
        __atomic_add_fetch(&rounds, 1, __ATOMIC_SEQ_CST);
        if (stop) return 0;
    }
}

// Kicks by a signal that only KVM_RUN unblocks, by KVM_SET_SIGNAL_MASK, and that no handler catches.
static void masked_kicks(void) {
    sigset_t kick;
    sigemptyset(&kick);
    sigaddset(&kick, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &kick, 0);
    kicked = make();
    set_up(kicked.vcpu, kicked.memory, loop, sizeof loop, 0x8b, 0);
    struct { struct kvm_signal_mask head; uint64_t none; } mask = { { .len = 8 }, 0 };
    CHECK(ioctl(kicked.vcpu, KVM_SET_SIGNAL_MASK, &mask));
    pthread_t thread;
    pthread_create(&thread, 0, run_to_signals, 0);
    usleep(100000);
    int seen = 0, kicks = 0;
    while (!stop) {
        int before = rounds;
        stop = !goes_on(++kicks, 1000);
        pthread_kill(thread, SIGUSR1);
        for (int wait = 0; wait < 100000 && rounds == before; wait++) usleep(100);
        seen += rounds != before;
    }
    pthread_join(thread, 0);
    print_seen(seen, kicks);
    printf("\n");
}

static volatile int answered;
static void *answers(void *unused) {
    while (ioctl(kicked.vcpu, KVM_RUN, 0) == 0 && kicked.run->exit_reason == KVM_EXIT_X86_RDMSR && kicked.run->msr.index == 0x8b) answered++;
    if (kicked.run->exit_reason != KVM_EXIT_IO) printf("exit %d: %s\n", kicked.run->exit_reason, strerror(errno));
    return 0;
}

// Changes the VMM's own filter while a guest reads the MSR that it denies or allows. The VMM's own mask asks for its exits.
static void changes_while_running(void) {
    static uint8_t bits[8];
    struct kvm_msr_filter none = { 0 }, filter = { .ranges[0] = { .flags = 1, .nmsrs = 1, .base = 0x8b, .bitmap = bits } };
    struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { 4 } };
    kicked = make();
    CHECK(ioctl(kicked.vm, KVM_ENABLE_CAP, &cap));
    set_up(kicked.vcpu, kicked.memory, loop, sizeof loop, 0x8b, 0);
    pthread_t thread;
    pthread_create(&thread, 0, answers, 0);
    int turns = 0;
    for (int i = 0; i < 50; i++) {
        int before = answered;
        CHECK(ioctl(kicked.vm, KVM_X86_SET_MSR_FILTER, &filter));
        for (int wait = 0; wait < 100000 && answered == before; wait++) usleep(100);
        turns += answered != before;
        CHECK(ioctl(kicked.vm, KVM_X86_SET_MSR_FILTER, &none));
    }
    kicked.memory[0x1000 + 4] = 0x90, kicked.memory[0x1000 + 5] = 0x90;
    pthread_join(thread, 0);
    printf("exits after %d of 50 changes\n", turns);
}

// The guest reads the MSRs from ECX up to ECX + EDI, and then writes '.'; a #GP ends the run.
static const uint8_t many[] = {
    0x0f, 0x32,                          // again: rdmsr
    0x66, 0x41,                          // inc ecx
    0x66, 0x4f, 0x75, 0xf8,              // dec edi; jnz again
    0xb0, '.', 0xe6, 0x10, 0xf4,         // mov al, '.'; out 0x10, al; hlt
};

static pthread_t vcpu_thread;
static void *kicks_always(void *unused) {
    while (!stop) { pthread_kill(vcpu_thread, SIGUSR1); usleep(50); }
    return 0;
}

// Looks at the vCPU's events after each interruption while accesses wait for a filter that lets them through, and writes
// them back as a VMM may that synchronises its vCPUs.
static void kicked_first_accesses(void) {
    struct sigaction action = { .sa_handler = nothing };
    sigaction(SIGUSR1, &action, 0);
    vcpu_thread = pthread_self();
    pthread_t thread;
    pthread_create(&thread, 0, kicks_always, 0);
    int interrupted = 0, exceptions = 0, dirty = 0, done = 0;
    sigset_t kick;
    sigemptyset(&kick);
    sigaddset(&kick, SIGUSR1);
    for (int i = 0; i < 20; i++) {
        // A signal interrupts KVM_CREATE_VM, too.
        pthread_sigmask(SIG_BLOCK, &kick, 0);
        struct vm one = make();
        set_up(one.vcpu, one.memory, many, sizeof many, 0x200, 16);
        pthread_sigmask(SIG_UNBLOCK, &kick, 0);
        for (;;) {
            int answer = ioctl(one.vcpu, KVM_RUN, 0);
            if (!answer) break;
            if (errno != EINTR) { printf("KVM_RUN: %s\n", strerror(errno)); exit(1); }
            struct kvm_vcpu_events events;
            CHECK(ioctl(one.vcpu, KVM_GET_VCPU_EVENTS, &events));
            exceptions += events.exception.injected || events.exception.pending;
            dirty += one.run->kvm_dirty_regs != 0;
            CHECK(ioctl(one.vcpu, KVM_SET_VCPU_EVENTS, &events));
            interrupted++;
        }
        done += one.run->exit_reason == KVM_EXIT_IO && *((char *)one.run + one.run->io.data_offset) == '.';
        drop(one);
    }
    stop = 1;
    pthread_join(thread, 0);
    printf("done %d of 20, exceptions %d, dirty registers %d, interruptions: %s\n", done, exceptions, dirty, interrupted ? "some" : "none");
}

// Sets one CPUID and then another: a VMM may until the vCPU runs.
static void cpuid_twice(void) {
    struct vm one = make();
    struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[2]; } cpuid = { .head.nent = 2 };
    cpuid.entries[0] = (struct kvm_cpuid_entry2){ .function = 0, .eax = 1, .ebx = 0x68747541, .edx = 0x69746e65, .ecx = 0x444d4163 };
    cpuid.entries[1] = (struct kvm_cpuid_entry2){ .function = 1, .eax = 0x00a20f10 };
    CHECK(ioctl(one.vcpu, KVM_SET_CPUID2, &cpuid));
    give_cpuid(one.vcpu, 0x606a6);
    read_msr(one, 0x8b);
}

// Sets the CPUID by the older of the two requests.
static void old_cpuid(void) {
    for (int i = 0; i < 2; i++) {
        struct vm one = make();
        struct { struct kvm_cpuid head; struct kvm_cpuid_entry entries[2]; } cpuid = { .head.nent = 2 };
        cpuid.entries[0] = (struct kvm_cpuid_entry){ .function = 0, .eax = 1, .ebx = 0x756e6547, .edx = 0x49656e69, .ecx = 0x6c65746e };
        if (i) cpuid.entries[0] = (struct kvm_cpuid_entry){ .function = 0, .eax = 1, .ebx = 0x68747541, .edx = 0x69746e65, .ecx = 0x444d4163 };
        cpuid.entries[1] = (struct kvm_cpuid_entry){ .function = 1, .eax = i ? 0x00a20f10 : 0x606a6 };
        CHECK(ioctl(one.vcpu, KVM_SET_CPUID, &cpuid));
        read_msr(one, 0x8b);
        drop(one);
    }
}

int main(int argc, char **argv) {
    const struct act all[] = {
        { "steps", steps }, { "refused-steps", refused_steps }, { "immediate-exit", immediate_exit }, { "flag-kicks", flag_kicks },
        { "kicked-first-accesses", kicked_first_accesses }, { "old-cpuid", old_cpuid }, { "cpuid-twice", cpuid_twice },
        { "masked-kicks", masked_kicks }, { "changes-while-running", changes_while_running }, { 0 },
    };
    return act(all, argc, argv);
}
