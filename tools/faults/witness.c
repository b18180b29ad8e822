/* The job of the kill tests: a witness that no bug of ours can touch.
 *
 * witness LEDGER LOCKS MILLISECONDS EXIT_CODE [hide]
 *
 * Its first act is a line in the ledger (O_APPEND, fsync), its last act another. A lock per task,
 * held by everything it starts, tells exactly whether another attempt of the task is still there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

static int ledger;

static void note(const char *event, const char *attempt)
{
    struct timespec now;
    char line[256];
    int length;

    clock_gettime(CLOCK_BOOTTIME, &now);
    length = snprintf(line, sizeof line, "%s %s %lld.%09ld %d\n", event, attempt,
                      (long long)now.tv_sec, now.tv_nsec, getpid());
    if (write(ledger, line, length) != length || fsync(ledger) != 0)
        _exit(99);
}

static void hide(void)
{
    if (fork() != 0)
        return;
    setsid();
    if (fork() != 0)
        _exit(0);
    signal(SIGTERM, SIG_IGN);
    sleep(600);
    _exit(0);
}

int main(int argc, char **argv)
{
    const char *attempt = getenv("HATOBA_ATTEMPT");
    char path[4096], task[256];
    struct timespec rest;
    long milliseconds;
    int lock, taken;

    if (argc < 5 || attempt == NULL || strlen(attempt) >= sizeof task)
        return 98;
    ledger = open(argv[1], O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    strcpy(task, attempt);
    if (strrchr(task, '-') != NULL)
        *strrchr(task, '-') = 0;
    snprintf(path, sizeof path, "%s/%s", argv[2], task);
    lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (ledger < 0 || lock < 0)
        return 97;
    taken = flock(lock, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    note("start", attempt);
    if (taken)
        note("overlap", attempt);
    if (argc > 5 && strcmp(argv[5], "hide") == 0)
        hide();
    milliseconds = atol(argv[3]);
    rest.tv_sec = milliseconds / 1000;
    rest.tv_nsec = milliseconds % 1000 * 1000000;
    while (nanosleep(&rest, &rest) != 0 && errno == EINTR)
        ;
    note("end", attempt);
    return atoi(argv[4]);
}
