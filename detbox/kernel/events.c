/* What a guest thread does next: it makes a call that the filter traps (a notification), or it stops or ends (SIGCHLD).
 *
 * ppoll() waits for both, with SIGCHLD let in while it sleeps and at no other time.  Where calls come thick and fast, that
 * is a tenth of what each of them costs.  After some in a row the next ones are *received* without it: SIGCHLD is let in
 * all the time, and a timer's signal, too, in place of ppoll()'s timeout.  Both leave a word in `told`, which is looked at just before
 * the request that may sleep.  A signal that comes in between must not be lost, so its handler sees to it that the request is not
 * made: it moves the instruction pointer out of the few instructions from the look to the request (a restartable
 * sequence).  The timer ends that way of waiting, so that everything else is looked at now and then.
 *
 * Handlers have SA_RESTART, since they may come at any system call then.
 */
#include <time.h>

/* SIGCHLD does not queue: one of them may stand for several stops, so after a
 * stop has been taken, wait_event() looks for another before it sleeps. */
static int more_stops;

enum { STOPPED = 1, TIME_OVER = 2 };
static int told; /* what signals have told since it was last looked at */

#define RECEIVE_AFTER 32 /* notifications that ppoll() has found before others are received without it */
static int receiving, in_a_row;
static timer_t timer;

static sigset_t both;      /* SIGCHLD and the timer's signal */
static sigset_t open_mask; /* what is blocked while ppoll() sleeps */

/* long receive_unless(int listener, unsigned long request, void *notification, int *told): ioctl(2), its result or
 * -errno; -EINTR if something has been told. */
long receive_unless(int, unsigned long, void *, int *);
extern const char receive_begin[], receive_end[], receive_told[];
__asm__(".pushsection .text\n"
	".globl receive_unless, receive_begin, receive_end, receive_told\n"
	".hidden receive_unless, receive_begin, receive_end, receive_told\n"
	".type receive_unless, @function\n"
	"receive_unless:\n"
	"	movq %rcx, %r8\n"
	"	movl $16, %eax\n" /* SYS_ioctl */
	"receive_begin:\n"
	"	cmpl $0, (%r8)\n"
	"	jne receive_told\n"
	"	syscall\n"
	"receive_end:\n"
	"	ret\n"
	"receive_told:\n"
	"	movq $-4, %rax\n" /* -EINTR */
	"	ret\n"
	".size receive_unless, . - receive_unless\n"
	".popsection\n");

