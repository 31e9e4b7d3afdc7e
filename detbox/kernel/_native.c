/* Thin wrappers for kernel interfaces that Python's standard library lacks.
 *
 * Rules for code here: one kernel interface per function; no policy; no state
 * that outlives a call, except what is known of events (events.c) and of the supervisor's classes (calls.c, which is the
 * loop's inner part), and what it takes longer to ask for again (`last_cstr`, `last_regs`, `kept`); a failure raises OSError, unless the
 * comment of the function says that it returns -errno.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <ucontext.h>
#include <unistd.h>

#include "../guest/clock.c"

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif
#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#endif

#define PATH_LIMIT 4096
#define PAGE 4096UL

static PyObject *fail(void) { return PyErr_SetFromErrno(PyExc_OSError); }

static PyObject *fail_with(int err)
{
	errno = err;
	return fail();
}

/* ---- guest memory ------------------------------------------------------- */

static PyObject *read_mem(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 3) { PyErr_SetString(PyExc_TypeError, "read_mem(tid, addr, length)"); return NULL; }
	pid_t tid = (pid_t)PyLong_AsLong(a[0]);
	unsigned long addr = PyLong_AsUnsignedLongMask(a[1]);
	Py_ssize_t len = PyLong_AsSsize_t(a[2]);
	if (PyErr_Occurred()) return NULL;
	PyObject *out = PyBytes_FromStringAndSize(NULL, len);
	if (!out) return NULL;
	struct iovec l = {PyBytes_AS_STRING(out), (size_t)len}, r = {(void *)addr, (size_t)len};
	ssize_t got = len ? process_vm_readv(tid, &l, 1, &r, 1, 0) : 0;
	if (got != len) {
		Py_DECREF(out);
		return fail_with(got < 0 && errno != EFAULT ? errno : EFAULT);
	}
	return out;
}

/* The last string that read_cstr() has found: whoever follows a run's paths reads
 * each of them just before the handler does.  It holds until a guest may have
 * run or its memory was written. */
static struct { pid_t tid; unsigned long addr; PyObject *text; } last_cstr;

/* The registers that get_regs() has found last, of a thread that has been stopped ever since: several parts of the
 * supervisor look at them in one stop. */
static struct { pid_t tid; struct user_regs_struct regs; } last_regs;

static void forget_cstr(void)
{
	Py_CLEAR(last_cstr.text);
}

/* Threads may have gone on, or something was changed about one. */
static void forget_thread(void)
{
	last_regs.tid = 0;
	forget_cstr();
}

static PyObject *write_mem(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 3) { PyErr_SetString(PyExc_TypeError, "write_mem(tid, addr, data)"); return NULL; }
	pid_t tid = (pid_t)PyLong_AsLong(a[0]);
	unsigned long addr = PyLong_AsUnsignedLongMask(a[1]);
	Py_buffer b;
	if (PyErr_Occurred() || PyObject_GetBuffer(a[2], &b, PyBUF_SIMPLE)) return NULL;
	struct iovec l = {b.buf, (size_t)b.len}, r = {(void *)addr, (size_t)b.len};
	ssize_t put = b.len ? process_vm_writev(tid, &l, 1, &r, 1, 0) : 0;
	Py_ssize_t len = b.len;
	forget_cstr();
	PyBuffer_Release(&b);
	if (put != len) return fail_with(put < 0 && errno != EFAULT ? errno : EFAULT);
	Py_RETURN_NONE;
}

#define PLACES_AT_ONCE 256

/* write_places(tid, [(address, bytes)]): as write_mem, all of them */
static PyObject *write_places(PyObject *self, PyObject *args)
{
	struct iovec local[PLACES_AT_ONCE], remote[PLACES_AT_ONCE];
	PyObject *places;
	int tid;

	(void)self;
	if (!PyArg_ParseTuple(args, "iO!", &tid, &PyList_Type, &places)) return NULL;
	forget_cstr();
	for (Py_ssize_t next = 0; next < PyList_GET_SIZE(places);) {
		ssize_t length = 0, put;
		unsigned long count = 0;
		for (; next < PyList_GET_SIZE(places) && count < PLACES_AT_ONCE; next++, count++) {
			unsigned long long address;
			const char *data;
			Py_ssize_t size;
			if (!PyArg_ParseTuple(PyList_GET_ITEM(places, next), "Ky#", &address, &data, &size)) return NULL;
			local[count] = (struct iovec){(void *)data, (size_t)size};
			remote[count] = (struct iovec){(void *)(uintptr_t)address, (size_t)size};
			length += size;
		}
		put = process_vm_writev(tid, local, count, remote, count, 0);
		if (put != length) return fail_with(put < 0 && errno != EFAULT ? errno : EFAULT);
	}
	Py_RETURN_NONE;
}

/* A descriptor through which a traced thread's memory can be written to also where it is read only: the pages of a private
 * mapping are copied (FOLL_FORCE).  -1 with errno. */
static int open_memory(pid_t tid)
{
	char path[32];
	snprintf(path, sizeof path, "/proc/%d/mem", tid);
	return open(path, O_RDWR | O_CLOEXEC);
}

/* write_code(tid, [(address, bytes)]): as write_places(), but through that. */
static PyObject *write_code(PyObject *self, PyObject *args)
{
	PyObject *places;
	int tid, fd;

	(void)self;
	if (!PyArg_ParseTuple(args, "iO!", &tid, &PyList_Type, &places)) return NULL;
	forget_cstr();
	if ((fd = open_memory(tid)) < 0) return fail();
	for (Py_ssize_t next = 0; next < PyList_GET_SIZE(places); next++) {
		unsigned long long address;
		const char *data;
		Py_ssize_t size;
		if (!PyArg_ParseTuple(PyList_GET_ITEM(places, next), "Ky#", &address, &data, &size)) { close(fd); return NULL; }
		if (pwrite(fd, data, (size_t)size, (off_t)address) != size) { close(fd); return fail_with(EFAULT); }
	}
	close(fd);
	Py_RETURN_NONE;
}

#include "exchange.c"

/* Reads page by page, so that a string that ends before an unmapped page is
 * read whole. */
static PyObject *read_cstr(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 2) { PyErr_SetString(PyExc_TypeError, "read_cstr(tid, addr)"); return NULL; }
	pid_t tid = (pid_t)PyLong_AsLong(a[0]);
	unsigned long addr = PyLong_AsUnsignedLongMask(a[1]);
	if (PyErr_Occurred()) return NULL;
	if (last_cstr.text && last_cstr.tid == tid && last_cstr.addr == addr) return Py_NewRef(last_cstr.text);
	char buf[PATH_LIMIT];
	size_t have = 0;
	while (have < PATH_LIMIT) {
		unsigned long at = addr + have;
		size_t chunk = PAGE - at % PAGE;
		/* Most strings are short: a first look of 256 bytes saves copying. */
		if (!have && chunk > 256) chunk = 256;
		if (chunk > PATH_LIMIT - have) chunk = PATH_LIMIT - have;
		struct iovec l = {buf + have, chunk}, r = {(void *)at, chunk};
		ssize_t got = process_vm_readv(tid, &l, 1, &r, 1, 0);
		if (got <= 0) return fail_with(got < 0 && errno != EFAULT ? errno : EFAULT);
		char *end = memchr(buf + have, 0, (size_t)got);
		if (end) {
			forget_cstr();
			PyObject *text = PyBytes_FromStringAndSize(buf, end - buf);
			last_cstr.tid = tid;
			last_cstr.addr = addr;
			last_cstr.text = Py_XNewRef(text);
			return text;
		}
		have += (size_t)got;
	}
	return fail_with(ENAMETOOLONG);
}

