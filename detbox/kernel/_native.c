/* Thin wrappers for kernel interfaces that Python's standard library lacks, and the few parts of detbox that would be too slow
 * in Python.  Each subject has its file; all are one translation unit, so that nothing in them is visible elsewhere.
 *
 * Rules for wrappers: one kernel interface per function; no policy; no state
 * that outlives a call, except what is known of events (events.c) and of the supervisor's classes (calls.c, which is the
 * loop's inner part), and what it takes longer to ask for again (`last_cstr` and `last_regs` in memory.c, `kept` in borrowed.c);
 * a failure raises OSError, unless the comment of the function says that it returns -errno.
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

#include "memory.c"
#include "exchange.c"
#include "events.c"
#include "notifications.c"
#include "slots.c"
#include "clocks.c"
#include "calls.c"
#include "own_traps.c"
#include "branches.c"
#include "ptrace.c"
#include "steps.c"
#include "borrowed.c"
#include "status.c"
#include "shown.c"
#include "files.c"
#include "surroundings.c"
#include "descriptors.c"
#include "search.c"
#include "directories.c"
#include "forms.c"
#include "translate.c"
#include "batch.c"
#include "loops.c"
#include "blocks.c"
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
	FAST("tell", tell),
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
