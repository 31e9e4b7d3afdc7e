"""One small command for each source of nondeterminism that real builds show.

Each prints something that differs between two native runs, or between two hosts, and must not under detbox.  They run in
a directory with the files of ``FILES`` and the entries ``many/0`` … ``many/199``.
"""

# ruff: noqa: E501  (one row of the table, one line)

from __future__ import annotations

FILES = {
    "stamp.c": '#include <stdio.h>\nint main(void) { printf("%s, %s\\n", __DATE__, __TIME__); return 0; }\n',
    "counter.c": (
        "#include <stdio.h>\n#include <x86intrin.h>\n"
        'int main(void) { unsigned long long a = __rdtsc(); printf("%llu %llu\\n", a, __rdtsc() - a); return 0; }\n'
    ),
    "layout.c": (
        "#include <stdio.h>\n#include <stdlib.h>\n#include <sys/auxv.h>\nstatic int data;\n"
        "int main(int n, char **v) { void *heap = malloc(9);\n"
        ' printf("%p %p %p %p %p %#lx\\n", (void *)main, (void *)&data, (void *)&n, heap, (void *)v[0],\n'
        "        getauxval(AT_SYSINFO_EHDR)); return 0; }\n"
    ),
    "seed.c": (
        "#include <stdio.h>\n#include <sys/auxv.h>\n"
        "int main(void) { const unsigned char *seed = (void *)getauxval(AT_RANDOM);\n"
        ' for (int i = 16; i--;) printf("%u ", seed[i]); putchar(10); return 0; }\n'
    ),
    "race.c": (
        "#include <pthread.h>\n#include <stdio.h>\nenum { N = 4, TURNS = 200000 };\n"
        "static volatile long total; static int ended[N]; static int next;\n"
        "static void *add(void *me) { for (int i = 0; i < TURNS; i++) total = total + 1;\n"
        " ended[__atomic_fetch_add(&next, 1, __ATOMIC_SEQ_CST)] = (int)(long)me; return me; }\n"
        "int main(void) { pthread_t t[N]; for (long i = 0; i < N; i++) pthread_create(t + i, NULL, add, (void *)i);\n"
        ' for (int i = 0; i < N; i++) pthread_join(t[i], NULL); printf("%ld:", total);\n'
        ' for (int i = 0; i < N; i++) printf(" %d", ended[i]); putchar(10); return 0; }\n'
    ),
    "parts.mk": (
        "PARTS := $(shell seq -f part%g 10)\nall: $(PARTS)\n"
        "part%: ; @python3 -c 'print(sum(range(99999)), end=\"\")'; echo ' $@'\n"
    ),
}

PROBES: dict[str, str] = {
    "date": "date; date -R; date -u +%c",
    "compile date": "gcc stamp.c -o stamp && ./stamp",
    "kernel and user": "uname -srvmno; hostname; id; whoami; logname 2>&1; groups",
    "processors": "nproc; nproc --all; getconf _NPROCESSORS_ONLN; taskset -p $$",
    "process id": "echo $$ $PPID; sh -c 'echo $$'; (sh -c 'echo $PPID')",
    "temporary name": "mktemp; mktemp -d; mktemp -u XXXXXXXX; ls -l /tmp",
    "directory order": "ls -U many | head -50; find many -name '1*' | tail -20",
    "python hash": "python3 -c 'print({str(i) for i in range(60)}, hash(\"a\"), id(object()))'",
    "perl hash": "perl -e 'my %h = map { $_ => 1 } 1 .. 60; print join(\",\", keys %h), \"\\n\"; print rand, \"\\n\"'",
    "random device": "od -An -tx1 -N32 /dev/urandom; dd if=/dev/random bs=8 count=1 2> /dev/null | base64",
    "uuid": "cat /proc/sys/kernel/random/uuid; python3 -c 'import uuid; print(uuid.uuid1(), uuid.uuid4())'",
    "shell random": "bash -c 'echo $RANDOM $SRANDOM $RANDOM $EPOCHSECONDS $EPOCHREALTIME'",
    "address layout": "gcc -pie -fPIE layout.c -o layout && ./layout && ./layout; cat /proc/self/maps | head -3",
    "auxiliary random": "gcc seed.c -o seed && ./seed && ./seed",
    "parallel make": "make -s -j6 -f parts.mk",
    "thread race": "gcc -O1 -pthread race.c -o race && ./race && ./race",
    "inodes": "ls -i many | head; stat -c '%n %i %h %b %B %d %D %s %X %Y %Z %W' many many/1 . ..",
    "gzip time": "echo text > f; gzip -k f; od -An -tx1 f.gz; gzip -l f.gz",
    "tar": "tar cf - many | md5sum; tar czf many.tgz many; md5sum many.tgz",
    "umask": "umask; touch f; mkdir d; stat -c %A f d; umask -S",
    "locale sort": "printf '%s\\n' z Z a A õ t s ä | sort; locale 2>&1 | head -3",
    "locale date": "date +'%A %d %B %Y %x %X %p %Z'; cal 2> /dev/null",
    "environment": "env; tty; echo \"$-\"; ulimit -a",
    "path": "pwd; pwd -P; realpath .; readlink /proc/self/cwd",
    "time stamp counter": "gcc counter.c -o counter && ./counter && ./counter",
    "processor": "cat /proc/cpuinfo; lscpu; cat /sys/devices/system/cpu/online",
    "uptime": "cat /proc/uptime; uptime",
    "load": "cat /proc/loadavg; w -h 2>&1 | head -3",
    "memory": "head -5 /proc/meminfo; free 2>&1; cat /proc/self/statm",
    "boot id": "cat /proc/sys/kernel/random/boot_id /etc/machine-id; stat -c %y /proc/1",
    "zip": "python3 -m zipfile -c a.zip many && md5sum a.zip",
    "python cache": "echo 'value = 1' > m.py; python3 -c 'import m; print(m.__cached__)'; md5sum __pycache__/*",
    "nanoseconds": "date +%N; date +%s.%N; stat -c %y stamp.c; touch n; stat -c %y n",
    "clocks": (
        "python3 -c 'import time; print([time.clock_gettime_ns(c) for c in range(8)], time.process_time(), "
        "time.perf_counter_ns())'"
    ),
    "file system": "df . / /tmp; df -i .; stat -f .; findmnt -n / 2>&1",
    "usage": (
        "python3 -c 'import resource as r; print(r.getrusage(r.RUSAGE_SELF), r.getrusage(r.RUSAGE_CHILDREN))'; times"
    ),
    "processes": "ps -ef 2>&1; ls -d /proc/[0-9]*; top -b -n 1 2>&1 | head -8",
    "pipe order": "for i in 1 2 3 4 5 6; do for k in 1 2; do echo $i.$k; done & done; wait",
    "waiting": "time sleep 0.7; timeout 0.2 sleep 9; echo $?",
}