/* ---- seccomp user notification ------------------------------------------ */

#include "events.c"

/* A stop of the supervisor (SIGSTOP, a debugger, the freezer of a suspended host) can end these requests
 * with EINTR before they have done anything (seccomp_notify_send() in kernel/seccomp.c). */
static int patient_ioctl(int fd, unsigned long request, void *q)
{
	int r;
	do r = ioctl(fd, request, q);
	while (r < 0 && errno == EINTR);
	return r;
}

/* reply(listener, id, value, error, flags) -> 0 or -errno (the thread may be dead). */
static PyObject *reply(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 5) { PyErr_SetString(PyExc_TypeError, "reply(listener, id, value, error, flags)"); return NULL; }
	forget_thread();
	struct seccomp_notif_resp r;
	int listener = (int)PyLong_AsLong(a[0]);
	r.id = PyLong_AsUnsignedLongLong(a[1]);
	r.val = (long long)PyLong_AsUnsignedLongLongMask(a[2]);
	r.error = (int)PyLong_AsLong(a[3]);
	r.flags = (unsigned)PyLong_AsUnsignedLong(a[4]);
	if (PyErr_Occurred()) return NULL;
	return PyLong_FromLong(patient_ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &r) ? -errno : 0);
}

#include "slots.c"
#include "clocks.c"
#include "calls.c"

/* add_fd(listener, id, fd, at, cloexec, send) -> descriptor in the guest, or -errno; `send`: the call
 * returns it.  Not SECCOMP_ADDFD_FLAG_SEND: a supervisor that is stopped while it waits for the thread takes
 * the descriptor back but not the answer, so that the call returns 0 and nothing is installed. */
static PyObject *add_fd(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 6) { PyErr_SetString(PyExc_TypeError, "add_fd(listener, id, fd, at, cloexec, send)"); return NULL; }
	forget_thread();
	struct seccomp_notif_addfd q;
	memset(&q, 0, sizeof q);
	int listener = (int)PyLong_AsLong(a[0]);
	long at = PyLong_AsLong(a[3]);
	q.id = PyLong_AsUnsignedLongLong(a[1]);
	q.srcfd = (unsigned)PyLong_AsLong(a[2]);
	q.newfd = at >= 0 ? (unsigned)at : 0;
	q.newfd_flags = PyObject_IsTrue(a[4]) ? O_CLOEXEC : 0;
	q.flags = at >= 0 ? SECCOMP_ADDFD_FLAG_SETFD : 0;
	int send = PyObject_IsTrue(a[5]);
	if (PyErr_Occurred()) return NULL;
	int r = patient_ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &q);
	if (r >= 0 && send) {
		struct seccomp_notif_resp answer = {.id = q.id, .val = r};
		if (patient_ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer)) return PyLong_FromLong(-errno);
	}
	return PyLong_FromLong(r < 0 ? -errno : r);
}

static PyObject *notif_alive(PyObject *self, PyObject *args)
{
	int listener;
	unsigned long long id;
	if (!PyArg_ParseTuple(args, "iK", &listener, &id)) return NULL;
	return PyBool_FromLong(ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0);
}

/* Wakes the other side on this CPU instead of looking for an idle one
 * (Linux 6.6).  Returns whether the kernel knows it. */
static PyObject *sync_wake_up(PyObject *self, PyObject *args)
{
	int listener;
	if (!PyArg_ParseTuple(args, "i", &listener)) return NULL;
	return PyBool_FromLong(
		ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP) == 0);
}

/* filter_and_exec(filter, cell, path, argv, envp): installs the seccomp filter
 * with a listener, stores the listener's number plus one into the shared cell
 * (a write to memory: a system call would already be intercepted), and
 * executes path.  Returns only on failure: raises OSError.
 * The supervisor takes the descriptor over with pidfd_getfd. */
static PyObject *filter_and_exec(PyObject *self, PyObject *args)
{
	Py_buffer filter, cell;
	const char *path;
	PyObject *argv, *envp;
	if (!PyArg_ParseTuple(args, "y*w*yO!O!", &filter, &cell, &path, &PyList_Type, &argv, &PyList_Type, &envp))
		return NULL;
	Py_ssize_t na = PyList_GET_SIZE(argv), ne = PyList_GET_SIZE(envp);
	char **av = calloc((size_t)na + 1, sizeof *av), **ev = calloc((size_t)ne + 1, sizeof *ev);
	if (!av || !ev) return PyErr_NoMemory();
	for (Py_ssize_t i = 0; i < na; i++)
		if (!(av[i] = PyBytes_AsString(PyList_GET_ITEM(argv, i)))) return NULL;
	for (Py_ssize_t i = 0; i < ne; i++)
		if (!(ev[i] = PyBytes_AsString(PyList_GET_ITEM(envp, i)))) return NULL;
	struct sock_fprog prog = {(unsigned short)(filter.len / (Py_ssize_t)sizeof(struct sock_filter)), filter.buf};
	unsigned long flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return fail();
	int fd = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &prog);
	if (fd < 0) return fail();
	*(volatile int *)cell.buf = fd + 1;
	execve(path, av, ev);
	*((volatile int *)cell.buf + 1) = errno;
	_exit(127);
}

/* ---- the supervisor's own instructions that trap ---------------------------- */

#define ARCH_SET_CPUID 0x1012

static void execute_cpuid(greg_t *g)
{
	unsigned a = (unsigned)g[REG_RAX], b, c = (unsigned)g[REG_RCX], d;
	syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
	g[REG_RAX] = a;
	g[REG_RBX] = b;
	g[REG_RCX] = c;
	g[REG_RDX] = d;
}

static void execute_rdtsc(greg_t *g, int with_processor)
{
	unsigned a, c, d;
	prctl(PR_SET_TSC, PR_TSC_ENABLE, 0, 0, 0);
	if (with_processor) {
		__asm__ volatile("rdtscp" : "=a"(a), "=c"(c), "=d"(d));
		g[REG_RCX] = c;
	} else {
		__asm__ volatile("rdtsc" : "=a"(a), "=d"(d));
	}
	prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0);
	g[REG_RAX] = a;
	g[REG_RDX] = d;
}

static void on_own_trap(int sig, siginfo_t *info, void *context)
{
	greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
	const unsigned char *code = (const unsigned char *)g[REG_RIP];
	int ours = info->si_code == SI_KERNEL && code[0] == 0x0f, saved = errno;
	if (ours && code[1] == 0xa2) {
		execute_cpuid(g);
		g[REG_RIP] += 2;
	} else if (ours && code[1] == 0x31) {
		execute_rdtsc(g, 0);
		g[REG_RIP] += 2;
	} else if (ours && code[1] == 0x01 && code[2] == 0xf9) {
		execute_rdtsc(g, 1);
		g[REG_RIP] += 3;
	} else {
		signal(sig, SIG_DFL); /* a real fault: it happens again, and kills */
	}
	errno = saved;
}

