/* The first thread of a process ends it while others of it wait: that they are gone the tracer hears first. */
#include "guest.h"

static void *waits(void *unused)
{
    (void)unused;
    pause();
    return NULL;
}

/* A process of several threads whose first one ends it, having touched some memory of its own. */
static void ends(int how)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, waits, NULL) == 0);
    size_t size = 192 << 20;
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    memset(memory, 1, size);
    if (how == 0) _exit(3);
    if (how == 1) raise(SIGTERM);
    if (how == 2) raise(SIGKILL);
    abort();
}

int main(void)
{
    for (int round = 0; round < 6; round++) {
        int status;
        for (int i = 0; i < 2; i++)
            if (fork() == 0) ends((round + i) % 4);
        for (int i = 0; i < 2; i++) {
            CHECK(wait(&status) > 0);
            note("%x\n", status & 0xff7f);
        }
    }
    return done();
}
