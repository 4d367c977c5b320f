// A program that asks KVM for VMs, and to run one, by system calls that bypass the C library, and then through it. With an
// argument it ends before it asks through the C library.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <linux/kvm.h>

static long by_int80(int fd, long request, long argument) {
    long answer;
    __asm__ volatile("int $0x80" : "=a"(answer) : "a"(54L), "b"((long)fd), "c"(request), "d"(argument) : "memory");
    return answer;
}

static long by_syscall(long number, int fd, long request, long argument) {
    long answer;
    __asm__ volatile("syscall" : "=a"(answer) : "a"(number), "D"((long)fd), "S"(request), "d"(argument) : "rcx", "r11", "memory");
    return answer;
}

int main(int argc, char **argv) {
    int kvm = open("/dev/kvm", O_RDWR);
    printf("int 0x80: %ld\n", by_int80(kvm, KVM_CREATE_VM, 0));
    printf("x32: %ld\n", by_syscall(0x40000000L + 514, kvm, KVM_CREATE_VM, 0));
    printf("syscall: %ld\n", by_syscall(16, kvm, KVM_CREATE_VM, 0));
    printf("high bits: %ld\n", by_syscall(16, kvm, 0xdead000000000000L | KVM_CREATE_VM, 0));
    if (argc > 1) return 0;
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    printf("ioctl: %s\n", vm >= 0 ? "a VM" : "none");
    printf("filter: %ld\n", by_syscall(16, vm, 0x4188aec6, 0));
    printf("filter of 32 bits: %ld\n", by_int80(vm, 0x4104aec6, 0));
    printf("another request: %ld\n", by_int80(kvm, KVM_CHECK_EXTENSION, 188));
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    printf("run by int 0x80: %ld\n", by_int80(vcpu, KVM_RUN, 0));
    printf("run by x32: %ld\n", by_syscall(0x40000000L + 514, vcpu, KVM_RUN, 0));
    printf("run by syscall: %ld\n", by_syscall(16, vcpu, KVM_RUN, 0));
    // A VM without memory may not run, which is another error.
    int ran = ioctl(vcpu, KVM_RUN, 0);
    printf("run by ioctl: %s\n", ran < 0 && errno == EPERM ? "refused" : "not refused");
    return 0;
}
