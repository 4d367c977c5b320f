// A VMM for the counts of a run. `refused WHAT`:
//   many           its guest reads MSR 0x8b 900 times
//   crash          as many, and then writes to address 0
//   bursts         twelve VMs' guests read it 900 times at once; then one reads MSR 0x10
//   for-ever       its two vCPUs read MSR 0x8b until this process is killed; it prints a line when it is continued
//   no-descriptor  it makes a VM, and then one more without room for the library's descriptors
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
#include <sys/resource.h>
#include <unistd.h>

#define CHECK(call) ({ long answer = (call); \
    if (answer < 0) { fprintf(stderr, "%s: %s\n", #call, strerror(errno)); exit(1); } answer; })

static const uint8_t guest[] = {
    0x0f, 0x32,                          // again: rdmsr
    0x66, 0x4f, 0x75, 0xfa,              // dec edi; jnz again
    0xf4,                                // hlt
};
static const uint8_t fault_handler[] = {
    0x55, 0x89, 0xe5,                    // push bp; mov bp, sp
    0x83, 0x46, 0x02, 0x02,              // add word [bp + 2], 2: past the instruction
    0x5d, 0xcf,                          // pop bp; iret
};

static int kvm, vm;

static int add_vcpu(int id, uint32_t count) {
    int vcpu = CHECK(ioctl(vm, KVM_CREATE_VCPU, id));
    struct kvm_sregs sregs;
    CHECK(ioctl(vcpu, KVM_GET_SREGS, &sregs));
    sregs.cs.base = sregs.cs.selector = 0;
    CHECK(ioctl(vcpu, KVM_SET_SREGS, &sregs));
    struct kvm_regs regs = { .rip = 0x1000, .rsp = 0x8000 - id * 0x1000, .rflags = 2, .rcx = 0x8b, .rdi = count };
    CHECK(ioctl(vcpu, KVM_SET_REGS, &regs));
    return vcpu;
}

static void make_vm(void) {
    vm = CHECK(ioctl(kvm, KVM_CREATE_VM, 0));
    uint8_t *memory = mmap(0, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = { .memory_size = 0x10000, .userspace_addr = (uint64_t)memory };
    CHECK(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
    *(uint16_t *)(memory + 13 * 4) = 0x520;
    memcpy(memory + 0x520, fault_handler, sizeof fault_handler);
    memcpy(memory + 0x1000, guest, sizeof guest);
}

static void *run_on(void *vcpu) {
    for (;;) ioctl((int)(long)vcpu, KVM_RUN, 0);
}

static void *burst(void *vcpu) {
    CHECK(ioctl((int)(long)vcpu, KVM_RUN, 0));
    return 0;
}

static void bursts(void) {
    pthread_t threads[12];
    long vcpus[12];
    for (int i = 0; i < 12; i++) { make_vm(); vcpus[i] = add_vcpu(0, 900); }
    for (int i = 0; i < 12; i++) pthread_create(&threads[i], 0, burst, (void *)vcpus[i]);
    for (int i = 0; i < 12; i++) pthread_join(threads[i], 0);
    struct kvm_regs regs = { .rip = 0x1000, .rsp = 0x8000, .rflags = 2, .rcx = 0x10, .rdi = 1 };
    CHECK(ioctl(vcpus[0], KVM_SET_REGS, &regs));
    CHECK(ioctl(vcpus[0], KVM_RUN, 0));
}

// A shell continues a process after it has given it the terminal, so the next key is the process's.
static void say_continued(int signal) { (void)!write(1, "continued\n", 10); }

static void try_vm(void) { printf("%s\n", ioctl(kvm, KVM_CREATE_VM, 0) < 0 ? "no VM" : "a VM"); }

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    setvbuf(stdout, 0, _IOLBF, 0);
    kvm = CHECK(open("/dev/kvm", O_RDWR));
    if (!strcmp(what, "no-descriptor")) {
        try_vm();
        // The VM gets the last free number, and the library none for its own.
        int next = CHECK(dup(kvm));
        close(next);
        struct rlimit limit = { next + 1, next + 1 };
        CHECK(setrlimit(RLIMIT_NOFILE, &limit));
        try_vm();
        return 0;
    }
    if (!strcmp(what, "bursts")) { bursts(); return 0; }
    make_vm();
    int crashes = !strcmp(what, "crash");
    if (crashes || !strcmp(what, "many")) {
        int vcpu = add_vcpu(0, 900);
        CHECK(ioctl(vcpu, KVM_RUN, 0));
        if (crashes) *(volatile int *)0 = 1;
        return 0;
    }
    long first = add_vcpu(0, 0), second = add_vcpu(1, 0);
    struct kvm_mp_state running = { KVM_MP_STATE_RUNNABLE };
    ioctl(second, KVM_SET_MP_STATE, &running);
    pthread_t thread;
    pthread_create(&thread, 0, run_on, (void *)second);
    signal(SIGCONT, say_continued);
    printf("begun\n");
    run_on((void *)first);
}
