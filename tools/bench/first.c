/* first FILE: writes when its first instruction ran, in nanoseconds since 1970. */
#include <stdio.h>
#include <time.h>

int main(int argc, char **argv)
{
    struct timespec now;
    FILE *file;

    clock_gettime(CLOCK_REALTIME, &now);
    file = argc > 1 ? fopen(argv[1], "w") : NULL;
    if (file == NULL)
        return 1;
    fprintf(file, "%lld%09ld\n", (long long)now.tv_sec, now.tv_nsec);
    return fclose(file) != 0;
}
