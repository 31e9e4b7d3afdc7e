/* The processor that a guest sees: cpuid, auxiliary vector, topology, affinity, current CPU, limits and memory sizes. */
#include "guest.h"
#include <cpuid.h>
#include <sys/auxv.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <x86intrin.h>

static void identity(void)
{
    unsigned a, b, c, d;
    static const unsigned leaves[] = {0, 1, 2, 4, 7, 0xb, 0xd, 0x16, 0x40000000, 0x80000000, 0x80000001, 0x80000008};
    for (size_t i = 0; i < sizeof leaves / sizeof *leaves; i++) {
        __cpuid_count(leaves[i], 0, a, b, c, d);
        note("cpuid %x: %08x %08x %08x %08x\n", leaves[i], a, b, c, d);
    }
    for (unsigned leaf = 0x80000002; leaf <= 0x80000004; leaf++) {
        unsigned name[5] = {0};
        __cpuid(leaf, name[0], name[1], name[2], name[3]);
        note("%s", (char *)name);
    }
    note("\nhwcap %lx %lx platform %s\n", getauxval(AT_HWCAP), getauxval(AT_HWCAP2), (char *)getauxval(AT_PLATFORM));
    for (int i = 0; i < 50; i++)
        if (getauxval((unsigned long)i) && i != AT_SYSINFO_EHDR && i != AT_RANDOM)
            note("auxv %d %lx\n", i, getauxval((unsigned long)i));
    note("vdso %lx\n", getauxval(AT_SYSINFO_EHDR));
}

static void topology(void)
{
    cpu_set_t set;
    CHECK(sched_getaffinity(0, sizeof set, &set) == 0);
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    note("online %ld configured %ld affinity %d nprocs %d\n", online, sysconf(_SC_NPROCESSORS_CONF), CPU_COUNT(&set),
         get_nprocs());
    unsigned cpu, node;
    CHECK(getcpu(&cpu, &node) == 0 && sched_getcpu() >= 0);
    note("cpu %u node %u\n", cpu, node);
    CPU_ZERO(&set);
    CPU_SET(0, &set);
    CHECK(sched_setaffinity(0, sizeof set, &set) == 0);
    CHECK(sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) == 1);
    FAILS(sched_getaffinity(-1, sizeof set, &set), ESRCH);
    CPU_ZERO(&set);
    FAILS(sched_setaffinity(0, sizeof set, &set), EINVAL);
    CHECK(sched_getcpu() == 0);
    note("policy %d nice %d\n", sched_getscheduler(0), getpriority(PRIO_PROCESS, 0));
}

static void sizes(void)
{
    struct sysinfo info;
    CHECK(sysinfo(&info) == 0);
    note("memory %lu %lu uptime %ld processes %d\n", info.totalram, info.freeram, info.uptime, info.procs);
    note("pages %ld available %ld of %ld\n", sysconf(_SC_PHYS_PAGES), sysconf(_SC_AVPHYS_PAGES), sysconf(_SC_PAGESIZE));
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        struct rlimit limit;
        CHECK(getrlimit(i, &limit) == 0);
        note("limit %d %lx %lx\n", i, limit.rlim_cur, limit.rlim_max);
    }
    struct rlimit limit = {1UL << 63, RLIM_INFINITY}, same;
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0 && getrlimit(RLIMIT_FSIZE, &same) == 0);
    CHECK(same.rlim_cur == 1UL << 63);
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = 32;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    int fd, last = -1;
    while ((fd = open("/dev/null", O_RDONLY)) >= 0)
        last = fd;
    CHECK(errno == EMFILE && last == 31);
}

int main(void)
{
    identity();
    topology();
    sizes();
    return done();
}
