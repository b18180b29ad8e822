/* The job of the kill tests: a witness that no bug of ours can touch.
 *
 * witness LEDGER LOCKS MILLISECONDS EXIT_CODE [hide]
 *
 * Its first act is a line in the ledger (O_APPEND, fsync), its last act another. A lock per task,
 * held by everything it starts, tells exactly whether another attempt of the task is still there.
 * Members of a gang hold one more, of their generation, by which later ones tell that they are there.
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

/* Take a lock, to be held to our end; -1 when somebody else has it in a way that excludes ours. */
static int taken(const char *path, int how)
{
    int lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    if (lock < 0)
        _exit(97);
    return flock(lock, how | LOCK_NB) != 0 && errno == EWOULDBLOCK ? -1 : lock;
}

static int number_in(const char *variable)
{
    const char *told = getenv(variable);

    return told == NULL ? 0 : atoi(told);
}

/* Whether a member of an earlier generation of this gang is still there. */
static int earlier(const char *locks, const char *gang)
{
    int generation = number_in("HATOBA_GANG_GENERATION");
    int size = number_in("HATOBA_GANG_SIZE"), found = 0, number, rank, lock;
    char path[4096];

    for (number = 1; number < generation; number++)
        for (rank = 0; rank < size; rank++) {
            snprintf(path, sizeof path, "%s/%s-%d.%d", locks, gang, rank, number);
            lock = taken(path, LOCK_SH);
            if (lock < 0)
                found = 1;
            else
                close(lock);
        }
    if (generation > 0) {
        rank = number_in("HATOBA_GANG_RANK");
        snprintf(path, sizeof path, "%s/%s-%d.%d", locks, gang, rank, generation);
        taken(path, LOCK_EX);
    }
    return found;
}

int main(int argc, char **argv)
{
    const char *attempt = getenv("HATOBA_ATTEMPT");
    char path[4096], task[256];
    const char *name;
    struct timespec rest;
    long milliseconds;
    int overlap;

    if (argc < 5 || attempt == NULL || strlen(attempt) >= sizeof task)
        return 98;
    ledger = open(argv[1], O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    strcpy(task, attempt);
    /* hEPOCH-JOB-INDEX-NUMBER: what is restored goes on in another epoch. */
    name = strchr(task, '-');
    if (ledger < 0 || name == NULL || strrchr(task, '-') == name)
        return 97;
    name++;
    *strrchr(task, '-') = 0;
    snprintf(path, sizeof path, "%s/%s", argv[2], name);
    overlap = taken(path, LOCK_EX) < 0;
    *strrchr(task, '-') = 0;
    overlap |= earlier(argv[2], name);
    note("start", attempt);
    if (overlap)
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
