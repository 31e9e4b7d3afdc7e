/* Requests of ptrace(2), and waiting for what comes of them. */

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