/* trap_like_guest(cpuid): this thread's rdtsc, and with `cpuid` that too, faults from now on as the guest's does, and is
 * executed by a signal handler.  Of no use by itself, but at every switch between two threads that differ in this the kernel
 * writes a control register (__switch_to_xtra() in arch/x86/kernel/process.c).  A virtual machine may have to ask its host for
 * that, twice a call: 4.4 us each for rdtsc (AMD; Intel's need not), 3.5 us for cpuid. */
static PyObject *trap_like_guest(PyObject *self, PyObject *args)
{
	struct sigaction sa;
	int cpuid;
	if (!PyArg_ParseTuple(args, "p", &cpuid)) return NULL;
	memset(&sa, 0, sizeof sa);
	sa.sa_sigaction = on_own_trap;
	sa.sa_flags = SA_SIGINFO | SA_NODEFER;
	if (sigaction(SIGSEGV, &sa, NULL) || prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0)) return fail();
	if (cpuid && syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) return fail();
	Py_RETURN_NONE;
}

/* guest_code() -> (the machine code of guest/clock.c, {name: offset of its function}, offset of what stands for rdtsc). */
static PyObject *guest_code(PyObject *self, PyObject *args)
{
	const char *start = __start_detbox_guest;
	return Py_BuildValue("y#{s:n,s:n,s:n}n", start, (Py_ssize_t)(__stop_detbox_guest - start),
			     "__vdso_clock_gettime", (Py_ssize_t)((const char *)detbox_guest_gettime - start),
			     "__vdso_gettimeofday", (Py_ssize_t)((const char *)detbox_guest_timeofday - start),
			     "__vdso_time", (Py_ssize_t)((const char *)detbox_guest_time - start),
			     (Py_ssize_t)(detbox_guest_ticks - start));
}

/* A piece of code (first to last) of a function (start to end). */
struct piece { int64_t first, last, start, end; };

static void reach(const struct piece *pieces, size_t count, char *found, int64_t from, int64_t target)
{
	size_t low = 0, high = count;
	while (low < high) {
		size_t middle = (low + high) / 2;
		if (pieces[middle].first <= target) low = middle + 1;
		else high = middle;
	}
	if (!low || target > pieces[low - 1].last) return;
	if (from < pieces[low - 1].start || from >= pieces[low - 1].end) found[low - 1] = 1;
}

/* Whether a byte that stands before a distance of 32 bits, and the one before it, make a call, jmp, jcc or xbegin. */
static int is_near_branch(unsigned char before, unsigned char opcode)
{
	return (opcode & 0xfe) == 0xe8 || (before == 0x0f && (opcode & 0xf0) == 0x80) || (before == 0xc7 && opcode == 0xf8);
}

/* reached(data, start, end, vaddr, pieces, branches) -> a byte for each piece: whether anything in the data from `start`,
 * where the virtual address is `vaddr`, to `end` would lead to it from outside of its function.  Either whatever looks like a
 * branch, also within another instruction, or its address.  pieces: struct piece, in ascending order. */
static PyObject *reached(PyObject *self, PyObject *args)
{
	Py_buffer data, pieces;
	Py_ssize_t start, end;
	long long vaddr;
	int branches;
	if (!PyArg_ParseTuple(args, "y*nnLy*p", &data, &start, &end, &vaddr, &pieces, &branches)) return NULL;
	const unsigned char *bytes = data.buf;
	const struct piece *every = pieces.buf;
	size_t count = (size_t)pieces.len / sizeof *every;
	PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)count);
	char *found = result ? PyBytes_AS_STRING(result) : NULL;
	if (found && count) {
		memset(found, 0, count);
		int64_t lowest = every[0].first, highest = every[count - 1].last;
		if (end > data.len) end = data.len;
		for (Py_ssize_t at = start < 1 ? 1 : start; at < end; at++) {
			int64_t here = vaddr + (at - start), target;
			unsigned char opcode = bytes[at - 1];
			int32_t distance;
			if (!branches) {
				if (at + 8 > end) break;
				memcpy(&target, bytes + at, sizeof target);
				if (target >= lowest && target <= highest) reach(every, count, found, -1, target);
			} else if ((opcode & 0xf0) == 0x70 || (opcode & 0xfc) == 0xe0 || opcode == 0xeb) {
				reach(every, count, found, here, here + 1 + (signed char)bytes[at]); /* jcc, loop, jmp */
			} else if (at + 4 <= end && is_near_branch(at > 1 ? bytes[at - 2] : 0, opcode)) {
				memcpy(&distance, bytes + at, sizeof distance);
				target = here + 4 + distance;
				if (target >= lowest && target <= highest) reach(every, count, found, here, target);
			}
		}
	}
	PyBuffer_Release(&data);
	PyBuffer_Release(&pieces);
	return result;
}

/* ---- ptrace ------------------------------------------------------------- */

static PyObject *seize(PyObject *self, PyObject *args)
{
	int tid;
	unsigned long options;
	if (!PyArg_ParseTuple(args, "ik", &tid, &options)) return NULL;
	if (ptrace(PTRACE_SEIZE, tid, NULL, options)) return fail();
	Py_RETURN_NONE;
}

/* ptrace_request(request, tid, addr, data): for requests without a structure
 * (PTRACE_INTERRUPT, PTRACE_LISTEN, PTRACE_CONT with a signal, ...).
 * Returns 0 or -errno. */
static PyObject *ptrace_request(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 4) { PyErr_SetString(PyExc_TypeError, "ptrace_request(request, tid, addr, data)"); return NULL; }
	forget_thread();
	long req = PyLong_AsLong(a[0]), tid = PyLong_AsLong(a[1]);
	unsigned long addr = PyLong_AsUnsignedLongMask(a[2]), data = PyLong_AsUnsignedLongMask(a[3]);
	if (PyErr_Occurred()) return NULL;
	long r = ptrace((enum __ptrace_request)req, (pid_t)tid, (void *)addr, (void *)data);
	return PyLong_FromLong(r < 0 ? -errno : r);
}

static PyObject *event_message(PyObject *self, PyObject *args)
{
	int tid;
	unsigned long message = 0;
	if (!PyArg_ParseTuple(args, "i", &tid)) return NULL;
	if (ptrace(PTRACE_GETEVENTMSG, tid, NULL, &message)) return fail();
	return PyLong_FromUnsignedLong(message);
}

/* siginfo(tid) -> the 128 bytes of siginfo_t of the current stop. */
static PyObject *get_siginfo(PyObject *self, PyObject *args)
{
	int tid;
	siginfo_t si;
	if (!PyArg_ParseTuple(args, "i", &tid)) return NULL;
	memset(&si, 0, sizeof si);
	if (ptrace(PTRACE_GETSIGINFO, tid, NULL, &si)) return fail();
	return PyBytes_FromStringAndSize((char *)&si, sizeof si);
}

/* signals_queued(tid): whether a signal waits, blocked or not, for a thread that is in a ptrace stop, or for its process.
 * What has been sent without what it tells (more than RLIMIT_SIGPENDING) is not seen. */
