/* All descriptors of a process at once: to look at each from Python costs as much as
 * a small program's own calls, and this is done for every program of an observed run.
 */

/* One that another thread has closed meanwhile: nothing. */
static PyObject *gone(void) { return errno == ENOENT ? Py_NewRef(Py_None) : PyErr_SetFromErrno(PyExc_OSError); }

static PyObject *descriptor(int proc, long tid, int links, const char *name)
{
	char path[64], text[256];
	struct stat st;
	long long position;
	unsigned int flags;

	if (fstatat(links, name, &st, 0) < 0) return gone();
	snprintf(path, sizeof path, "%ld/fdinfo/%.20s", tid, name);
	int fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) return gone();
	ssize_t size = read(fd, text, sizeof text - 1);
	close(fd);
	text[size > 0 ? size : 0] = 0;
	/* fs/proc/fd.c, seq_show() */
	if (sscanf(text, "pos: %lld flags: %o", &position, &flags) != 2) {
		errno = EIO;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	return Py_BuildValue("(iKKIKIL)", atoi(name), (unsigned long long)st.st_dev, (unsigned long long)st.st_ino,
			     (unsigned int)st.st_mode, (unsigned long long)st.st_rdev, flags, position);
}

static PyObject *descriptors(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 2) { PyErr_SetString(PyExc_TypeError, "descriptors(proc, tid)"); return NULL; }
	int proc = PyLong_AsLong(a[0]);
	long tid = PyLong_AsLong(a[1]);
	if (PyErr_Occurred()) return NULL;

	char path[64];
	snprintf(path, sizeof path, "%ld/fd", tid);
	int fd = openat(proc, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *links = fd < 0 ? NULL : fdopendir(fd);
	if (!links) {
		PyErr_SetFromErrno(PyExc_OSError);
		if (fd >= 0) close(fd);
		return NULL;
	}
	PyObject *found = PyList_New(0);
	struct dirent *entry;
	while (found && (entry = readdir(links))) {
		if (entry->d_name[0] == '.') continue;
		PyObject *one = descriptor(proc, tid, fd, entry->d_name);
		if (!one || (one != Py_None && PyList_Append(found, one) < 0)) Py_CLEAR(found);
		Py_XDECREF(one);
	}
	closedir(links);
	return found;
}
