/* A position-independent program without an interpreter that is large enough for huge pages: where it lies, and that
 * everybody who tells where it lies agrees. */
#include "guest.h"
#include <elf.h>
#include <link.h>
#include <sys/auxv.h>

static char data[5 << 20] = "data", zero[3 << 20];
static char *pointers[] = {data, zero + sizeof zero - 1};

extern void _start(void);
extern char __ehdr_start[];

static size_t whole_file(const char *path, char *into, size_t room)
{
    int fd = open(path, O_RDONLY);
    size_t length = 0;
    ssize_t got;
    CHECK(fd >= 0);
    while ((got = read(fd, into + length, room - length)) > 0)
        length += got;
    CHECK(got == 0 && length < room && close(fd) == 0);
    into[length] = 0;
    return length;
}

static void auxiliary_vector(void)
{
    static char raw[4096];
    size_t length = whole_file("/proc/self/auxv", raw, sizeof raw);
    unsigned long seen = 0;
    for (ElfW(auxv_t) *pair = (void *)raw; (char *)pair < raw + length; pair++)
        if (pair->a_type == AT_PHDR || pair->a_type == AT_ENTRY) {
            CHECK(pair->a_un.a_val == getauxval(pair->a_type));
            seen++;
        }
    CHECK(seen == 2 && getauxval(AT_BASE) == 0);
    CHECK(getauxval(AT_ENTRY) == (unsigned long)_start);
    CHECK(getauxval(AT_PHDR) == (unsigned long)__ehdr_start + ((ElfW(Ehdr) *)__ehdr_start)->e_phoff);
}

static void listing(void)
{
    static char text[1 << 16];
    unsigned long start, end, lowest = 0, highest = 0;
    whole_file("/proc/self/maps", text, sizeof text);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        CHECK(sscanf(line, "%lx-%lx", &start, &end) == 2);
        if (strstr(line, "/program")) {
            lowest = lowest ? lowest : start;
            highest = end;
        }
    }
    CHECK(lowest == (unsigned long)__ehdr_start && highest > (unsigned long)data + sizeof data - 1);
}

static void kernel_notes(void)
{
    static char text[4096];
    unsigned long value[53];
    whole_file("/proc/self/stat", text, sizeof text);
    char *at = strrchr(text, ')') + 1;
    for (int field = 3; field <= 52; field++) {
        at = strtok(field == 3 ? at : NULL, " ");
        CHECK(at != NULL);
        value[field] = strtoul(at, NULL, 10);
    }
    unsigned long code = (unsigned long)_start;
    CHECK(value[26] <= code && code < value[27]);
    CHECK(value[45] <= (unsigned long)data && (unsigned long)data + sizeof data <= value[46]);
    note("code %lx-%lx, data %lx-%lx, break %lx\n", value[26], value[27], value[45], value[46], value[47]);
}

static void *thread(void *word)
{
    *(char **)word = pointers[1];
    return word;
}

static void everything(void)
{
    char *word = NULL;
    void *result;
    pthread_t id;
    auxiliary_vector();
    listing();
    kernel_notes();
    CHECK(strcmp(pointers[0], "data") == 0 && *pointers[1] == 0);
    CHECK(pthread_create(&id, NULL, thread, &word) == 0 && pthread_join(id, &result) == 0);
    CHECK(result == &word && word == pointers[1]);
}

int main(int argc, char **argv)
{
    struct timespec now;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    void *mapped = mmap(NULL, 12288, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    note("program %p %p %p, mapped %p, %p, stack %p\n", (void *)main, (void *)data, (void *)zero, mapped, malloc(1 << 20),
         (void *)&now);
    everything();
    pid_t pid = fork();
    if (pid == 0) {
        everything();
        _exit(0);
    }
    reap(pid, 0);
    if (argc == 1) {
        execl(argv[0], argv[0], "again", NULL);
        CHECK(!"executed");
    }
    return done();
}
