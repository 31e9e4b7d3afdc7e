/* rdtsc and rdtscp executed often: the same clock as by calls, everything else untouched, whatever happens meanwhile. */
#include "guest.h"
#include <sys/time.h>
#include <x86intrin.h>

#define OFTEN 250
#define BOOT 1000000000000ULL

/* Three functions in one: the instruction with values in all registers, flags and the red zone; one that jumps behind
 * it; and one that does not return there but in its own way. */
uint64_t guarded(uint64_t *registers), entered(uint64_t low, uint64_t high);
__asm__(".text\n"
        ".globl guarded\n"
        ".type guarded, @function\n"
        "guarded: .cfi_startproc\n"
        "   mov %rdi, -128(%rsp)\n"
        "   mov %rbx, -8(%rsp)\n"
        "   mov (%rdi), %rcx\n"
        "   mov 8(%rdi), %rbx\n"
        "   mov $0x7fffffff, %eax\n"
        "   add $1, %eax\n" /* overflow, sign, adjust, parity; no carry, not zero */
        "   rdtsc\n"
        "   mov %edx, %edx\n"
        "   mov %eax, %eax\n"
        "   jno 1f\n"
        "   jc 1f\n"
        "   jns 1f\n"
        "   jnp 1f\n"
        "   cmp (%rdi), %rcx\n"
        "   jne 1f\n"
        "   cmp 8(%rdi), %rbx\n"
        "   jne 1f\n"
        "   cmp -128(%rsp), %rdi\n"
        "   jne 1f\n"
        "   mov -8(%rsp), %rbx\n"
        "   shl $32, %rdx\n"
        "   or %rdx, %rax\n"
        "   ret\n"
        "1: ud2\n"
        ".cfi_endproc\n"
        ".globl behind\n"
        ".type behind, @function\n"
        "behind: .cfi_startproc\n"
        "   rdtsc\n"
        "2: shl $32, %rdx\n"
        "   or %rdx, %rax\n"
        "   ret\n"
        ".cfi_endproc\n"
        ".globl entered\n"
        ".type entered, @function\n"
        "entered: .cfi_startproc\n"
        "   mov %rdi, %rax\n"
        "   mov %rsi, %rdx\n"
        "   jmp 2b\n"
        ".cfi_endproc\n");
uint64_t behind(void);

static uint64_t sum;

static uint64_t clock_now(void)
{
    struct timespec t;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &t) == 0);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec - BOOT;
}

__attribute__((noinline)) static uint64_t ticks(void)
{
    return __rdtsc();
}

__attribute__((noinline)) static uint64_t ticks_and_processor(void)
{
    unsigned processor = 7;
    uint64_t now = __rdtscp(&processor);
    CHECK(processor == 0);
    return now;
}

static uint64_t (*generated)(void);

static void generate(void)
{
    static const unsigned char code[] = {0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0xc3};
    void *memory = mmap(NULL, sizeof code, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    memcpy(memory, code, sizeof code);
    generated = (uint64_t (*)(void))(uintptr_t)memory;
}

static void maps(char *text, size_t size)
{
    int fd = open("/proc/self/maps", O_RDONLY);
    ssize_t got, used = 0;
    while ((got = read(fd, text + used, size - 1 - (size_t)used)) > 0)
        used += got;
    text[used] = 0;
    close(fd);
}

static void agree(int rounds)
{
    uint64_t registers[2] = {0x1122334455667788, 0x99aabbccddeeff00}, last = ticks();
    uint64_t (*const each[])(void) = {ticks, ticks_and_processor, behind, generated, clock_now, ticks};
    for (int i = 0; i < rounds; i++) {
        for (size_t k = 0; k < sizeof each / sizeof *each; k++) {
            uint64_t now = each[k]();
            CHECK(now > last);
            last = now;
        }
        uint64_t now = guarded(registers);
        CHECK(now > last);
        last = now;
        if (i % 64 == 0)
            getppid();
        sum = sum * 31 + last;
    }
    CHECK(entered(5, 1) == (1ULL << 32 | 5));
    note("%d rounds: %llu\n", rounds, (unsigned long long)sum);
}

static volatile sig_atomic_t alarms;

static void on_alarm(int signo)
{
    (void)signo;
    alarms++;
    sum += ticks();
}

static void with_signals(void)
{
    struct itimerval timer = {.it_interval.tv_usec = 500, .it_value.tv_usec = 500}, none = {0};
    CHECK(signal(SIGALRM, on_alarm) != SIG_ERR && setitimer(ITIMER_REAL, &timer, NULL) == 0);
    agree(OFTEN);
    for (int i = 0; i < OFTEN; i++)
        sum = sum * 31 + __rdtsc(); /* a place of its own */
    CHECK(setitimer(ITIMER_REAL, &none, NULL) == 0 && alarms > 0);
    note("%d alarms\n", (int)alarms);
}

static volatile int turn;

static void *other_thread(void *unused)
{
    for (int i = 0; i < OFTEN; i++)
        sum = sum * 31 + ticks();
    turn = 1;
    return unused;
}

static void with_threads(void)
{
    pthread_t a = start(other_thread, NULL), b = start(other_thread, NULL);
    uint64_t looks = 0;
    while (!turn) {
        ticks();
        looks++;
    }
    join(a);
    join(b);
    note("%llu looks until the other thread was done\n", (unsigned long long)looks);
}

static void with_children(void)
{
    int status;
    for (int i = 0; i < 2; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            agree(OFTEN);
            execl("/proc/self/exe", "program", "again", NULL);
            _exit(1);
        }
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    }
}

int main(int argc, char **argv)
{
    static char before[1 << 16], after[1 << 16];
    (void)argv;
    generate();
    if (argc > 1) {
        agree(OFTEN);
        return 0;
    }
    maps(before, sizeof before);
    with_children();
    with_threads();
    agree(OFTEN);
    with_children();
    maps(after, sizeof after);
    with_signals();
    uint64_t start = ticks();
    while (ticks() - start < 3600ULL * SECOND)
        ;
    note("an hour later: %llu\n", (unsigned long long)ticks());
    return done();
}
