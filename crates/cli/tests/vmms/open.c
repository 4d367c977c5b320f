// A program that makes a VM by descriptor 9, which its starter has opened: it may not open /dev/kvm itself.
#include <errno.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

int main(void) {
    if (ioctl(9, KVM_CREATE_VM, 0) >= 0) printf("a VM\n");
    else printf("no VM: %s\n", strerror(errno));
    return 0;
}