static PyObject *signals_queued(PyObject *self, PyObject *args)
{
	int tid;
	siginfo_t si;
	if (!PyArg_ParseTuple(args, "i", &tid)) return NULL;
	for (unsigned flags = 0; flags <= PTRACE_PEEKSIGINFO_SHARED; flags++) {
		struct __ptrace_peeksiginfo_args what = {.off = 0, .flags = flags, .nr = 1};
		long found = ptrace(PTRACE_PEEKSIGINFO, tid, &what, &si);
		if (found < 0) return fail();
		if (found > 0) Py_RETURN_TRUE;
	}
	Py_RETURN_FALSE;
}

static PyObject *set_siginfo(PyObject *self, PyObject *args)
{
	int tid;
	Py_buffer b;
	siginfo_t si;
	if (!PyArg_ParseTuple(args, "iy*", &tid, &b)) return NULL;
	memset(&si, 0, sizeof si);
	memcpy(&si, b.buf, (size_t)b.len < sizeof si ? (size_t)b.len : sizeof si);
	PyBuffer_Release(&b);
	if (ptrace(PTRACE_SETSIGINFO, tid, NULL, &si)) return fail();
	Py_RETURN_NONE;
}

/* sigmask(tid) / set_sigmask(tid, mask): the blocked set of a stopped thread. */
static PyObject *get_sigmask(PyObject *self, PyObject *args)
{
	int tid;
	uint64_t mask = 0;
	if (!PyArg_ParseTuple(args, "i", &tid)) return NULL;
	if (ptrace(PTRACE_GETSIGMASK, tid, (void *)sizeof mask, &mask)) return fail();
	return PyLong_FromUnsignedLongLong(mask);
}

static PyObject *set_sigmask(PyObject *self, PyObject *args)
{
	int tid;
	unsigned long long mask;
	if (!PyArg_ParseTuple(args, "iK", &tid, &mask)) return NULL;
	uint64_t m = mask;
	if (ptrace(PTRACE_SETSIGMASK, tid, (void *)sizeof m, &m)) return fail();
	Py_RETURN_NONE;
}

/* get_regs(tid) -> bytes of struct user_regs_struct; set_regs(tid, bytes). */
static PyObject *get_regs(PyObject *self, PyObject *args)
{
	int tid;
	if (!PyArg_ParseTuple(args, "i", &tid)) return NULL;
	if (last_regs.tid != tid) {
		last_regs.tid = 0;
		if (ptrace(PTRACE_GETREGS, tid, NULL, &last_regs.regs)) return fail();
		last_regs.tid = tid;
	}
	return PyBytes_FromStringAndSize((char *)&last_regs.regs, sizeof last_regs.regs);
}

/* get_fpregs(tid) -> bytes of struct user_fpregs_struct. */
static PyObject *get_fpregs(PyObject *self, PyObject *args)
{
	int tid;
	struct user_fpregs_struct regs;
	if (!PyArg_ParseTuple(args, "i", &tid)) return NULL;
	if (ptrace(PTRACE_GETFPREGS, tid, NULL, &regs)) return fail();
	return PyBytes_FromStringAndSize((char *)&regs, sizeof regs);
}

static PyObject *set_regs(PyObject *self, PyObject *args)
{
	int tid;
	Py_buffer b;
	if (!PyArg_ParseTuple(args, "iy*", &tid, &b)) return NULL;
	last_regs.tid = 0; /* the kernel may take some bits otherwise */
	int bad = b.len != sizeof(struct user_regs_struct) || ptrace(PTRACE_SETREGS, tid, NULL, b.buf);
	PyBuffer_Release(&b);
	if (bad) return fail();
	Py_RETURN_NONE;
}

/* divert(tid, rip, rsp, blocked): a stopped thread goes on there, with that stack and these signals blocked, and no call is
 * restarted. */
static PyObject *divert(PyObject *self, PyObject *args)
{
	int tid;
	unsigned long long rip, rsp, blocked;
	if (!PyArg_ParseTuple(args, "iKKK", &tid, &rip, &rsp, &blocked)) return NULL;
	struct user_regs_struct regs = last_regs.regs;
	uint64_t mask = blocked;
	if (last_regs.tid != tid && ptrace(PTRACE_GETREGS, tid, NULL, &regs)) return fail();
	last_regs.tid = 0;
	regs.rip = rip;
	regs.rsp = rsp;
	regs.rax = 0;
	regs.orig_rax = ~0ULL;
	if (ptrace(PTRACE_SETREGS, tid, NULL, &regs) || ptrace(PTRACE_SETSIGMASK, tid, (void *)sizeof mask, &mask)) return fail();
	Py_RETURN_NONE;
}

/* The bytes at an address, as many as are mapped of up to n. */
static ssize_t code_at(pid_t tid, unsigned long addr, unsigned char *code, size_t n)
{
	size_t in_page = PAGE - addr % PAGE;
	struct iovec l = {code, n};
	struct iovec r[2] = {{(void *)addr, n < in_page ? n : in_page}, {(void *)(addr + in_page), n < in_page ? 0 : n - in_page}};
	return process_vm_readv(tid, &l, 1, r, 2, 0);
}

/* Index of the opcode behind legacy and REX prefixes. */
static ssize_t opcode_at(const unsigned char *code, ssize_t n)
{
	ssize_t i = 0;
	while (i < n && code[i] && strchr("\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3", code[i])) i++;
	if (i < n && (code[i] & 0xf0) == 0x40) i++;
	return i;
}

/* Takes the trap flag out of the flags that a stepped pushf has pushed: a later
 * popf would hand it to the guest. */
static void mend_pushed_flags(pid_t tid)
{
	unsigned long rsp = (unsigned long)ptrace(PTRACE_PEEKUSER, tid, offsetof(struct user_regs_struct, rsp), NULL);
	uint16_t flags;
	struct iovec l = {&flags, sizeof flags}, r = {(void *)rsp, sizeof flags};
	if (process_vm_readv(tid, &l, 1, &r, 1, 0) != sizeof flags) return;
	flags &= (uint16_t)~0x100;
	process_vm_writev(tid, &l, 1, &r, 1, 0);
}

enum { TRAP_BIT = 1 << (SIGTRAP - 1) };

/* The end of a step is a SIGTRAP.  Where that is blocked the kernel would open it for good and take its handler
 * away (kernel/signal.c, force_sig_info_to_task): it is opened for the step alone.  The mask before, or 0 if nothing
 * was changed.  Steps over calls may change the mask themselves, and are left to the kernel. */
static uint64_t open_trap(pid_t tid)
{
	uint64_t mask;
	if (ptrace(PTRACE_GETSIGMASK, tid, sizeof mask, &mask) || !(mask & TRAP_BIT)) return 0;
	unsigned char code[8] = {0};
	unsigned long rip = (unsigned long)ptrace(PTRACE_PEEKUSER, tid, offsetof(struct user_regs_struct, rip), NULL);
	ssize_t at = opcode_at(code, code_at(tid, rip, code, sizeof code - 1));
	if (code[at] == 0x0f && code[at + 1] == 0x05) return 0;
	uint64_t open = mask & ~(uint64_t)TRAP_BIT;
	return ptrace(PTRACE_SETSIGMASK, tid, sizeof open, &open) ? 0 : mask;
}

static void close_trap(pid_t tid, uint64_t mask)
{
	if (mask) ptrace(PTRACE_SETSIGMASK, tid, sizeof mask, &mask);
}

