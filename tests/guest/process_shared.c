/* Process-shared mutex, condition, barrier, rwlock, semaphore over anonymous memory and over a mapped file;
 * robust mutexes whose owner dies. */
#include "guest.h"
#include <semaphore.h>

#define CHILDREN 4
struct shared {
    pthread_mutex_t mutex, robust, robust_pi;
    pthread_cond_t condition;
    pthread_barrier_t barrier;
    pthread_rwlock_t rwlock;
    sem_t sem;
    long count, turn, order[CHILDREN * 5], length;
};

static void set_up(struct shared *s)
{
    pthread_mutexattr_t m;
    pthread_mutexattr_init(&m);
    pthread_mutexattr_setpshared(&m, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&s->mutex, &m);
    pthread_mutexattr_setrobust(&m, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&s->robust, &m);
    pthread_mutexattr_setprotocol(&m, PTHREAD_PRIO_INHERIT);
    CHECK(pthread_mutex_init(&s->robust_pi, &m) == 0);
    pthread_condattr_t c;
    pthread_condattr_init(&c);
    pthread_condattr_setpshared(&c, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&s->condition, &c);
    pthread_barrierattr_t b;
    pthread_barrierattr_init(&b);
    pthread_barrierattr_setpshared(&b, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&s->barrier, &b, CHILDREN);
    pthread_rwlockattr_t r;
    pthread_rwlockattr_init(&r);
    pthread_rwlockattr_setpshared(&r, PTHREAD_PROCESS_SHARED);
    pthread_rwlock_init(&s->rwlock, &r);
    sem_init(&s->sem, 1, 1);
}

static void child(struct shared *s, int me)
{
    for (int i = 0; i < 5; i++) {
        pthread_barrier_wait(&s->barrier);
        pthread_mutex_lock(&s->mutex);
        s->order[s->length++] = me;
        while (s->turn % CHILDREN != me)
            pthread_cond_wait(&s->condition, &s->mutex);
        s->turn++;
        pthread_cond_broadcast(&s->condition);
        pthread_mutex_unlock(&s->mutex);
        sem_wait(&s->sem);
        pthread_rwlock_wrlock(&s->rwlock);
        s->count++;
        pthread_rwlock_unlock(&s->rwlock);
        sem_post(&s->sem);
    }
    _exit(me);
}

static void together(struct shared *s)
{
    pid_t pids[CHILDREN];
    set_up(s);
    for (int i = 0; i < CHILDREN; i++)
        if ((pids[i] = fork()) == 0)
            child(s, i);
    for (int i = 0; i < CHILDREN; i++)
        reap(pids[i], i);
    CHECK(s->count == CHILDREN * 5 && s->length == CHILDREN * 5);
    for (int i = 0; i < s->length; i++)
        note("%ld", s->order[i]);
    note("\n");
}

static void owner_dies(pthread_mutex_t *mutex)
{
    int ready[2];
    CHECK(pipe(ready) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(pthread_mutex_lock(mutex) == 0);
        CHECK(write(ready[1], "x", 1) == 1);
        sleep_ms(20);
        kill(getpid(), SIGKILL);
    }
    char byte;
    CHECK(read(ready[0], &byte, 1) == 1);
    CHECK(pthread_mutex_lock(mutex) == EOWNERDEAD);
    CHECK(pthread_mutex_consistent(mutex) == 0);
    CHECK(pthread_mutex_unlock(mutex) == 0);
    CHECK(pthread_mutex_lock(mutex) == 0);
    CHECK(pthread_mutex_unlock(mutex) == 0);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

int main(void)
{
    struct shared *anonymous = shared_page(sizeof *anonymous);
    together(anonymous);
    int fd = open("shared", O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0 && ftruncate(fd, sizeof(struct shared)) == 0);
    struct shared *mapped = mmap(NULL, sizeof *mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(mapped != MAP_FAILED);
    together(mapped);
    owner_dies(&anonymous->robust);
    owner_dies(&anonymous->robust_pi);
    owner_dies(&mapped->robust);
    CHECK(unlink("shared") == 0);
    return done();
}
