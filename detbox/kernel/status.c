/* stat(2), open(2) and readlink(2) for calls that programs make by the thousand, mostly to be told that a file is absent, or no
 * link: an exception takes longer than the call.
 */

typedef struct {
	PyObject_HEAD
	struct stat st;
} Status;

#define FIELD(name, type) {#name, type, offsetof(Status, st) + offsetof(struct stat, name), READONLY, NULL}

static PyMemberDef status_members[] = {
	FIELD(st_dev, T_ULONG), FIELD(st_ino, T_ULONG), FIELD(st_nlink, T_ULONG), FIELD(st_mode, T_UINT),
	FIELD(st_uid, T_UINT), FIELD(st_gid, T_UINT), FIELD(st_rdev, T_ULONG), FIELD(st_size, T_LONG),
	FIELD(st_blksize, T_LONG), FIELD(st_blocks, T_LONG), {NULL, 0, 0, 0, NULL},
};

static PyObject *nanoseconds(const struct timespec *t)
{
	return PyLong_FromLongLong((long long)t->tv_sec * 1000000000 + t->tv_nsec);
}

static PyObject *status_mtime(PyObject *self, void *unused) { return nanoseconds(&((Status *)self)->st.st_mtim); }
static PyObject *status_ctime(PyObject *self, void *unused) { return nanoseconds(&((Status *)self)->st.st_ctim); }

static PyGetSetDef status_times[] = {
	{"st_mtime_ns", status_mtime, NULL, NULL, NULL},
	{"st_ctime_ns", status_ctime, NULL, NULL, NULL},
	{NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject status_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "detbox.kernel._native.Status",
	.tp_basicsize = sizeof(Status),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.tp_members = status_members,
	.tp_getset = status_times,
};

static PyObject *new_status(const struct stat *st)
{
	Status *made = PyObject_New(Status, &status_type);
	if (made) made->st = *st;
	return (PyObject *)made;
}

/* The arguments (dir_fd, path): None for the supervisor's own working directory.  NULL with an exception; a path with a
 * NUL is an error of ours. */
static const char *place_of_path(PyObject *const *a, int *dir_fd)
{
	char *path;
	*dir_fd = a[0] == Py_None ? AT_FDCWD : (int)PyLong_AsLong(a[0]);
	if (PyErr_Occurred() || PyBytes_AsStringAndSize(a[1], &path, NULL)) return NULL;
	return path;
}

/* stat_at(dir_fd, path, follow) -> what stat(2) tells, or -errno. */
static PyObject *stat_at(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	struct stat st;
	int dir_fd;
	if (n != 3) { PyErr_SetString(PyExc_TypeError, "stat_at(dir_fd, path, follow)"); return NULL; }
	const char *path = place_of_path(a, &dir_fd);
	if (!path) return NULL;
	if (fstatat(dir_fd, path, &st, PyObject_IsTrue(a[2]) ? 0 : AT_SYMLINK_NOFOLLOW)) return PyLong_FromLong(-errno);
	return new_status(&st);
}

/* stat_fd(tgid, fd) -> what fstat(2) tells of a process's descriptor, or -errno.  A third of what it takes by way of /proc. */
static PyObject *stat_fd(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	struct stat st;
	if (n != 2) { PyErr_SetString(PyExc_TypeError, "stat_fd(tgid, fd)"); return NULL; }
	long tgid = PyLong_AsLong(a[0]), fd = PyLong_AsLong(a[1]);
	if (PyErr_Occurred()) return NULL;
	int mine = borrow((pid_t)tgid, (int)fd);
	if (mine < 0) return PyLong_FromLong(-errno);
	int err = fstat(mine, &st) ? errno : 0;
	close(mine);
	return err ? PyLong_FromLong(-err) : new_status(&st);
}

/* open_file(dir_fd, path, flags, kept) -> (a descriptor, what fstat(2) tells of it), or -errno.  A regular file that everybody may
 * read gets the status flags `kept`: it was opened with O_NONBLOCK, since it could have been something else. */
static PyObject *open_file(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	struct stat st;
	int dir_fd;
	if (n != 4) { PyErr_SetString(PyExc_TypeError, "open_file(dir_fd, path, flags, kept)"); return NULL; }
	const char *path = place_of_path(a, &dir_fd);
	long flags = PyLong_AsLong(a[2]), status_flags = PyLong_AsLong(a[3]);
	if (!path || PyErr_Occurred()) return NULL;
	int fd = openat(dir_fd, path, (int)flags, 0);
	if (fd < 0) return PyLong_FromLong(-errno);
	int failed = fstat(fd, &st);
	if (!failed && flags & O_NONBLOCK && !(status_flags & O_NONBLOCK) && S_ISREG(st.st_mode) && st.st_mode & S_IROTH)
		failed = fcntl(fd, F_SETFL, (int)status_flags);
	PyObject *status = failed ? fail() : new_status(&st), *found = status ? Py_BuildValue("iN", fd, status) : NULL;
	if (!found) close(fd);
	return found;
}

/* link_text(dir_fd, path) -> the text of a symbolic link, or -errno. */
static PyObject *link_text(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	char text[PATH_LIMIT];
	int dir_fd;
	if (n != 2) { PyErr_SetString(PyExc_TypeError, "link_text(dir_fd, path)"); return NULL; }
	const char *path = place_of_path(a, &dir_fd);
	if (!path) return NULL;
	ssize_t size = readlinkat(dir_fd, path, text, sizeof text);
	return size < 0 ? PyLong_FromLong(-errno) : PyBytes_FromStringAndSize(text, size);
}