/* Whether a stop is the end of a step, and not a SIGTRAP of the program's own.  TRAP_BRKPT is the end of a step over a
 * call, and of any step (once in 200,000) where a nested virtual machine loses the reason in DR6.  icebp (`code`
 * 0xf1) has it, too; int3 has not. */
static int step_ended(pid_t tid, int status, unsigned char code)
{
	siginfo_t si;
	return WIFSTOPPED(status) && status >> 8 == SIGTRAP && !ptrace(PTRACE_GETSIGINFO, tid, NULL, &si)
	       && (si.si_code == TRAP_TRACE || (si.si_code == TRAP_BRKPT && code != 0xf1));
}

/* single_step(tid) -> (wait status, whether one instruction was executed and nothing else happened, registers):
 * waits for the stop.  Registers are empty if the thread is gone. */
static PyObject *single_step(PyObject *self, PyObject *args)
{
	int tid, status;
	struct user_regs_struct r;
	forget_thread();
	if (!PyArg_ParseTuple(args, "i", &tid)) return NULL;
	uint64_t mask = open_trap(tid);
	if (ptrace(PTRACE_SINGLESTEP, tid, NULL, NULL)) return fail();
	while (waitpid(tid, &status, __WALL) < 0)
		if (errno != EINTR) return fail();
	if (!WIFSTOPPED(status) || ptrace(PTRACE_GETREGS, tid, NULL, &r)) return Py_BuildValue("iOy", status, Py_False, "");
	close_trap(tid, mask);
	PyObject *ended = step_ended(tid, status, 0) ? Py_True : Py_False;
	return Py_BuildValue("iOy#", status, ended, (char *)&r, (Py_ssize_t)sizeof r);
}

enum { STEPPED_ALL, BEFORE_CALL, OTHER_STOP };

/* While two threads only wake each other, one processor serves them best: a step
 * costs 4 us on one, and 20 us across two (the other has to be woken). */
struct meeting { cpu_set_t own, other; int moved; };

static void meet(pid_t tid, struct meeting *m)
{
	cpu_set_t here;
	CPU_ZERO(&here);
	CPU_SET(sched_getcpu(), &here);
	m->moved = !sched_getaffinity(0, sizeof m->own, &m->own) && !sched_getaffinity(tid, sizeof m->other, &m->other)
		   && !sched_setaffinity(tid, sizeof here, &here) && !sched_setaffinity(0, sizeof here, &here);
}

static void part(pid_t tid, const struct meeting *m)
{
	if (!m->moved) return;
	sched_setaffinity(0, sizeof m->own, &m->own);
	sched_setaffinity(tid, sizeof m->other, &m->other);
}

/* Whether a call that comes next is no reason to stop at when a thread is surveyed; as in detbox/spin/walk.py. */
static int tells_only(pid_t tid, unsigned long nr)
{
	struct user_regs_struct r;
	uint64_t mask, wanted = 0;
	if (nr == SYS_getpid || nr == SYS_gettid) return 1;
	if (nr != SYS_rt_sigprocmask || ptrace(PTRACE_GETREGS, tid, NULL, &r) || r.r10 != sizeof mask) return 0;
	struct iovec l = {&wanted, sizeof wanted}, from = {(void *)r.rsi, sizeof wanted};
	if (r.rsi && process_vm_readv(tid, &l, 1, &from, 1, 0) != sizeof wanted) return 0;
	return !ptrace(PTRACE_GETSIGMASK, tid, sizeof mask, &mask) && !((mask | wanted) & TRAP_BIT);
}

/* One step of a stopped thread.  `known` has a nonzero byte for each number of a call that may be stepped
 * over (NULL: those of tells_only()); the thread is left before any other (one that waits for a reply would never end its step).
 * STEPPED_ALL, BEFORE_CALL, OTHER_STOP with the wait status, or -1 with errno. */
static int one_step(pid_t tid, const unsigned char *known, size_t numbers, int *status)
{
	unsigned char code[8] = {0};
	errno = 0;
	unsigned long rip = (unsigned long)ptrace(PTRACE_PEEKUSER, tid, offsetof(struct user_regs_struct, rip), NULL);
	int gone = errno == ESRCH;
	ssize_t got = code_at(tid, rip, code, sizeof code - 1);
	ssize_t at = opcode_at(code, got);
	/* The vsyscall page makes calls without such an instruction, and cannot be read. */
	if (rip >> 63 && !gone) return BEFORE_CALL;
	if (code[at] == 0x0f && code[at + 1] == 0x05) {
		unsigned long nr = (unsigned long)ptrace(PTRACE_PEEKUSER, tid, offsetof(struct user_regs_struct, rax), NULL);
		if (known ? nr >= numbers || !known[nr] : !tells_only(tid, nr)) return BEFORE_CALL;
	}
	uint64_t mask = open_trap(tid);
	/* ESRCH: it was killed meanwhile, and its end can be waited for. */
	if (ptrace(PTRACE_SINGLESTEP, tid, NULL, NULL) && errno != ESRCH) return -1;
	pid_t r;
	while ((r = waitpid(tid, status, __WALL)) < 0 && errno == EINTR);
	if (r < 0) return -1;
	close_trap(tid, mask);
	if (!step_ended(tid, *status, code[at])) return OTHER_STOP;
	if (at < got && code[at] == 0x9c) mend_pushed_flags(tid);
	return STEPPED_ALL;
}

/* step_many(tid, count, known) -> (steps, wait status, why): single-steps a stopped thread; `known` as in
 * one_step().  why: 0 all steps done; 1 before a call that is not known; 2 another stop or the thread's end,
 * which the wait status describes. */
static PyObject *step_many(PyObject *self, PyObject *args)
{
	int tid, status = 0, why = STEPPED_ALL;
	long count, done = 0;
	Py_buffer known;
	struct meeting place;
	forget_thread();
	if (!PyArg_ParseTuple(args, "ily*", &tid, &count, &known)) return NULL;
	meet(tid, &place);
	while (done < count && (why = one_step(tid, known.buf, (size_t)known.len, &status)) == STEPPED_ALL) done++;
	int err = errno;
	part(tid, &place);
	PyBuffer_Release(&known);
	if (why < 0) return fail_with(err);
	return Py_BuildValue("lii", done, status, why);
}

/* The registers that a program computes with, at one moment. */
struct moment { uint64_t rip, values[16]; };
enum { MOST_MOMENTS = 4096 };

static int look_at(pid_t tid, struct moment *m)
{
	struct user_regs_struct r;
	if (ptrace(PTRACE_GETREGS, tid, NULL, &r)) return -1;
	*m = (struct moment){r.rip, {r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11,
				     r.r12, r.r13, r.r14, r.r15}};
	return 0;
}

/* Whether the last moments of the same program counter differ by the same steps: by none if there are only
 * two of them. */
static int regular(const struct moment *every, long count)
{
	const struct moment *last = &every[count - 1], *before[2] = {NULL, NULL};
	int found = 0;
	for (const struct moment *m = last; m-- > every && found < 2;)
		if (m->rip == last->rip) before[found++] = m;
	if (!found) return 0;
	for (size_t i = 0; i < sizeof last->values / sizeof *last->values; i++) {
		uint64_t step = found == 2 ? before[0]->values[i] - before[1]->values[i] : 0;
		if (last->values[i] - before[0]->values[i] != step) return 0;
	}
	return 1;
}

