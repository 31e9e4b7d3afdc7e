/* POSIX message queues, named shared memory and named semaphores. */
#include "guest.h"
#include <grp.h>
#include <mqueue.h>
#include <semaphore.h>

static void queues(void)
{
    struct mq_attr attributes = {.mq_maxmsg = 4, .mq_msgsize = 32};
    mqd_t queue = mq_open("/guest-queue", O_CREAT | O_EXCL | O_RDWR, 0600, &attributes);
    if (queue == (mqd_t)-1 && errno == ENOSYS) { /* a documented refusal */
        note("no message queues\n");
        return;
    }
    CHECK(queue != (mqd_t)-1);
    char text[32];
    unsigned priority;
    CHECK(mq_send(queue, "low", 4, 1) == 0 && mq_send(queue, "high", 5, 9) == 0);
    CHECK(mq_receive(queue, text, 32, &priority) == 5 && priority == 9);
    CHECK(mq_receive(queue, text, 32, &priority) == 4 && strcmp(text, "low") == 0);
    struct timespec t = ns_to_timespec(clock_ns(CLOCK_REALTIME) + 20 * MS);
    FAILS(mq_timedreceive(queue, text, 32, NULL, &t), ETIMEDOUT);
    CHECK(clock_ns(CLOCK_REALTIME) >= t.tv_sec * SECOND + t.tv_nsec);
    pid_t pid = fork();
    if (pid == 0) {
        for (char i = 0; i < 20; i++)
            CHECK(mq_send(queue, &i, 1, 0) == 0);
        _exit(0);
    }
    for (char i = 0; i < 20; i++)
        CHECK(mq_receive(queue, text, 32, NULL) == 1 && text[0] == i);
    reap(pid, 0);
    CHECK(mq_close(queue) == 0 && mq_unlink("/guest-queue") == 0);
    FAILS(mq_unlink("/guest-queue"), ENOENT);
}

static volatile sig_atomic_t told;

static void tell(int signo)
{
    (void)signo;
    told++;
}

/* Who wants to be told of a message is not told of one that somebody waits for, and still is of the next one. */
static void notified(void)
{
    struct mq_attr attributes = {.mq_maxmsg = 4, .mq_msgsize = 32};
    mqd_t queue = mq_open("/guest-told", O_CREAT | O_EXCL | O_RDWR, 0600, &attributes);
    if (queue == (mqd_t)-1 && errno == ENOSYS)
        return;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    char text[32];
    unsigned priority;
    on_signal(SIGRTMIN, tell, 0);
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(mq_receive(queue, text, 32, &priority) == 3 && !memcmp(text, "two", 3) && priority == 7);
        _exit(0);
    }
    sleep_ms(50); /* until it waits */
    CHECK(mq_notify(queue, &event) == 0 && mq_send(queue, "two", 3, 7) == 0);
    CHECK(told == 0);
    reap(pid, 0);
    CHECK(mq_send(queue, "one", 3, 1) == 0 && told == 1);
    CHECK(mq_send(queue, "more", 4, 1) == 0 && told == 1);
    CHECK(mq_receive(queue, text, 32, &priority) == 3 && priority == 1);
    CHECK(mq_close(queue) == 0 && mq_unlink("/guest-told") == 0);
}

/* A queue belongs to who makes it, and its directory to root. */
static void owned(void)
{
    if (geteuid() != 0)
        return;
    mqd_t queue = mq_open("/guest-private", O_CREAT | O_EXCL | O_RDWR, 0640, NULL);
    if (queue == (mqd_t)-1 && errno == ENOSYS)
        return;
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(setgroups(0, NULL) == 0 && setresgid(0, 0, 0) == 0 && setresuid(1234, 1234, 1234) == 0);
        CHECK(mq_open("/guest-private", O_RDONLY) != (mqd_t)-1);
        FAILS((int)mq_open("/guest-private", O_RDWR), EACCES);
        FAILS((int)mq_open("/guest-private", O_RDWR | O_CREAT | O_EXCL, 0600, NULL), EEXIST);
        FAILS(mq_unlink("/guest-private"), EACCES); /* glibc's for EPERM */
        CHECK(mq_open("/guest-theirs", O_CREAT | O_EXCL | O_WRONLY, 0200, NULL) != (mqd_t)-1);
        FAILS((int)mq_open("/guest-theirs", O_RDONLY), EACCES);
        CHECK(mq_open("/guest-theirs", O_WRONLY) != (mqd_t)-1);
        _exit(0);
    }
    reap(pid, 0);
    pid = fork();
    if (pid == 0) {
        CHECK(setresuid(1235, 1235, 1235) == 0);
        FAILS((int)mq_open("/guest-theirs", O_WRONLY), EACCES);
        FAILS(mq_unlink("/guest-theirs"), EACCES);
        _exit(0);
    }
    reap(pid, 0);
    CHECK(mq_close(queue) == 0 && mq_unlink("/guest-private") == 0 && mq_unlink("/guest-theirs") == 0);
}

static void semaphore_and_memory(void)
{
    int fd = shm_open("/guest-memory", O_CREAT | O_EXCL | O_RDWR, 0600);
    CHECK(fd >= 0 && ftruncate(fd, 4096) == 0);
    int *words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    sem_t *sem = sem_open("/guest-semaphore", O_CREAT | O_EXCL, 0600, 0);
    CHECK(words != MAP_FAILED && sem != SEM_FAILED);
    pid_t pid = fork();
    if (pid == 0) {
        sem_t *mine = sem_open("/guest-semaphore", 0);
        CHECK(mine != SEM_FAILED);
        for (int i = 0; i < 10; i++) {
            CHECK(sem_wait(mine) == 0);
            words[0]++;
        }
        _exit(0);
    }
    for (int i = 0; i < 10; i++)
        CHECK(sem_post(sem) == 0);
    reap(pid, 0);
    int value;
    CHECK(words[0] == 10 && sem_getvalue(sem, &value) == 0 && value == 0);
    CHECK(sem_close(sem) == 0 && sem_unlink("/guest-semaphore") == 0 && shm_unlink("/guest-memory") == 0);
    FAILS(shm_unlink("/guest-memory"), ENOENT);
}

int main(void)
{
    queues();
    notified();
    owned();
    semaphore_and_memory();
    return done();
}
