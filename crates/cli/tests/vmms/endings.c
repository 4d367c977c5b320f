// A VMM whose threads and processes end and begin in unusual ways. `endings WHAT` runs the function WHAT below.
#include "vmm.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

static struct vm one;
static int times = 1;

static void *reads(void *unused) {
    for (int i = 0; i < times; i++) {
        usleep(100000);
        read_msr(one, 0x8b);
    }
    return 0;
}

static void begin(int all) {
    one = make();
    times = all;
    pthread_t thread;
    pthread_create(&thread, 0, reads, 0);
    pthread_detach(thread);
}

static void said(void) { printf("at exit\n"); }

// The main thread ends, and the process ends with the last of its other threads.
static void main_ends(void) {
    atexit(said);
    begin(2);
    pthread_exit(0);
}

static void *ends_later(void *main) {
    pthread_join(*(pthread_t *)main, 0);
    printf("main thread has ended\n");
    usleep(100000);
    read_msr(one, 0x8b);
    return 0;
}

// The main thread, which makes the process's first VM after another thread has begun, ends as the first.
static void main_ends_first(void) {
    static pthread_t self;
    self = pthread_self();
    pthread_t thread;
    pthread_create(&thread, 0, ends_later, &self);
    one = make();
    pthread_exit(0);
}

// The main thread ends, and the vCPU's thread goes on for ever: only a signal ends the process.
static void main_ends_and_others_go_on(void) {
    begin(1 << 30);
    pthread_exit(0);
}

// A child made by a thread that is not the main one ends in the same way.
static void *forks(void *unused) {
    pid_t child = fork();
    if (!child) {
        kvm = CHECK(open("/dev/kvm", O_RDWR));
        begin(1);
        pthread_exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    printf("status of the child: %d\n", status);
    return 0;
}
static void child_ends(void) {
    one = make();
    pthread_t thread;
    pthread_create(&thread, 0, forks, 0);
    pthread_join(thread, 0);
}

static volatile int stop;
static void *makes(void *unused) {
    while (!stop) {
        int vm = ioctl(kvm, KVM_CREATE_VM, 0);
        if (vm >= 0) close(vm);
    }
    return 0;
}

// Forks while two other threads make VMs. Each child makes a VM, too.
static void forks_while_making(void) {
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) pthread_create(&threads[i], 0, makes, 0);
    int good = 0;
    for (int i = 0; i < 200; i++) {
        usleep(i % 7 * 100);
        pid_t child = fork();
        if (!child) {
            alarm(20);
            kvm = CHECK(open("/dev/kvm", O_RDWR));
            close(CHECK(ioctl(kvm, KVM_CREATE_VM, 0)));
            _exit(0);
        }
        int status;
        waitpid(child, &status, 0);
        good += status == 0;
        if (status) printf("status of a child: %d\n", status);
        if (i - good > 3) break;
    }
    stop = 1;
    for (int i = 0; i < 2; i++) pthread_join(threads[i], 0);
    printf("good children: %d\n", good);
}

// Forbids all threads, the library's too, the system calls with this number, or with this request of ioctl(2).
enum { CALL = 0, REQUEST = 24 };
static void forbid_where(uint32_t offset, uint32_t value, uint32_t action) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { .len = sizeof code / sizeof *code, .filter = code };
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program));
}

// Forbids a system call that the library needs for a VM.
static void forbid(uint32_t action) { forbid_where(CALL, SYS_fcntl, action); }

static void forbidden(uint32_t action) {
    ioctl(kvm, KVM_GET_API_VERSION, 0);
    forbid(action);
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    printf("VM: %s\n", vm < 0 ? strerror(errno) : "made");
}
static void forbidden_by_error(void) { forbidden(SECCOMP_RET_ERRNO | EACCES); }
static void forbidden_by_end_of_thread(void) { forbidden(SECCOMP_RET_KILL_THREAD); }
static void forbidden_by_trap(void) { forbidden(SECCOMP_RET_TRAP); }

// As above, for a vCPU that has not run yet.
static void forbidden_before_run(void) {
    one = make();
    forbid(SECCOMP_RET_KILL_THREAD);
    read_msr(one, 0x8b);
    struct vm other = make();
    read_msr(other, 0x8b);
}

// As above, for a vCPU that has run: the library's thread is killed when it opens the filter for a first access.
static void forbidden_before_first_access(void) {
    one = make();
    read_msr(one, 0x1b);
    forbid_where(REQUEST, 0x4188aec6 /* KVM_X86_SET_MSR_FILTER */, SECCOMP_RET_KILL_THREAD);
    read_msr(one, 0x8b);
}

// A process with more than one thread may not make a user namespace for itself.
static void unshares(void) {
    ioctl(kvm, KVM_GET_API_VERSION, 0);
    int answer = syscall(SYS_unshare, 0x10000000 /* CLONE_NEWUSER */);
    printf("unshare: %s\n", answer ? strerror(errno) : "done");
}

int main(int argc, char **argv) {
    const struct act all[] = {
        { "main-ends", main_ends }, { "main-ends-first", main_ends_first }, { "others-go-on", main_ends_and_others_go_on },
        { "child-ends", child_ends }, { "forks-while-making", forks_while_making }, { "forbidden-by-error", forbidden_by_error },
        { "forbidden-by-end-of-thread", forbidden_by_end_of_thread }, { "forbidden-by-trap", forbidden_by_trap },
        { "forbidden-before-run", forbidden_before_run },
        { "forbidden-before-first-access", forbidden_before_first_access }, { "unshares", unshares }, { 0 },
    };
    return act(all, argc, argv);
}