/* survey(tid, count) -> (steps, wait status, why, regular): single-steps a thread as step_many() does, up to
 * any call but those of tells_only(), and tells whether its last turns were alike, at the end or a quarter before it: one
 * of the two is not just where an inner loop begins anew, which surveys as long as the outer loop would meet again and again. */
static PyObject *survey(PyObject *self, PyObject *args)
{
	static struct moment every[MOST_MOMENTS];
	int tid, status = 0, why = STEPPED_ALL;
	long count, done = 0;
	struct meeting place;
	forget_thread();
	if (!PyArg_ParseTuple(args, "il", &tid, &count)) return NULL;
	if (count > MOST_MOMENTS) count = MOST_MOMENTS;
	meet(tid, &place);
	while (done < count && !look_at(tid, &every[done]) && (why = one_step(tid, NULL, 0, &status)) == STEPPED_ALL) done++;
	int err = errno;
	part(tid, &place);
	if (why < 0) return fail_with(err);
	int alike = done > 0 && (regular(every, done) || regular(every, done - done / 4));
	return Py_BuildValue("liiO", done, status, why, alike ? Py_True : Py_False);
}

/* wait_tid(tid, options) -> (tid, status), tid 0 if WNOHANG and nothing is there. */
static PyObject *wait_tid(PyObject *self, PyObject *args)
{
	int tid, options, status = 0;
	pid_t got;
	forget_thread();
	if (!PyArg_ParseTuple(args, "ii", &tid, &options)) return NULL;
	do got = waitpid(tid, &status, options | __WALL);
	while (got < 0 && errno == EINTR);
	if (got < 0) return fail();
	return Py_BuildValue("ii", got, status);
}

static PyObject *queue_signal(PyObject *self, PyObject *args)
{
	int tgid, tid, sig;
	Py_buffer b;
	siginfo_t si;
	if (!PyArg_ParseTuple(args, "iiiy*", &tgid, &tid, &sig, &b)) return NULL;
	memset(&si, 0, sizeof si);
	memcpy(&si, b.buf, (size_t)b.len < sizeof si ? (size_t)b.len : sizeof si);
	PyBuffer_Release(&b);
	long r = tid > 0 ? syscall(SYS_rt_tgsigqueueinfo, tgid, tid, sig, &si)
			 : syscall(SYS_rt_sigqueueinfo, tgid, sig, &si);
	if (r) return fail();
	Py_RETURN_NONE;
}

/* ---- processes and descriptors ------------------------------------------ */

/* Descriptors of the processes that descriptors were borrowed from last.  One of a process that is gone fails
 * with ESRCH, whoever has its number now. */
#define KEPT 64
static struct { pid_t tgid; int pidfd; } kept[KEPT];

/* A new descriptor for a process's, or -1. */
static int borrow(pid_t tgid, int fd)
{
	pid_t *whose = &kept[(unsigned)tgid % KEPT].tgid;
	int *pidfd = &kept[(unsigned)tgid % KEPT].pidfd;
	if (*whose == tgid) {
		int r = (int)syscall(SYS_pidfd_getfd, *pidfd, fd, 0);
		if (r >= 0 || errno != ESRCH) return r;
	}
	if (*whose) close(*pidfd);
	*whose = 0;
	*pidfd = (int)syscall(SYS_pidfd_open, tgid, 0);
	/* PIDFD_THREAD (Linux 6.9): any thread will do once the first one has left. */
	if (*pidfd < 0 && errno != ESRCH) *pidfd = (int)syscall(SYS_pidfd_open, tgid, O_EXCL);
	if (*pidfd < 0) return -1;
	*whose = tgid;
	return (int)syscall(SYS_pidfd_getfd, *pidfd, fd, 0);
}

static PyObject *borrow_fd(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 2) { PyErr_SetString(PyExc_TypeError, "borrow_fd(tgid, fd)"); return NULL; }
	long tgid = PyLong_AsLong(a[0]), fd = PyLong_AsLong(a[1]);
	if (PyErr_Occurred()) return NULL;
	int r = borrow((pid_t)tgid, (int)fd);
	return r < 0 ? fail() : PyLong_FromLong(r);
}

/* As borrow(); -1 without an exception if the description has an event of `mask` now (0: that makes no difference), or, with
 * `heed`, if it is nonblocking. */
static PyObject *borrow_to_wait(PyObject *const *a, int heed)
{
	long tgid = PyLong_AsLong(a[0]), fd = PyLong_AsLong(a[1]), mask = PyLong_AsLong(a[2]);
	if (PyErr_Occurred()) return NULL;
	int r = borrow((pid_t)tgid, (int)fd);
	if (r < 0) return fail();
	int flags = heed ? fcntl(r, F_GETFL) : 0, found = 0;
	struct pollfd p = {r, (short)mask, 0};
	if (mask && flags >= 0 && !(flags & O_NONBLOCK))
		while ((found = poll(&p, 1, 0)) < 0 && errno == EINTR);
	if (flags < 0 || found < 0) {
		int err = errno;
		close(r);
		return fail_with(err);
	}
	if (flags & O_NONBLOCK || found) {
		close(r);
		r = -1;
	}
	return PyLong_FromLong(r);
}

/* borrow_blocking(tgid, fd, mask) -> as borrow_fd(); -1 if the description is nonblocking, or has an event of
 * `mask`, an error or a hang-up now.  Mask 0: events make no difference. */
static PyObject *borrow_blocking(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 3) { PyErr_SetString(PyExc_TypeError, "borrow_blocking(tgid, fd, mask)"); return NULL; }
	return borrow_to_wait(a, 1);
}

/* borrow_idle(tgid, fd, mask) -> the same, whether it is nonblocking or not. */
static PyObject *borrow_idle(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 3) { PyErr_SetString(PyExc_TypeError, "borrow_idle(tgid, fd, mask)"); return NULL; }
	return borrow_to_wait(a, 0);
}

/* A stream takes so much without waiting whenever it is writable at all: a third of the smallest send buffer. */
#define STREAM_TAKES 1024
/* A Unix stream that is writable takes any message of less than half its send buffer as one piece, and a TCP one has a
 * third of it free (net/core/stream.c, sk_stream_is_writeable()). */
#define STREAM_PART 4
/* One page: POLLOUT says that at least one of a pipe's buffers is free (fs/pipe.c, pipe_poll()). */
#define PIPE_TAKES 4096

static int socket_takes(int fd, long wanted)
{
	int type, room;
	socklen_t length = sizeof type, size = sizeof room;
	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length)) return -1;
	if (type != SOCK_STREAM || wanted <= STREAM_TAKES) return 1;
	return getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, &size) ? -1 : wanted <= room / STREAM_PART;
}

static int pipe_takes(int fd, long wanted)
{
	int unread;
	if (wanted <= PIPE_TAKES) return 1;
	return ioctl(fd, FIONREAD, &unread) ? -1 : !unread && wanted <= fcntl(fd, F_GETPIPE_SZ);
}

