// A VMM that repeats one thing very often. It prints the nanoseconds of each repetition, and its private
// memory in KiB at the end. `loop WHAT COUNT`:
//   io        the guest writes to a port
//   deflected the guest reads MSR 0x8b, which this VMM's filter denies and this VMM answers
//   read      the guest reads MSR 0x8b, which the policy's gate answers
//   ioctl     this VMM asks for an extension
//   set       this VMM sets a filter, one call after the other
//   touch     the guest reads another MSR each time, of the banks of machine checks: at most 128
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define CHECK(call) ({ long answer = (call); \
    if (answer < 0) { fprintf(stderr, "%s: %s\n", #call, strerror(errno)); exit(1); } answer; })

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

static long own_kib(void) {
    char line[128];
    long kib = 0;
    FILE *rollup = fopen("/proc/self/smaps_rollup", "r");
    while (rollup && fgets(line, sizeof line, rollup)) if (sscanf(line, "Pss: %ld", &kib) == 1) break;
    return kib;
}

static const uint8_t port_for_ever[] = { 0xe6, 0x10, 0xeb, 0xfc };   // again: out 0x10, al; jmp again
static const uint8_t read_and_end[] = {
    0x0f, 0x32,                          // again: rdmsr
    0x66, 0x4f, 0x75, 0xfa,              // dec edi; jnz again
    0xe6, 0x10, 0xf4,                    // out 0x10, al; hlt
};

static const uint8_t touch_and_end[] = {
    0x0f, 0x32,                          // again: rdmsr
    0x66, 0x41,                          // inc ecx
    0x66, 0x4f, 0x75, 0xf8,              // dec edi; jnz again
    0xe6, 0x10, 0xf4,                    // out 0x10, al; hlt
};

// Sets a filter of 128 MSRs, as large as the one for `touch`.
static void set_filters(int vm, long count) {
    static uint8_t bits[16];
    struct kvm_msr_filter filter = { .ranges[0] = { .flags = 1, .nmsrs = 128, .base = 0x400, .bitmap = bits } };
    for (long i = 0; i < count; i++) CHECK(ioctl(vm, KVM_X86_SET_MSR_FILTER, &filter));
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "io";
    long count = argc > 2 ? atol(argv[2]) : 100000;
    int is_io = !strcmp(what, "io"), is_deflected = !strcmp(what, "deflected"), is_touch = !strcmp(what, "touch");
    int kvm = CHECK(open("/dev/kvm", O_RDWR)), vm = CHECK(ioctl(kvm, KVM_CREATE_VM, 0));
    uint8_t *memory = mmap(0, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = { .memory_size = 0x10000, .userspace_addr = (uint64_t)memory };
    CHECK(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
    int vcpu = CHECK(ioctl(vm, KVM_CREATE_VCPU, 0));
    struct kvm_run *run = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    struct kvm_sregs sregs;
    CHECK(ioctl(vcpu, KVM_GET_SREGS, &sregs));
    sregs.cs.base = sregs.cs.selector = 0;
    CHECK(ioctl(vcpu, KVM_SET_SREGS, &sregs));
    if (is_io) memcpy(memory + 0x1000, port_for_ever, sizeof port_for_ever);
    else if (is_touch) memcpy(memory + 0x1000, touch_and_end, sizeof touch_and_end);
    else memcpy(memory + 0x1000, read_and_end, sizeof read_and_end);
    struct kvm_regs regs = { .rip = 0x1000, .rsp = 0x8000, .rflags = 2, .rcx = is_touch ? 0x400 : 0x8b, .rdi = count };
    CHECK(ioctl(vcpu, KVM_SET_REGS, &regs));
    if (is_deflected) {
        static uint8_t bits[8];
        struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { 4 } };
        struct kvm_msr_filter filter = { .ranges[0] = { .flags = 1, .nmsrs = 1, .base = 0x8b, .bitmap = bits } };
        CHECK(ioctl(vm, KVM_ENABLE_CAP, &cap));
        CHECK(ioctl(vm, KVM_X86_SET_MSR_FILTER, &filter));
    }
    double begun = now();
    if (!strcmp(what, "ioctl")) for (long i = 0; i < count; i++) ioctl(kvm, KVM_CHECK_EXTENSION, 188);
    else if (!strcmp(what, "set")) set_filters(vm, count);
    else for (long i = 0; is_io ? i < count : 1; i++) {
        CHECK(ioctl(vcpu, KVM_RUN, 0));
        if (run->exit_reason == KVM_EXIT_X86_RDMSR) { run->msr.data = i; run->msr.error = 0; }
        else if (run->exit_reason != KVM_EXIT_IO) { fprintf(stderr, "exit %d\n", run->exit_reason); return 1; }
        else if (!is_io) break;
    }
    printf("%.1f %ld\n", (now() - begun) / count, own_kib());
    return 0;
}