static void on_told(int sig, siginfo_t *info, void *context)
{
	greg_t *ip = &((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
	(void)info;
	__atomic_fetch_or(&told, sig == SIGCHLD ? STOPPED : TIME_OVER, __ATOMIC_SEQ_CST);
	/* A request that was interrupted, to be made again, is in there, too. */
	if (*ip >= (greg_t)receive_begin && *ip < (greg_t)receive_end) *ip = (greg_t)receive_told;
}

static PyObject *take_stop(void)
{
	int status;
	pid_t tid = waitpid(-1, &status, WNOHANG | __WALL);
	more_stops = tid > 0;
	return tid > 0 ? Py_BuildValue("ii", tid, status) : NULL;
}

/* Prepares this thread for wait_event(): SIGCHLD stays blocked except while
 * wait_event() waits, so that no stop of a tracee can be missed. */
static PyObject *prepare_events(PyObject *self, PyObject *args)
{
	struct sigaction sa;
	struct sigevent to_us;
	memset(&sa, 0, sizeof sa);
	sa.sa_sigaction = on_told;
	sa.sa_flags = SA_SIGINFO | SA_RESTART;
	sigemptyset(&both);
	sigaddset(&both, SIGCHLD);
	sigaddset(&both, SIGALRM);
	memset(&to_us, 0, sizeof to_us);
	to_us.sigev_notify = SIGEV_THREAD_ID;
	to_us.sigev_signo = SIGALRM;
	to_us._sigev_un._tid = (int)syscall(SYS_gettid);
	if (sigaction(SIGCHLD, &sa, NULL) || sigaction(SIGALRM, &sa, NULL) ||
	    sigprocmask(SIG_BLOCK, &both, &open_mask) || timer_create(CLOCK_MONOTONIC, &to_us, &timer))
		return fail();
	sigaddset(&open_mask, SIGALRM);
	sigdelset(&open_mask, SIGCHLD);
	Py_RETURN_NONE;
}

/* The next notifications, for some milliseconds, are received without ppoll(). */
static void begin_receiving(long ms)
{
	struct itimerspec once = {.it_value = {ms / 1000, ms % 1000 * 1000000}};
	receiving = 1;
	timer_settime(timer, 0, &once, NULL);
	sigprocmask(SIG_UNBLOCK, &both, NULL);
}

static void end_receiving(void)
{
	if (!receiving) return;
	struct itimerspec never = {.it_value = {0, 0}};
	receiving = in_a_row = 0;
	sigprocmask(SIG_BLOCK, &both, NULL);
	timer_settime(timer, 0, &never, NULL);
}

/* The six registers of a call. */
static PyObject *arguments(const struct seccomp_notif *q)
{
	PyObject *args = PyTuple_New(6);
	for (int i = 0; args && i < 6; i++) PyTuple_SET_ITEM(args, i, PyLong_FromUnsignedLongLong(q->data.args[i]));
	return args;
}

/* (id, tid, nr, args, ip) */
static PyObject *notification(const struct seccomp_notif *q)
{
	PyObject *args = arguments(q);
	if (!args) return NULL;
	PyObject *out = PyTuple_New(5);
	if (!out) { Py_DECREF(args); return NULL; }
	PyTuple_SET_ITEM(out, 0, PyLong_FromUnsignedLongLong(q->id));
	PyTuple_SET_ITEM(out, 1, PyLong_FromLong((long)q->pid));
	PyTuple_SET_ITEM(out, 2, PyLong_FromLong(q->data.nr));
	PyTuple_SET_ITEM(out, 3, args);
	PyTuple_SET_ITEM(out, 4, PyLong_FromUnsignedLongLong(q->data.instruction_pointer));
	return out;
}

/* A notification that is there: NULL and what it is (`called`), or as wait_event() has it. */
static PyObject *receive(int listener, struct seccomp_notif *q, int *called)
{
	memset(q, 0, sizeof *q);
	if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, q)) {
		if (errno == ENOENT || errno == EINTR) Py_RETURN_NONE; /* the thread was killed meanwhile */
		return fail();
	}
	*called = 1;
	return NULL;
}

/* The next event, as next_event() has it, for as long as notifications are received without ppoll(); NULL without an
 * exception or a call: they are not any more. */
static PyObject *receive_next(int listener, struct seccomp_notif *q, int *called)
{
	while (receiving) {
		memset(q, 0, sizeof *q);
		long r = receive_unless(listener, SECCOMP_IOCTL_NOTIF_RECV, q, &told);
		if (!r) {
			*called = 1;
			return NULL;
		}
		if (r == -ENOENT) { /* the thread was killed meanwhile; or no thread is left, which ppoll() tells */
			end_receiving();
			continue;
		}
		if (r != -EINTR) return fail_with((int)-r);
		int what = __atomic_exchange_n(&told, 0, __ATOMIC_SEQ_CST);
		if (what & TIME_OVER) end_receiving();
		PyObject *stop = what & STOPPED ? take_stop() : NULL;
		if (stop || PyErr_Occurred()) return stop;
	}
	return NULL;
}

