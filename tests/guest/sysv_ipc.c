/* System V shared memory, semaphores (blocking, undo, timeouts) and message queues between processes. */
#include "guest.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
};

static int operate(int set, int number, int change, int flags)
{
    struct sembuf op = {(unsigned short)number, (short)change, (short)flags};
    return semop(set, &op, 1);
}

static void memory(void)
{
    int id = shmget(IPC_PRIVATE, 8192, IPC_CREAT | 0600);
    CHECK(id >= 0);
    int *words = shmat(id, NULL, 0);
    CHECK(words != (void *)-1);
    pid_t pid = fork();
    if (pid == 0) {
        words[7] = 77;
        _exit(0);
    }
    reap(pid, 0);
    CHECK(words[7] == 77);
    struct shmid_ds about;
    CHECK(shmctl(id, IPC_STAT, &about) == 0 && about.shm_segsz == 8192 && about.shm_nattch == 1);
    note("shm id %d created at %ld by %d\n", id, (long)about.shm_ctime, about.shm_cpid - getpid());
    CHECK(shmctl(id, IPC_RMID, NULL) == 0 && shmdt(words) == 0);
    FAILS((intptr_t)shmat(id, NULL, 0), EINVAL);
    id = shmget(0x1234, 4096, IPC_CREAT | IPC_EXCL | 0600);
    CHECK(id >= 0 && shmget(0x1234, 0, 0) == id);
    FAILS(shmget(0x1234, 4096, IPC_CREAT | IPC_EXCL), EEXIST);
    CHECK(shmctl(id, IPC_RMID, NULL) == 0);
}

static void semaphores(void)
{
    int set = semget(IPC_PRIVATE, 3, IPC_CREAT | 0600);
    unsigned short values[3] = {1, 0, 0};
    CHECK(set >= 0 && semctl(set, 0, SETALL, (union semun){.array = values}) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(operate(set, 1, -2, 0) == 0); /* waits for two */
        CHECK(operate(set, 0, -1, SEM_UNDO) == 0);
        _exit(0); /* undone: given back */
    }
    FAILS(operate(set, 1, -1, IPC_NOWAIT), EAGAIN);
    sleep_ms(10);
    CHECK(operate(set, 1, 1, 0) == 0);
    CHECK(operate(set, 1, 1, 0) == 0);
    reap(pid, 0);
    CHECK(semctl(set, 0, GETVAL) == 1 && semctl(set, 1, GETVAL) == 0 && semctl(set, 1, GETPID) == pid);
    struct timespec t = ns_to_timespec(20 * MS);
    struct sembuf op = {2, -1, 0};
    int64_t begin = now_ns();
    FAILS(semtimedop(set, &op, 1, &t), EAGAIN);
    CHECK(now_ns() - begin >= 20 * MS);
    pid = fork();
    if (pid == 0) {
        CHECK(operate(set, 0, 0, 0) == 0); /* waits for zero */
        FAILS(operate(set, 2, -1, 0), EIDRM);
        _exit(0);
    }
    sleep_ms(10);
    CHECK(operate(set, 0, -1, 0) == 0);
    sleep_ms(10);
    CHECK(semctl(set, 0, IPC_RMID) == 0);
    reap(pid, 0);
}

struct message {
    long type;
    char text[64];
};

static void messages(void)
{
    int queue = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
    struct message m = {3, "three"};
    CHECK(queue >= 0 && msgsnd(queue, &m, 6, 0) == 0);
    m = (struct message){1, "one"};
    CHECK(msgsnd(queue, &m, 4, 0) == 0);
    CHECK(msgrcv(queue, &m, 64, -2, 0) == 4 && m.type == 1);
    FAILS(msgrcv(queue, &m, 64, 9, IPC_NOWAIT), ENOMSG);
    FAILS(msgrcv(queue, &m, 2, 3, 0), E2BIG);
    CHECK(msgrcv(queue, &m, 64, 3, 0) == 6 && strcmp(m.text, "three") == 0);
    pid_t pid = fork();
    if (pid == 0) {
        for (int i = 0; i < 600; i++) { /* more than the queue holds */
            m.type = 1 + i % 3;
            snprintf(m.text, sizeof m.text, "%d", i);
            CHECK(msgsnd(queue, &m, sizeof m.text, 0) == 0);
        }
        _exit(0);
    }
    for (int i = 0; i < 600; i++)
        CHECK(msgrcv(queue, &m, sizeof m.text, 0, 0) == sizeof m.text && atoi(m.text) == i);
    reap(pid, 0);
    struct msqid_ds about;
    CHECK(msgctl(queue, IPC_STAT, &about) == 0 && about.msg_qnum == 0 && about.msg_lspid == pid);
    CHECK(msgctl(queue, IPC_RMID, NULL) == 0);
}

int main(void)
{
    memory();
    semaphores();
    messages();
    return done();
}
