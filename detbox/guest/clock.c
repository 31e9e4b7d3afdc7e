/* Clocks that the guest reads without a system call.
 *
 * This code is copied out of the extension module into a page of each guest process (vdso.py),
 * directly above the page that it shares with the supervisor.  Therefore:
 * - it refers to nothing outside of itself: no constants in memory, no library, no other section;
 * - it runs on whatever stack the guest has (Go calls it from small ones), and uses little of it;
 * - it may be interrupted between any two instructions, by a signal's handler that looks at a clock
 *   itself or by the supervisor, which writes the page anew from what it finds there: so a look
 *   changes one word, by one instruction, and everything else is only read.  (But for where looks come from: these
 *   words are the thread's own.  The supervisor keeps what it finds there, and changes them at calls alone.)
 *
 * The rules are those of machine/clock.py: a look costs `cost`, and one that would pass `limit` is
 * left to the supervisor, as are all clocks that are not simply the monotonic time plus a constant.
 * CPU time is that for as long as the thread runs.  If another one has run in the middle of a look at it,
 * the page has another difference then, and the supervisor is asked.
 */
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#define GUEST __attribute__((section("detbox_guest"), used, noinline, optimize("no-tree-vectorize"), \
			     optimize("no-stack-protector"), optimize("no-jump-tables")))
#define GUEST_INLINE static inline __attribute__((always_inline))
#define GUEST_PAGE 4096UL
#define SECOND 1000000000UL

/* In nanoseconds.  The supervisor writes all of it whenever it lets a thread go on. */
struct guest_clock {
	int64_t now;   /* monotonic time */
	int64_t limit; /* the latest time that a look may show */
	int64_t cost;  /* of a look */
	int64_t wall;  /* what the time of day is ahead of the monotonic time */
	int64_t boot;  /* what the time stamp counter is behind it */
	int64_t cpu[2]; /* what the process's and the thread's CPU time are ahead of it */
	int64_t work;  /* from when on a look at CPU time costs what any look does */
	int64_t day;   /* the same for looks at clocks that stopwatches look at: always, or never */
	/* From where the thread has looked at a clock last, and before; how many looks in a row came from
	 * two places by turns, or from one (or -1 if that does not matter); how many are too many, but for some places. */
	uintptr_t place, other;
	int64_t turns, enough;
	uintptr_t dull;
};

/* Clocks by number, as bits: those that show the time of day, count from boot, or show CPU time; and those of the
 * first two that runtimes do not look at for themselves. */
#define WALL_CLOCKS (1U << CLOCK_REALTIME | 1U << CLOCK_REALTIME_COARSE | 1U << CLOCK_TAI)
#define BOOT_CLOCKS (1U << CLOCK_MONOTONIC | 1U << CLOCK_MONOTONIC_RAW | 1U << CLOCK_MONOTONIC_COARSE | 1U << CLOCK_BOOTTIME)
#define DAY_CLOCKS (1U << CLOCK_REALTIME | 1U << CLOCK_TAI | 1U << CLOCK_MONOTONIC_RAW)
#define CPU_CLOCKS (1U << CLOCK_PROCESS_CPUTIME_ID | 1U << CLOCK_THREAD_CPUTIME_ID)

GUEST_INLINE long guest_call(long number, long a, void *b)
{
	long result = number;
	__asm__ volatile("syscall" : "+a"(result) : "D"(a), "S"(b) : "rcx", "r11", "memory");
	return result;
}

GUEST_INLINE volatile struct guest_clock *guest_page(void)
{
	uintptr_t here;
	__asm__("lea 0(%%rip), %0" : "=r"(here));
	return (volatile struct guest_clock *)((here & ~(GUEST_PAGE - 1)) - GUEST_PAGE);
}

/* The monotonic time after one look, or -1 if the supervisor has to be asked. */
GUEST_INLINE int64_t guest_look(volatile struct guest_clock *p)
{
	int64_t cost = p->cost, now = cost;
	if (p->now + cost > p->limit) return -1;
	__asm__ volatile("xaddq %0, %1" : "+r"(now), "+m"(p->now));
	return now + cost;
}

/* The same for who may be measuring work: several looks in a row from one place, or two by turns, may be a benchmark's. */
GUEST_INLINE int64_t guest_look_from(volatile struct guest_clock *p, uintptr_t place)
{
	int64_t turns = p->turns, now;
	if (turns < 0) return guest_look(p);
	uintptr_t last = p->place;
	turns = turns >= 2 && place == p->other ? turns + 1 : turns ? 2 : 1;
	if ((turns >= p->enough && ((place + last) & INT64_MAX) != p->dull) || (now = guest_look(p)) < 0) return -1;
	p->other = last;
	p->place = place;
	p->turns = turns;
	return now;
}

