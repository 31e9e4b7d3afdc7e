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
/* Most of its instructions are executed twice in a turn, with other registers. */
__attribute__((noinline)) static int mixed(int word, int by)
{
	__asm__ volatile(".rept 12; xorl %1, %0; .endr" : "+r"(word) : "r"(by));
	return word;
}
LOOP twice(void) { while (!flag && mixed(1, 7) + mixed(2, 5)); }
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

/* Every instruction whose turns are made without steps; rsi leads to memory. */
LOOP every(void)
{
	register char *memory asm("rsi") = target + 4096;
	asm volatile(
		"push %%rsi; pop %%rdi; jmp 2f\n"
		"1: nop\n pause\n mov %%rax, 8(%%rsi)\n mov 8(%%rsi), %%ebx\n mov 11(%%rsi), %%cx\n mov $-3, %%rdx\n"
		"movb $0x81, 13(%%rsi)\n movzbl 13(%%rsi), %%r8d\n movsbq 13(%%rsi), %%r9\n movslq %%eax, %%r10\n movzwl %%bx, %%r11d\n"
		"movabs $0x123456789abcdef0, %%r12\n lea 5(%%rsi,%%rcx,4), %%r13\n lea (%%r12,%%r9), %%r14d\n movw %%ax, 30(%%rsi)\n"
		"add %%rbx, %%rax\n seto %%r15b\n add $-7, %%al\n sub %%r8d, %%ebx\n setb 40(%%rsi)\n sub $9, %%cx\n cmp %%rcx, %%rax\n"
		"setl %%dl\n setp 41(%%rsi)\n setnbe 42(%%rsi)\n sets 43(%%rsi)\n cmovg %%rax, %%r8\n cmovae 8(%%rsi), %%r9d\n"
		"and $0x7fff, %%r10d\n or %%r10, 8(%%rsi)\n xor %%r12, %%r10\n test $0x40, %%bl\n sete 44(%%rsi)\n"
		"inc %%r11\n decb 13(%%rsi)\n incw %%bx\n neg %%r11d\n not %%r14\n lock orl $0, 8(%%rsi)\n lock addq $-1, 16(%%rsi)\n"
		"xchg %%rax, 24(%%rsi)\n xchg %%ecx, %%edx\n lock xadd %%r8, 16(%%rsi)\n xadd %%r9d, %%r10d\n cltq\n"
		"shl $5, %%rbx\n setb 45(%%rsi)\n sets 46(%%rsi)\n shr %%cl, %%r9\n shl %%cl, %%r8d\n sar $1, %%r10d\n seto 47(%%rsi)\n"
		"shr %%r14d\n seto 45(%%rsi)\n imul %%rbx, %%r11\n setc 48(%%rsi)\n imul $-700, 8(%%rsi), %%rbx\n seto 49(%%rsi)\n"
		"imul $9, %%ecx, %%edx\n imul %%r9d, %%edx\n sarl %%cl, 16(%%rsi)\n shlq $1, 24(%%rsi)\n seto 50(%%rsi)\n"
		"lock cmpxchg %%rbx, 8(%%rsi)\n mov 16(%%rsi), %%rax\n lock cmpxchg %%r13, 16(%%rsi)\n lock cmpxchg %%cl, 33(%%rsi)\n"
		"cmp %%r12, 32(%%rsi)\n jle 3f\n add $1, %%r15\n 3: jo 4f\n add $2, %%r15\n 4: jnp 5f\n add $4, %%r15\n 5: jb 6f\n dec %%r15d\n"
		"6: or $1, %%r8\n cqto\n idiv %%r8\n mov %%rdx, 8(%%rsi)\n mov $-77, %%ecx\n cltd\n idivl %%ecx\n add %%rdx, %%r10\n"
		"or $3, %%ebx\n movzwl %%r9w, %%edx\n cmp %%ebx, %%edx\n cmovae %%r11d, %%edx\n xor %%edx, %%edx\n div %%ebx\n add %%edx, %%r9d\n"
		"mul %%r12\n setc 51(%%rsi)\n mov %%rdx, %%r14\n mull 16(%%rsi)\n seto 52(%%rsi)\n xor %%edx, %%edx\n orl $1, 24(%%rsi)\n divq 24(%%rsi)\n"
		"add %%rdx, %%r13\n push %%rax\n push $-5\n pop %%rbx\n pop %%rcx\n call 7f\n jmp *56(%%rsi)\n"
		"7: push %%rbp\n mov %%rsp, %%rbp\n cmp %%bl, %%al\n push %%rbp\n leave\n ret\n"
		"8: mfence\n jmp 1b\n"
		"2: lea 8b(%%rip), %%rdi\n mov %%rdi, 56(%%rsi)\n jmp 1b\n"
		: "+r"(memory)
		:: "rax", "rbx", "rcx", "rdx", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
}

static const struct { const char *name; void (*run)(void); } loops[] = {
	{"wait_flag", wait_flag}, {"wait_pause", wait_pause}, {"twice", twice}, {"barrier", barrier},
	{"job", job},
	{"cmpxchg", cmpxchg}, {"exchange", exchange}, {"ticket", ticket}, {"backoff", backoff},
	{"floating", floating}, {"pthread_spin", pthread_spin}, {"counting", counting},
	{"counting_memory", counting_memory}, {"copying", copying}, {"string_copy", string_copy},
	{"summing", summing}, {"counting_down", counting_down}, {"length", length},
	{"generator", generator}, {"clock_reading", clock_reading}, {"floating_sum", floating_sum},
	{"poll_and_lock", poll_and_lock}, {"poll_down", poll_down}, {"poll_by_sevens", poll_by_sevens},
	{"poll_in_memory", poll_in_memory}, {"bounded", bounded}, {"bounded_memory", bounded_memory},
	{"counts_wide", counts_wide}, {"counts_narrow", counts_narrow}, {"counts_from_far", counts_from_far},
	{"every", every},
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
