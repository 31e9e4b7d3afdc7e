/* Threads that hand fair locks on to each other thousands of times (MCS, CLH, tickets, an array), two to four of them:
 * each knows whose turn is next, who waits for it reads memory again and again. */
#include "guest.h"

#define ROUNDS 800

struct node {
    struct node *volatile next;
    volatile int waits;
} __attribute__((aligned(64)));

static struct node nodes[8], *last, *tail;
static volatile unsigned ticket, serving, places[4][16], place;
static volatile int held;
static int count, kind;
static unsigned long long order;

static void mcs(struct node *mine, int take)
{
    if (take) {
        mine->next = NULL;
        mine->waits = 1;
        struct node *before = __atomic_exchange_n(&last, mine, __ATOMIC_SEQ_CST);
        if (before) {
            before->next = mine;
            while (mine->waits)
                __asm__ volatile("pause");
        }
        return;
    }
    struct node *self = mine;
    if (!mine->next) {
        if (__atomic_compare_exchange_n(&last, &self, NULL, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return;
        while (!mine->next)
            __asm__ volatile("pause");
    }
    mine->next->waits = 0;
}

static void tickets(int take)
{
    if (!take) {
        serving++;
        return;
    }
    unsigned mine = __atomic_fetch_add(&ticket, 1, __ATOMIC_SEQ_CST);
    while (serving != mine)
        __asm__ volatile("pause");
}

static void array(unsigned *mine, int take)
{
    if (!take) {
        places[*mine][0] = 0;
        places[(*mine + 1) % 4][0] = 1;
        return;
    }
    *mine = __atomic_fetch_add(&place, 1, __ATOMIC_SEQ_CST) % 4;
    while (!places[*mine][0])
        __asm__ volatile("pause");
}

/* The first one has the lock while the others queue for it; from then on there is always somebody in the queue. */
static void *compete(void *argument)
{
    long me = (long)argument;
    struct node *mine = &nodes[me], *before = NULL;
    unsigned at = 0;
    long failed = 0;
    for (int i = 0; i < ROUNDS; i++) {
        if (kind == 0)
            mcs(mine, 1);
        else if (kind == 1) {
            mine->waits = 1;
            before = __atomic_exchange_n(&tail, mine, __ATOMIC_SEQ_CST);
            while (before->waits)
                __asm__ volatile("pause");
        } else if (kind == 2)
            tickets(1);
        else
            array(&at, 1);
        for (int k = 0; k < 5; k++)
            held++;
        order = order * 31 + (unsigned long long)me;
        failed += held != 5;
        for (int k = 0; k < 5; k++)
            held--;
        if (i % 700 == 100 * me)
            order += (unsigned long long)now_ns();
        if (!i && !me)
            sleep_ms(1);
        if (kind == 0)
            mcs(mine, 0);
        else if (kind == 1) {
            mine->waits = 0;
            mine = before;
        } else if (kind == 2)
            tickets(0);
        else
            array(&at, 0);
    }
    return (void *)failed;
}

int main(void)
{
    static const char *const names[] = {"mcs", "clh", "tickets", "array"};
    for (kind = 0; kind < 4; kind++)
        for (count = 2; count <= 4; count++) {
            pthread_t all[4];
            order = 0, last = NULL, ticket = serving = place = 0;
            memset((void *)places, 0, sizeof places);
            places[0][0] = 1;
            tail = &nodes[7];
            tail->waits = 0;
            for (long i = 0; i < count; i++)
                all[i] = start(compete, (void *)i);
            for (int i = 0; i < count; i++) {
                void *failed;
                CHECK(!pthread_join(all[i], &failed));
                CHECK(!failed);
            }
            note("%s, %d threads: %016llx, %lld ns, %lld of CPU time\n", names[kind], count, order, (long long)now_ns(),
                 (long long)clock_ns(CLOCK_PROCESS_CPUTIME_ID));
        }
    return done();
}