/* The same by a clock that stopwatches look at. */
GUEST_INLINE int64_t guest_look_at_day(volatile struct guest_clock *p, uintptr_t place)
{
	return p->now < p->day ? -1 : guest_look_from(p, place);
}

/* CPU time after one look, or -1 if the supervisor has to be asked. */
GUEST_INLINE int64_t guest_look_at_work(int thread)
{
	volatile struct guest_clock *page = guest_page();
	int64_t ahead = page->cpu[thread];
	if (page->now < page->work) return -1;
	int64_t now = guest_look(page);
	return now < 0 || page->cpu[thread] != ahead ? -1 : now + ahead;
}

GUEST int detbox_guest_gettime(int clock, struct timespec *time)
{
	volatile struct guest_clock *page = guest_page();
	unsigned bit = (unsigned)clock < 32 ? 1U << clock : 0;
	int64_t now = -1;
	if (bit & DAY_CLOCKS) now = guest_look_at_day(page, (uintptr_t)time);
	else if (bit & (WALL_CLOCKS | BOOT_CLOCKS)) now = guest_look_from(page, (uintptr_t)time);
	else if (bit & CPU_CLOCKS) now = guest_look_at_work(clock == CLOCK_THREAD_CPUTIME_ID);
	if (now < 0) return (int)guest_call(SYS_clock_gettime, clock, time);
	if (bit & WALL_CLOCKS) now += page->wall;
	time->tv_sec = (int64_t)((uint64_t)now / SECOND);
	time->tv_nsec = (int64_t)((uint64_t)now % SECOND);
	return 0;
}

GUEST int detbox_guest_timeofday(struct timeval *time, struct timezone *zone)
{
	volatile struct guest_clock *page = guest_page();
	int64_t now = guest_look_at_day(page, (uintptr_t)time);
	if (now < 0) return (int)guest_call(SYS_gettimeofday, (long)time, zone);
	now += page->wall;
	if (time) {
		time->tv_sec = (int64_t)((uint64_t)now / SECOND);
		time->tv_usec = (int64_t)((uint64_t)now % SECOND / 1000);
	}
	if (zone) zone->tz_minuteswest = zone->tz_dsttime = 0;
	return 0;
}

GUEST time_t detbox_guest_time(time_t *time)
{
	volatile struct guest_clock *page = guest_page();
	int64_t now = guest_look_at_day(page, (uintptr_t)time);
	if (now < 0) return guest_call(SYS_time, (long)time, 0);
	time_t seconds = (time_t)((uint64_t)(now + page->wall) / SECOND);
	if (time) *time = seconds;
	return seconds;
}

/* What stands for rdtsc where that is executed often (cpu/hot.py): a look, in EDX:EAX.  All else stays as it is, flags
 * and registers: it is called from between any two instructions, 128 bytes below the stack.  Flags are not pushed,
 * since that of a single step would be popped again.  A look that is left to the supervisor is the instruction itself. */
extern const char detbox_guest_ticks[] __attribute__((visibility("hidden")));
__asm__(".pushsection detbox_guest, \"ax\", @progbits\n"
	".p2align 4\n"
	".hidden detbox_guest_ticks\n"
	".globl detbox_guest_ticks\n"
	"detbox_guest_ticks:\n"
	"	push %rcx\n"
	"	lahf\n"
	"	seto %al\n"
	"	push %rax\n"
	"	lea 0(%rip), %rdx\n"
	"	and $-4096, %rdx\n"
	"	mov 16-4096(%rdx), %rax\n" /* cost */
	"	mov %rax, %rcx\n"
	"	add -4096(%rdx), %rcx\n"
	"	cmp 8-4096(%rdx), %rcx\n" /* limit */
	"	jg 1f\n"
	"	mov %rax, %rcx\n"
	"	xadd %rax, -4096(%rdx)\n" /* now */
	"	add %rax, %rcx\n"
	"	sub 32-4096(%rdx), %rcx\n" /* boot */
	"	mov %rcx, %rdx\n"
	"	shr $32, %rdx\n"
	"	pop %rax\n"
	"	add $127, %al\n" /* the overflow flag */
	"	sahf\n"
	"	mov %ecx, %eax\n"
	"	pop %rcx\n"
	"	ret\n"
	"1:	pop %rax\n"
	"	add $127, %al\n"
	"	sahf\n"
	"	pop %rcx\n"
	"	rdtsc\n"
	"	ret\n"
	".popsection\n");

/* The bounds of the section (the linker makes these names). */
extern const char __start_detbox_guest[], __stop_detbox_guest[];
