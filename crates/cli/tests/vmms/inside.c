// A program with its C library inside, which a dynamic linker loads nevertheless: its requests are system calls of its own.
// It is linked without a C library: `-nostdlib -no-pie`, and with any shared library, so that it has a dynamic linker.
#include <linux/kvm.h>

static long call(long number, long first, long second, long third) {
    long answer;
    __asm__ volatile("syscall" : "=a"(answer) : "a"(number), "D"(first), "S"(second), "d"(third) : "rcx", "r11", "memory");
    return answer;
}

// The C library's functions that this program uses.
static long read(int fd, void *into, long size) { return call(0, fd, (long)into, size); }
static long open(const char *path, int flags) { return call(2, (long)path, flags, 0); }
static long ioctl(int fd, unsigned long request, long argument) { return call(16, fd, request, argument); }
static void print(const char *text) {
    long size = 0;
    while (text[size]) size++;
    call(1, 1, (long)text, size);
}

static int is_loaded(void) {
    static char maps[1 << 16];
    static const char name[] = "libmsrgate_preload";
    long size = 0, more, fd = open("/proc/self/maps", 0);
    while ((more = read(fd, maps + size, sizeof maps - size)) > 0) size += more;
    for (long at = 0; at < size; at++) {
        int same = 0;
        while (name[same] && maps[at + same] == name[same]) same++;
        if (!name[same]) return 1;
    }
    return 0;
}

void _start(void) {
    print(is_loaded() ? "the library is loaded\n" : "no library\n");
    print(ioctl(open("/dev/kvm", 2), KVM_CREATE_VM, 0) >= 0 ? "a VM\n" : "no VM\n");
    call(231, 0, 0, 0);
}