/* Whether a pipe or socket that the kernel may wait at takes `wanted` bytes surely without; -1 with errno. */
static int takes(int fd, long wanted)
{
	struct pollfd p = {fd, POLLOUT, 0};
	int flags = fcntl(fd, F_GETFL), found;
	if (flags < 0 || flags & O_NONBLOCK) return flags < 0 ? -1 : 1;
	while ((found = poll(&p, 1, 0)) < 0 && errno == EINTR);
	if (found <= 0 || p.revents & ~POLLOUT) return found;
	int all = socket_takes(fd, wanted);
	return all < 0 && errno == ENOTSOCK ? pipe_takes(fd, wanted) : all;
}

/* takes_at_once(tgid, fd, wanted) -> whether a write of so many bytes to a process's pipe or socket does not wait: it is
 * nonblocking, has room for all, or fails. */
static PyObject *takes_at_once(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 3) { PyErr_SetString(PyExc_TypeError, "takes_at_once(tgid, fd, wanted)"); return NULL; }
	long tgid = PyLong_AsLong(a[0]), fd = PyLong_AsLong(a[1]), wanted = PyLong_AsLong(a[2]);
	if (PyErr_Occurred()) return NULL;
	int own = borrow((pid_t)tgid, (int)fd);
	if (own < 0) return fail();
	int all = takes(own, wanted), err = errno;
	close(own);
	return all < 0 ? fail_with(err) : PyBool_FromLong(all);
}

#include "status.c"
#include "shown.c"

static PyObject *py_pidfd_getfd(PyObject *self, PyObject *args)
{
	int pidfd, fd;
	if (!PyArg_ParseTuple(args, "ii", &pidfd, &fd)) return NULL;
	int r = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	return r < 0 ? fail() : PyLong_FromLong(r);
}

static PyObject *py_openat2(PyObject *self, PyObject *args)
{
	int dirfd;
	const char *path;
	unsigned long long how[3];
	if (!PyArg_ParseTuple(args, "iyKKK", &dirfd, &path, &how[0], &how[1], &how[2])) return NULL;
	long r = syscall(437, dirfd, path, how, sizeof how);
	return r < 0 ? fail() : PyLong_FromLong(r);
}

/* mount_id(dirfd, path) -> the number of the mount through which a file is reached; links are not followed, and an
 * empty path means the descriptor itself. */
static PyObject *mount_id(PyObject *self, PyObject *args)
{
	int dirfd;
	const char *path;
	struct statx s;
	if (!PyArg_ParseTuple(args, "iy", &dirfd, &path)) return NULL;
	if (syscall(SYS_statx, dirfd, path, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH, STATX_MNT_ID, &s)) return fail();
	return PyLong_FromUnsignedLongLong(s.stx_mnt_id);
}

/* read_directory(fd, look) -> [(name, inode, type, device)], sorted by name, without "." and "..".
 *
 * look: all but the name is what stat says, as where the type is unknown; otherwise it is what the
 * directory says, and the device is 0. */
static PyObject *read_directory(PyObject *self, PyObject *args)
{
	static char buffer[1 << 18];
	int fd, look;
	if (!PyArg_ParseTuple(args, "ip", &fd, &look)) return NULL;
	PyObject *found = PyList_New(0);
	long got;
	while (found && (got = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) != 0) {
		if (got < 0) { Py_DECREF(found); return fail(); }
		struct dirent64 *e;
		for (long at = 0; found && at < got; at += e->d_reclen) {
			e = (struct dirent64 *)(buffer + at);
			if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
			struct stat st = {.st_ino = e->d_ino, .st_mode = DTTOIF(e->d_type)};
			if ((look || e->d_type == DT_UNKNOWN) && fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW)) continue;
			PyObject *entry = Py_BuildValue("yKiK", e->d_name, (unsigned long long)st.st_ino,
							(int)IFTODT(st.st_mode), (unsigned long long)st.st_dev);
			if (!entry || PyList_Append(found, entry)) Py_CLEAR(found);
			Py_XDECREF(entry);
		}
	}
	if (found && PyList_Sort(found)) Py_CLEAR(found);
	return found;
}

/* pack_dirents(entries, position, room) -> (as many struct linux_dirent64 as fit, position after them)
 *
 * An entry is (inode, name, type); d_off is the position after it. */
static PyObject *pack_dirents(PyObject *self, PyObject *args)
{
	enum { HEAD = offsetof(struct dirent64, d_name) };
	PyObject *entries;
	Py_ssize_t position, room, used = 0;
	if (!PyArg_ParseTuple(args, "O!nn", &PyList_Type, &entries, &position, &room)) return NULL;
	PyObject *out = PyBytes_FromStringAndSize(NULL, room);
	if (!out) return NULL;
	for (; position < PyList_GET_SIZE(entries); position++) {
		unsigned long long inode;
		const char *name;
		Py_ssize_t length;
		int type;
		if (!PyArg_ParseTuple(PyList_GET_ITEM(entries, position), "Ky#i", &inode, &name, &length, &type)) {
			Py_DECREF(out);
			return NULL;
		}
		Py_ssize_t size = (HEAD + length + 1 + 7) & ~(Py_ssize_t)7;
		if (size > room - used) break;
		char *at = PyBytes_AS_STRING(out) + used;
		memset(at, 0, (size_t)size);
		struct dirent64 *e = (struct dirent64 *)at;
		e->d_ino = inode;
		e->d_off = position + 1;
		e->d_reclen = (unsigned short)size;
		e->d_type = (unsigned char)type;
		memcpy(at + HEAD, name, (size_t)length);
		used += size;
	}
	if (_PyBytes_Resize(&out, used)) return NULL;
	return Py_BuildValue("Nn", out, position);
}

/* raw_syscall(nr, a0..a5) -> result or -errno; an argument is an int or a
 * writable or readable buffer.  For calls that need no wrapper of their own. */
static PyObject *raw_syscall(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n < 1 || n > 7) { PyErr_SetString(PyExc_TypeError, "raw_syscall(nr, up to 6 arguments)"); return NULL; }
	unsigned long v[7] = {0};
	Py_buffer b[7];
	int have[7] = {0};
	for (Py_ssize_t i = 0; i < n; i++) {
		if (PyLong_Check(a[i])) v[i] = PyLong_AsUnsignedLongMask(a[i]);
		else if (!PyObject_GetBuffer(a[i], &b[i], PyBUF_SIMPLE)) { have[i] = 1; v[i] = (unsigned long)b[i].buf; }
		if (PyErr_Occurred()) {
			for (Py_ssize_t k = 0; k < i; k++) if (have[k]) PyBuffer_Release(&b[k]);
			return NULL;
		}
	}
	long r = syscall((long)v[0], v[1], v[2], v[3], v[4], v[5], v[6]);
	if (r < 0) r = -errno;
	for (Py_ssize_t i = 0; i < n; i++) if (have[i]) PyBuffer_Release(&b[i]);
	return PyLong_FromLong(r);
}

/* ---- namespaces and mounts ----------------------------------------------- */

static PyObject *py_unshare(PyObject *self, PyObject *args)
{
	int flags;
	if (!PyArg_ParseTuple(args, "i", &flags)) return NULL;
	if (unshare(flags)) return fail();
	Py_RETURN_NONE;
}

static PyObject *py_mount(PyObject *self, PyObject *args)
{
	const char *source, *target, *type, *data;
	unsigned long flags;
	if (!PyArg_ParseTuple(args, "zyzkz", &source, &target, &type, &flags, &data)) return NULL;
	if (mount(source, target, type, flags, data)) return fail();
	Py_RETURN_NONE;
}

