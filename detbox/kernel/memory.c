/* The guest's memory: read, written, and strings read from it. */

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
