/* Loops for the spin prover: argv[1] names the one to run for ever (or, where it is finite, for long). */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

volatile int flag;
volatile char barrier_buffer[8];
volatile int thread_job;
atomic_int spin_lock = 1;
atomic_uint ticket_next = 1, ticket_owner = 0;
volatile int hits;
volatile long counter;
volatile double reading = 1.0;
static char source[1 << 20], target[1 << 20];
static volatile long numbers[1 << 16];
volatile long sink;

#define LOOP __attribute__((noinline)) static void

LOOP wait_flag(void) { while (!flag); }
LOOP wait_pause(void) { while (!flag) __builtin_ia32_pause(); }
LOOP barrier(void)
{
	int i, sum;
	do {
		for (i = 1, sum = 1; i < 4; i++)
			sum += barrier_buffer[i];
	} while (sum < 4);
}
LOOP job(void) { int my = 0; while (my == thread_job); }
LOOP cmpxchg(void)
{
	int expected = 0;
	while (!atomic_compare_exchange_strong(&spin_lock, &expected, 2)) {
		expected = 0;
		__builtin_ia32_pause();
	}
}
LOOP exchange(void) { while (atomic_exchange(&spin_lock, 1)) ; }
LOOP ticket(void)
{
	unsigned mine = atomic_fetch_add(&ticket_next, 1);
	while (atomic_load(&ticket_owner) != mine) __builtin_ia32_pause();
}
LOOP backoff(void)
{
	while (!flag)
		for (int i = 0; i < 20; i++) __builtin_ia32_pause();
}
LOOP floating(void) { while (reading > 0.5); }
LOOP pthread_spin(void)
{
	pthread_spinlock_t l;
	pthread_spin_init(&l, 0);
	pthread_spin_lock(&l);
	pthread_spin_lock(&l);
}
LOOP counting(void) { long sp = 0; while (hits < 4) sp++; sink = sp; }
LOOP counting_memory(void) { while (hits < 4) counter++; }
LOOP copying(void) { for (;;) memcpy(target, source, sizeof source); }
LOOP string_copy(void)
{
	for (;;) {
		void *d = target;
		const void *s = source;
		size_t n = sizeof source;
		asm volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) :: "memory");
	}
}
LOOP summing(void)
{
	for (;;) {
		long sum = 0;
		for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++) sum += numbers[i];
		sink = sum;
	}
}
LOOP counting_down(void) { for (volatile long i = 0; i < 1L << 60; i++); }
LOOP length(void)
{
	memset(source, 'x', sizeof source - 1);
	for (const char *text = source;; sink += strlen(text)) asm volatile("" : "+r"(text));
}
LOOP generator(void)
{
	uint64_t x = 88172645463325252ull;
	for (;;) { x ^= x << 13; x ^= x >> 7; x ^= x << 17; if (x == 1) return; }
}
LOOP clock_reading(void) { for (;;) if (__builtin_ia32_rdtsc() == 1) return; }
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
/* Many polls, then a look under a lock, for ever: io-threads of a server wait like that. */
LOOP poll_and_lock(void)
{
	for (;;) {
		for (int j = 0; j < 1000000; j++)
			if (flag) break;
		if (flag) return;
		pthread_mutex_lock(&mutex);
		pthread_mutex_unlock(&mutex);
	}
}
LOOP poll_down(void) { do for (unsigned long j = 1ul << 40; --j && !flag;) __builtin_ia32_pause(); while (!flag); }
LOOP poll_by_sevens(void) { do for (int j = -50; j <= 1 << 30 && !flag; j += 7); while (!flag); }
LOOP poll_in_memory(void)
{
	do for (counter = 0; counter < 1L << 40 && !flag;) counter++;
	while (!flag);
}
/* Loops that end, and tell how far they have come. */
LOOP bounded(void)
{
	long steps = 0, threes = 5;
	for (unsigned j = 0; j != 3000000000u && !flag; j++) steps++, threes += 3;
	printf("%ld %ld\n", steps, threes);
}
LOOP bounded_memory(void)
{
	volatile long j;
	volatile int half = 0;
	for (j = 1l << 40; j > 77 && !flag; j -= 5) half = (int)(j >> 3);
	printf("%ld %d\n", j, half);
}
/* Loops that count for ever, and tell how far. */
LOOP counts_wide(void)
{
	long threes = 5, down = 0;
	while (hits < 4) threes += 3, down--, __atomic_fetch_add(&counter, 2, __ATOMIC_SEQ_CST);
	printf("%ld %ld %ld\n", threes, down, counter);
}
LOOP counts_narrow(void)
{
	unsigned fives = 7;
	int down = 1;
	while (hits < 4) fives += 5, down--;
	printf("%u %d\n", fives, down);
}
LOOP counts_from_far(void)
{
	long up = 1l << 40;
	while (hits < 4) up++;
	printf("%ld\n", up);
}
LOOP floating_sum(void) { double x = 0; while (x < 1e18) x += 0.5; sink = (long)x; }

static const struct { const char *name; void (*run)(void); } loops[] = {
	{"wait_flag", wait_flag}, {"wait_pause", wait_pause}, {"barrier", barrier}, {"job", job},
	{"cmpxchg", cmpxchg}, {"exchange", exchange}, {"ticket", ticket}, {"backoff", backoff},
	{"floating", floating}, {"pthread_spin", pthread_spin}, {"counting", counting},
	{"counting_memory", counting_memory}, {"copying", copying}, {"string_copy", string_copy},
	{"summing", summing}, {"counting_down", counting_down}, {"length", length},
	{"generator", generator}, {"clock_reading", clock_reading}, {"floating_sum", floating_sum},
	{"poll_and_lock", poll_and_lock}, {"poll_down", poll_down}, {"poll_by_sevens", poll_by_sevens},
	{"poll_in_memory", poll_in_memory}, {"bounded", bounded}, {"bounded_memory", bounded_memory},
	{"counts_wide", counts_wide}, {"counts_narrow", counts_narrow}, {"counts_from_far", counts_from_far},
};

int main(int argc, char **argv)
{
	/* The test needs to know where the variables are. */
	printf("%p %p %p %p %p\n", (void *)&flag, (void *)&barrier_buffer, (void *)&hits, (void *)&reading,
	       (void *)&mutex);
	fflush(stdout);
	for (size_t i = 0; argc > 1 && i < sizeof loops / sizeof *loops; i++)
		if (!strcmp(loops[i].name, argv[1])) {
			loops[i].run();
			puts("left");
			return 0;
		}
	return 2;
}