static PyObject *py_umount(PyObject *self, PyObject *args)
{
	const char *target;
	int flags;
	if (!PyArg_ParseTuple(args, "yi", &target, &flags)) return NULL;
	if (umount2(target, flags)) return fail();
	Py_RETURN_NONE;
}

static PyObject *py_pivot_root(PyObject *self, PyObject *args)
{
	const char *new_root, *put_old;
	if (!PyArg_ParseTuple(args, "yy", &new_root, &put_old)) return NULL;
	if (syscall(SYS_pivot_root, new_root, put_old)) return fail();
	Py_RETURN_NONE;
}

static PyObject *py_prctl(PyObject *self, PyObject *args)
{
	int option;
	unsigned long v[4] = {0};
	if (!PyArg_ParseTuple(args, "i|kkkk", &option, &v[0], &v[1], &v[2], &v[3])) return NULL;
	int r = prctl(option, v[0], v[1], v[2], v[3]);
	return r < 0 ? fail() : PyLong_FromLong(r);
}

static PyObject *py_personality(PyObject *self, PyObject *args)
{
	unsigned long persona;
	if (!PyArg_ParseTuple(args, "k", &persona)) return NULL;
	int r = personality(persona);
	return r < 0 ? fail() : PyLong_FromLong(r);
}

static PyObject *set_signal(PyObject *self, PyObject *args)
{
	/* The call itself: signal(3) refuses the two signals that glibc keeps for itself, which posix_spawn(3) leaves
	 * ignored if its caller has used them. */
	int number, ignored;
	struct { void (*handler)(int); unsigned long flags; void *restorer; unsigned long mask; } action = {0};
	(void)self;
	if (!PyArg_ParseTuple(args, "ip", &number, &ignored)) return NULL;
	action.handler = ignored ? SIG_IGN : SIG_DFL;
	if (syscall(SYS_rt_sigaction, number, &action, NULL, sizeof(action.mask))) return fail();
	Py_RETURN_NONE;
}

#include "descriptors.c"
#include "search.c"
#include "directories.c"
#include "translate.c"
#include "loops.c"
#include "turns.c"
#include "relay.c"
#include "vectors.c"

#define FAST(name, fn) {name, (PyCFunction)(void (*)(void))fn, METH_FASTCALL, NULL}
static PyMethodDef methods[] = {
	FAST("read_mem", read_mem),
	FAST("write_mem", write_mem),
	FAST("read_segments", read_segments),
	FAST("total", total_of),
	FAST("gather", gather),
	FAST("scatter", scatter),
	FAST("read_cstr", read_cstr),
	FAST("take_turns", take_turns),
	FAST("still_held", still_held),
	{"relay", relay, METH_VARARGS, NULL},
	FAST("descriptors", descriptors),
	FAST("restricted", restricted),
	{"forget_ways", forget_ways, METH_NOARGS, NULL},
	FAST("wait_event", wait_event),
	FAST("serve", serve),
	FAST("decide", decide),
	FAST("charge", charge),
	{"alike", alike, METH_O, NULL},
	{"know_clock", know_clock, METH_VARARGS, NULL},
	FAST("tell_path", tell_path),
	FAST("tell_fd", tell_fd),
	{"know_files", know_files, METH_VARARGS, NULL},
	{"know_calls", know_calls, METH_VARARGS, NULL},
	FAST("await_call", await_call),
	FAST("reply", reply),
	FAST("add_fd", add_fd),
	FAST("ptrace_request", ptrace_request),
	FAST("stat_at", stat_at),
	FAST("stat_fd", stat_fd),
	FAST("open_file", open_file),
	FAST("link_text", link_text),
	FAST("borrow_fd", borrow_fd),
	FAST("borrow_blocking", borrow_blocking),
	FAST("borrow_idle", borrow_idle),
	FAST("takes_at_once", takes_at_once),
	FAST("raw_syscall", raw_syscall),
	{"prepare_events", prepare_events, METH_NOARGS, NULL},
	{"notif_alive", notif_alive, METH_VARARGS, NULL},
	{"trap_like_guest", trap_like_guest, METH_VARARGS, NULL},
	{"guest_code", guest_code, METH_NOARGS, NULL},
	{"reached", reached, METH_VARARGS, NULL},
	{"sync_wake_up", sync_wake_up, METH_VARARGS, NULL},
	{"filter_and_exec", filter_and_exec, METH_VARARGS, NULL},
	{"seize", seize, METH_VARARGS, NULL},
	{"event_message", event_message, METH_VARARGS, NULL},
	{"get_siginfo", get_siginfo, METH_VARARGS, NULL},
	{"signals_queued", signals_queued, METH_VARARGS, NULL},
	{"set_siginfo", set_siginfo, METH_VARARGS, NULL},
	{"get_sigmask", get_sigmask, METH_VARARGS, NULL},
	{"set_sigmask", set_sigmask, METH_VARARGS, NULL},
	{"get_regs", get_regs, METH_VARARGS, NULL},
	{"get_fpregs", get_fpregs, METH_VARARGS, NULL},
	{"set_regs", set_regs, METH_VARARGS, NULL},
	{"divert", divert, METH_VARARGS, NULL},
	{"single_step", single_step, METH_VARARGS, NULL},
	{"step_many", step_many, METH_VARARGS, NULL},
	{"survey", survey, METH_VARARGS, NULL},
	{"wait_tid", wait_tid, METH_VARARGS, NULL},
	{"queue_signal", queue_signal, METH_VARARGS, NULL},
	{"pidfd_getfd", py_pidfd_getfd, METH_VARARGS, NULL},
	{"openat2", py_openat2, METH_VARARGS, NULL},
	{"mount_id", mount_id, METH_VARARGS, NULL},
	{"read_directory", read_directory, METH_VARARGS, NULL},
	{"pack_dirents", pack_dirents, METH_VARARGS, NULL},
	{"make_directories", make_directories, METH_VARARGS, NULL},
	{"make_tree", make_tree, METH_VARARGS, NULL},
	{"check_directories", check_directories, METH_VARARGS, NULL},
	{"related_directories", related_directories, METH_VARARGS, NULL},
	{"make_copies", make_copies, METH_VARARGS, NULL},
	{"jumps_to", jumps_to, METH_VARARGS, NULL},
	{"count_loops", count_loops, METH_VARARGS, NULL},
	{"write_places", write_places, METH_VARARGS, NULL},
	{"write_code", write_code, METH_VARARGS, NULL},
	{"exchange", exchange, METH_VARARGS, NULL},
	{"unshare", py_unshare, METH_VARARGS, NULL},
	{"mount", py_mount, METH_VARARGS, NULL},
	{"umount", py_umount, METH_VARARGS, NULL},
	{"pivot_root", py_pivot_root, METH_VARARGS, NULL},
	{"prctl", py_prctl, METH_VARARGS, NULL},
	{"personality", py_personality, METH_VARARGS, NULL},
	{"set_signal", set_signal, METH_VARARGS, NULL},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
	PyObject *made = PyType_Ready(&status_type) || PyType_Ready(&page_type) ? NULL : PyModule_Create(&module);
	if (made && PyModule_AddObjectRef(made, "ClockPage", (PyObject *)&page_type)) Py_CLEAR(made);
	return made;
}
