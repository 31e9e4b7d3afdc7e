/* Prints all that makes one run of a program differ from the next: clocks, random
 * numbers, process numbers, addresses, the order of threads and of a directory. */
#define _GNU_SOURCE
#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

enum { THREADS = 4, TURNS = 6 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char order[THREADS * TURNS + 1];
static int filled;

static void *take_turns(void *name)
{
    for (int turn = 0; turn < TURNS; turn++) {
        usleep(rand() % 300);
        pthread_mutex_lock(&lock);
        order[filled++] = *(char *)name;
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

static void show_threads(void)
{
    static char names[] = "ABCD";
    pthread_t threads[THREADS];

    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, take_turns, &names[i]);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    printf("threads   %s\n", order);
}

static void show_directory(const char *path)
{
    DIR *directory = opendir(path);
    struct dirent *entry;
    struct stat info;

    printf("directory");
    while (directory && (entry = readdir(directory)))
        if (entry->d_name[0] != '.')
            printf(" %s", entry->d_name);
    printf("\n");
    if (stat(path, &info) == 0)
        printf("inode     %lu, changed %ld.%09ld\n", (unsigned long)info.st_ino, (long)info.st_mtim.tv_sec,
               info.st_mtim.tv_nsec);
}

int main(int argc, char **argv)
{
    struct timespec wall, up;
    unsigned long random;
    unsigned int cpu;

    clock_gettime(CLOCK_REALTIME, &wall);
    clock_gettime(CLOCK_MONOTONIC, &up);
    if (getrandom(&random, sizeof random, 0) != sizeof random || getcpu(&cpu, NULL) != 0)
        return 1;
    srand((unsigned)random);
    printf("time      %ld.%09ld, up %ld.%09ld\n", (long)wall.tv_sec, wall.tv_nsec, (long)up.tv_sec, up.tv_nsec);
    printf("counter   %llu\n", __rdtsc());
    printf("random    %016lx\n", random);
    printf("process   %d, child of %d, on CPU %u of %ld\n", getpid(), getppid(), cpu, sysconf(_SC_NPROCESSORS_ONLN));
    printf("addresses %p %p %p\n", (void *)&wall, (void *)main, malloc(100));
    show_threads();
    show_directory(argc > 1 ? argv[1] : ".");
    return 0;
}
