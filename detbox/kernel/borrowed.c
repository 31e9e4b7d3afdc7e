/* Descriptors of guest processes, borrowed, and whether a write to one would wait. */

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

static PyObject *py_pidfd_getfd(PyObject *self, PyObject *args)
{
	int pidfd, fd;
	if (!PyArg_ParseTuple(args, "ii", &pidfd, &fd)) return NULL;
	int r = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	return r < 0 ? fail() : PyLong_FromLong(r);
}
