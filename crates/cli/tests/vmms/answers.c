// A VMM whose guest tries the answers of a policy. `answers WHAT` runs the function WHAT below.
#include "vmm.h"

#define KERNEL_GS_BASE 0xc0000102
#define UNKNOWN 0x12345678
#define EFER 0xc0000080

// The guest writes 5 to MSR ECX, reads the MSR, and prints the low digit of the value, and '.', or '!' if an access
// was a #GP.
static const uint8_t write_and_read[] = {
    0xb3, '.',                           // mov bl, '.'
    0x66, 0x31, 0xd2,                    // xor edx, edx
    0x66, 0xb8, 5, 0, 0, 0,              // mov eax, 5
    0x0f, 0x30,                          // wrmsr
    0x66, 0x31, 0xc0,                    // xor eax, eax
    0x0f, 0x32,                          // rdmsr
    0x04, '0', 0xe6, 0x10,               // add al, '0'; out 0x10, al
    0x88, 0xd8, 0xe6, 0x10,              // mov al, bl; out 0x10, al
    0xb0, '\n', 0xe6, 0x10, 0xf4,        // mov al, '\n'; out 0x10, al; hlt
};
// The guest reads MSR ECX and prints in the same way.
static const uint8_t read_only[] = {
    0xb3, '.',                           // mov bl, '.'
    0x66, 0x31, 0xc0,                    // xor eax, eax
    0x0f, 0x32,                          // rdmsr
    0x04, '0', 0xe6, 0x10,               // add al, '0'; out 0x10, al
    0x88, 0xd8, 0xe6, 0x10,              // mov al, bl; out 0x10, al
    0xb0, '\n', 0xe6, 0x10, 0xf4,        // mov al, '\n'; out 0x10, al; hlt
};

static void run_guest(struct vm one, const uint8_t *code, int size, uint32_t msr) {
    set_up(one.vcpu, one.memory, code, size, msr, 0);
    run_line(one.vcpu, one.run);
}

struct one_msr { struct kvm_msrs head; struct kvm_msr_entry entry; };

// The guest writes KERNEL_GS_BASE, the VMM looks at KVM's register and then writes it, and the guest reads.
static void written(void) {
    struct vm one = make();
    run_guest(one, write_and_read, sizeof write_and_read, KERNEL_GS_BASE);
    struct one_msr msr = { .head.nmsrs = 1, .entry.index = KERNEL_GS_BASE };
    CHECK(ioctl(one.vcpu, KVM_GET_MSRS, &msr));
    printf("KVM has %d\n", (int)msr.entry.data);
    msr.entry.data = 3;
    CHECK(ioctl(one.vcpu, KVM_SET_MSRS, &msr));
    run_guest(one, read_only, sizeof read_only, KERNEL_GS_BASE);
}

// The guest accesses an MSR that KVM does not know, while the VMM's mask asks for such accesses and while it does not.
static void unknown(void) {
    struct vm one = make();
    run_guest(one, write_and_read, sizeof write_and_read, UNKNOWN);
    for (int mask = 0; mask < 8; mask += 2) {
        set_mask(one.vm, mask);
        run_guest(one, write_and_read, sizeof write_and_read, UNKNOWN);
    }
    set_mask(one.vm, 0);
    run_guest(one, read_only, sizeof read_only, UNKNOWN);
}

static void both(void) {
    struct vm one = make();
    read_msr(one, 0x8b);
    read_msr(one, 0x10);
}

// The guest writes a value to EFER that KVM refuses, and then reads it.
static void invalid(void) {
    struct vm one = make();
    run_guest(one, write_and_read, sizeof write_and_read, EFER);
}

// Sets a filter anew for each of five MSRs, with one range more each time, as QEMU does with rapl.
static void growing(void) {
    static const uint32_t msrs[] = { 0x35, 0x606, 0x610, 0x611, 0x614 };
    static uint8_t deny[8];
    struct vm one = make();
    struct kvm_msr_filter filter = { 0 };
    set_mask(one.vm, 4);
    for (int count = 1; count <= 5; count++) {
        filter.ranges[count - 1] = (struct kvm_msr_filter_range){ .flags = 1, .nmsrs = 1, .base = msrs[count - 1], .bitmap = deny };
        printf("filter: %d\n", ioctl(one.vm, KVM_X86_SET_MSR_FILTER, &filter));
        for (int i = 0; i < 5; i++) read_msr(one, msrs[i]);
        read_msr(one, 0x8b);
    }
}

// Runs a vCPU without CPUID.
static void without_cpuid(void) {
    read_msr(make(), 0x8b);
    printf("the vCPU has run\n");
}

// Sets a filter that denies what the policy allows, past the library, which only --fail-open lets through.
static void past_the_library(void) {
    static uint8_t deny[8];
    struct vm one = make();
    struct kvm_msr_filter filter = { .ranges[0] = { .flags = 1, .nmsrs = 1, .base = 0x8b, .bitmap = deny } };
    read_msr(one, 0x8b);
    CHECK(syscall(SYS_ioctl, one.vm, KVM_X86_SET_MSR_FILTER, &filter));
    read_msr(one, 0x8b);
}

int main(int argc, char **argv) {
    const struct act all[] = {
        { "written", written }, { "unknown", unknown }, { "invalid", invalid }, { "both", both }, { "growing", growing },
        { "without-cpuid", without_cpuid }, { "past-the-library", past_the_library }, { 0 },
    };
    return act(all, argc, argv);
}
