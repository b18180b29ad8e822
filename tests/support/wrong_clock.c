// A machine whose clock is wrong, for programs that load this before all else: what the C library and
// the kernel's waiting for a date say of the date, and of nothing that counts. It is wrong by
// WRONG_CLOCK seconds, or by those in the file WRONG_CLOCK_FILE, which may change at any time.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

// What waits for a date looks so often whether the date was changed.
#define LOOK_NS 200000000L

static long fixed;
static volatile long *seconds = &fixed;

__attribute__((constructor)) static void begin(void) {
    const char *text = getenv("WRONG_CLOCK"), *path = getenv("WRONG_CLOCK_FILE");
    if (text) fixed = atol(text);
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *seen = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (seen != MAP_FAILED) seconds = seen;
    close(file);
}

int clock_gettime(clockid_t which, struct timespec *out) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(which, out);
    if (!code && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) out->tv_sec += *seconds;
    return code;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int code = real(out, zone);
    if (!code) out->tv_sec += *seconds;
    return code;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

// A date by this clock as the kernel knows it, or a look's time from now if that is sooner.
static int next_look(const struct timespec *date, struct timespec *out) {
    clock_gettime(CLOCK_REALTIME, out);
    out->tv_sec -= *seconds;
    out->tv_nsec += LOOK_NS;
    if (out->tv_nsec >= 1000000000L) out->tv_sec += 1, out->tv_nsec -= 1000000000L;
    long whole = date->tv_sec - *seconds;
    if (whole > out->tv_sec || (whole == out->tv_sec && date->tv_nsec > out->tv_nsec)) return 1;
    // The kernel takes no date before 1970.
    out->tv_sec = whole < 0 ? 0 : whole;
    out->tv_nsec = date->tv_nsec;
    return 0;
}

// gRPC waits for dates by this call itself.
long syscall(long number, ...) {
    static long (*real)(long, ...);
    if (!real) real = dlsym(RTLD_NEXT, "syscall");
    long all[6];
    va_list told;
    va_start(told, number);
    for (int at = 0; at < 6; at++) all[at] = va_arg(told, long);
    va_end(told);
    const struct timespec *date = (const struct timespec *)all[3];
    if (number != SYS_futex || !(all[1] & FUTEX_CLOCK_REALTIME) || !date)
        return real(number, all[0], all[1], all[2], all[3], all[4], all[5]);
    struct timespec look;
    for (;;) {
        int more = next_look(date, &look);
        long code = real(number, all[0], all[1], all[2], &look, all[4], all[5]);
        if (code == 0 || errno != ETIMEDOUT || !more) return code;
    }
}
