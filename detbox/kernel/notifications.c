/* Notifications of the seccomp filter: their answers, and the filter's installation. */

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
