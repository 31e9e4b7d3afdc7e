/* calls WHAT N: makes the same system call (or group of calls) N times.
 * It does not time itself, because time is virtual under detbox: the caller compares runs of different N. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int pair[2], file;
static char byte;

static int do_stat(void)
{
	struct stat st;
	return stat("data", &st);
}

static int do_absent(void)
{
	struct stat st;
	return stat("absent", &st) == 0;
}

static int do_open(void)
{
	char buffer[64];
	int fd = open("data", O_RDONLY);
	return fd < 0 || read(fd, buffer, sizeof buffer) <= 0 || close(fd);
}

static int do_file_read(void) { return lseek(file, 0, SEEK_SET) || read(file, &byte, 1) != 1; }
static int do_file_write(void) { return write(file, &byte, 1) != 1; }
static int do_pipe(void) { return write(pair[1], &byte, 1) != 1 || read(pair[0], &byte, 1) != 1; }
static int do_getpid(void) { return syscall(SYS_getpid) < 0; }

static int do_clock(void)
{
	struct timespec now;
	return clock_gettime(CLOCK_MONOTONIC, &now);
}

static int do_process(void)
{
	int status;
	pid_t pid = fork();
	if (pid == 0) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(127);
	}
	return pid < 0 || waitpid(pid, &status, 0) != pid || status;
}

static const struct { const char *name; int (*call)(void); } table[] = {
	{"stat", do_stat}, {"absent", do_absent}, {"open", do_open}, {"file-read", do_file_read},
	{"file-write", do_file_write}, {"pipe", do_pipe}, {"getpid", do_getpid}, {"clock", do_clock},
	{"process", do_process},
};

int main(int argc, char **argv)
{
	if (argc != 3 || pipe(pair)) return 2;
	long n = atol(argv[2]);
	int writing = !strcmp(argv[1], "file-write");
	file = writing ? open("written", O_WRONLY | O_CREAT | O_TRUNC, 0644) : open("data", O_RDONLY);
	if (file < 0) return 3;
	for (unsigned k = 0; k < sizeof table / sizeof *table; k++) {
		if (strcmp(table[k].name, argv[1])) continue;
		for (long i = 0; i < n; i++)
			if (table[k].call()) return 4;
		return 0;
	}
	return 5;
}
