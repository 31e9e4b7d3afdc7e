"""For each class of cause a program whose native runs differ for that reason, and for no other.

They run in a directory with the files ``a`` to ``z`` and those of ``SOURCES``.
"""

from __future__ import annotations

SOURCES = {
    "address.c": (
        "#include <stdio.h>\n#include <stdlib.h>\nstatic int data;\n"
        'int main(int n, char **v) { printf("%p %p\\n", (void *)&data, (void *)&n); return 0; }\n'
    ),
    "cpuid.c": (
        "#define _GNU_SOURCE\n#include <cpuid.h>\n#include <sched.h>\n#include <stdio.h>\n"
        "int main(void) { cpu_set_t set; unsigned a, b, c, d; int first = 0; sched_getaffinity(0, sizeof set, &set);\n"
        " while (!CPU_ISSET(first, &set)) first++;\n CPU_ZERO(&set); CPU_SET(first, &set);\n"
        " sched_setaffinity(0, sizeof set, &set); __cpuid(1, a, b, c, d);\n"
        ' printf("%08x %08x %08x %08x\\n", a, b, c, d); return 0; }\n'
    ),
    "race.c": (
        "#include <pthread.h>\n#include <stdio.h>\nenum { N = 4, TURNS = 4000000 };\n"
        "static volatile long total;\n"
        "static void *add(void *me) { for (int i = 0; i < TURNS; i++) total = total + 1; return me; }\n"
        "int main(void) { pthread_t t[N]; for (int i = 0; i < N; i++) pthread_create(t + i, NULL, add, NULL);\n"
        ' for (int i = 0; i < N; i++) pthread_join(t[i], NULL); printf("%ld\\n", total); return 0; }\n'
    ),
}

#: Class of cause, and the script of a shell.
PROGRAMS = {
    "time": "date +%s.%N",
    "random": "od -An -tx1 -N16 /dev/urandom",
    "readdir order": "ls -U",
    "PID": "echo $$",
    "address": "/work-tools/address",
    "uname": "uname -nr",
    "CPU count": "nproc",
    "cpuid": "/work-tools/cpuid",
    "thread race": "/work-tools/race",
    "umask": "mkdir made; stat -c %A made > seen; touch -d @7 made seen .",
    "locale": "echo $LC_ALL",
    "host path": "pwd",
    "inode": "stat -c %i a",
    "mtime": "stat -c %Y a",
    "environment": "echo options: $CFLAGS",
}