/* What happened next: NULL and a notification (`called`), or as wait_event() has it. */
static PyObject *next_event(int listener, int control, long ms, struct seccomp_notif *q, int *called)
{
	struct timespec ts = {ms / 1000, ms % 1000 * 1000000};
	*called = 0;
	forget_thread();
	for (;;) {
		PyObject *next;
		if (more_stops && ((next = take_stop()) || PyErr_Occurred())) return next;
		if (receiving && ((next = receive_next(listener, q, called)) || *called || PyErr_Occurred())) return next;
		if (__atomic_exchange_n(&told, 0, __ATOMIC_SEQ_CST) & STOPPED && ((next = take_stop()) || PyErr_Occurred()))
			return next;
		struct pollfd p[2] = {{listener, POLLIN, 0}, {control, POLLIN, 0}};
		int r;
		Py_BEGIN_ALLOW_THREADS
		r = ppoll(p, control >= 0 ? 2 : 1, ms >= 0 ? &ts : NULL, &open_mask);
		Py_END_ALLOW_THREADS
		int err = errno;
		if (r < 0 && err == EINTR) {
			if (PyErr_CheckSignals()) return NULL;
			continue;
		}
		if (r < 0) return fail_with(err);
		if (r == 0) {
			in_a_row = 0;
			Py_RETURN_NONE;
		}
		if (p[0].revents & POLLIN) {
			if (++in_a_row >= RECEIVE_AFTER && ms > 0) begin_receiving(ms);
			return receive(listener, q, called);
		}
		/* A stop is looked for before the hang-up is believed. */
		if ((next = take_stop()) || PyErr_Occurred()) return next;
		if (control >= 0 && p[1].revents) Py_RETURN_TRUE;
		Py_RETURN_FALSE;
	}
}

/* wait_event(listener, control, timeout_ms) -> what happened next:
 *   (id, tid, nr, args, ip)  a notification
 *   (tid, status)            a ptrace stop or an exit of a child
 *   True                     control has input or was closed
 *   False                    the listener has no more users
 *   None                     the time is over */
static PyObject *wait_event(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 3) { PyErr_SetString(PyExc_TypeError, "wait_event(listener, control, timeout_ms)"); return NULL; }
	int listener = (int)PyLong_AsLong(a[0]), control = (int)PyLong_AsLong(a[1]), called;
	long ms = PyLong_AsLong(a[2]);
	struct seccomp_notif q;
	if (PyErr_Occurred()) return NULL;
	PyObject *event = next_event(listener, control, ms, &q, &called);
	return called ? notification(&q) : event;
}

/* await_call(listener, tid, timeout_ms) -> what comes next of one thread: a notification, as wait_event()
 * has it, or the wait status of a stop.  None if the time is over.
 *
 * It is waited for in slices: where the whole machine, or this process, stands still for a long time, that ends one
 * of them at most, and the thread gets its time afterwards. */
#define SLICE_MS 1000
static PyObject *await_call(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 3) { PyErr_SetString(PyExc_TypeError, "await_call(listener, tid, timeout_ms)"); return NULL; }
	forget_thread();
	int listener = (int)PyLong_AsLong(a[0]), tid = (int)PyLong_AsLong(a[1]), status, called = 0;
	long ms = PyLong_AsLong(a[2]);
	struct seccomp_notif q;
	PyObject *gone;
	if (PyErr_Occurred()) return NULL;
	for (;;) {
		struct pollfd p = {listener, POLLIN, 0};
		long slice = ms < SLICE_MS ? ms : SLICE_MS;
		struct timespec ts = {slice / 1000, slice % 1000 * 1000000};
		int r = 0, look = 1;
		if (receiving && listener >= 0) {
			memset(&q, 0, sizeof q);
			long failed = receive_unless(listener, SECCOMP_IOCTL_NOTIF_RECV, &q, &told);
			if (!failed) return notification(&q);
			if (failed != -EINTR && failed != -ENOENT) return fail_with((int)-failed);
			if (failed == -ENOENT || __atomic_exchange_n(&told, 0, __ATOMIC_SEQ_CST) & TIME_OVER) end_receiving();
		} else {
			end_receiving();
			/* What SIGCHLD has told may be about this thread, and about another one that wait_event() has to hear of. */
			look = __atomic_exchange_n(&told, 0, __ATOMIC_SEQ_CST) & STOPPED;
			r = look ? 0 : ppoll(&p, 1, &ts, &open_mask);
			if (r < 0 && errno != EINTR) return fail();
			if (r > 0 && p.revents & POLLIN) {
				gone = receive(listener, &q, &called);
				return called ? notification(&q) : gone;
			}
		}
		more_stops = 1;
		pid_t got = waitpid(tid, &status, WNOHANG | __WALL);
		if (got < 0) return fail();
		if (got > 0) return PyLong_FromLong(status);
		if (r == 0 && !look && (ms -= slice) <= 0) Py_RETURN_NONE;
	}
}
