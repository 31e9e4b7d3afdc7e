/* Segments of the guest's memory ("struct iovec"), of which a call may have a thousand: read, added up, gathered and
 * filled in one go. */

#define SEGMENTS_AT_ONCE 1024 /* UIO_MAXIOV */

/* read_segments(tid, addr, count) -> [(address, length)] */
static PyObject *read_segments(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	struct iovec given[SEGMENTS_AT_ONCE];
	if (n != 3) { PyErr_SetString(PyExc_TypeError, "read_segments(tid, addr, count)"); return NULL; }
	pid_t tid = (pid_t)PyLong_AsLong(a[0]);
	unsigned long addr = PyLong_AsUnsignedLongMask(a[1]);
	Py_ssize_t count = PyLong_AsSsize_t(a[2]);
	if (PyErr_Occurred()) return NULL;
	if (count < 0 || count > SEGMENTS_AT_ONCE) return fail_with(EINVAL);
	struct iovec l = {given, (size_t)count * sizeof *given}, r = {(void *)addr, (size_t)count * sizeof *given};
	ssize_t got = count ? process_vm_readv(tid, &l, 1, &r, 1, 0) : 0;
	if (got != (ssize_t)l.iov_len) return fail_with(got < 0 && errno != EFAULT ? errno : EFAULT);
	for (Py_ssize_t i = 0; i < count; i++)
		if ((ssize_t)given[i].iov_len < 0) return fail_with(EINVAL);
	PyObject *segments = PyList_New(count);
	for (Py_ssize_t i = 0; segments && i < count; i++) {
		PyObject *pair = Py_BuildValue("(Kn)", (unsigned long long)given[i].iov_base, (Py_ssize_t)given[i].iov_len);
		if (!pair) Py_CLEAR(segments);
		else PyList_SET_ITEM(segments, i, pair);
	}
	return segments;
}

/* A segment of a list of them; -1 with an exception. */
static int segment(PyObject *segments, Py_ssize_t i, struct iovec *found)
{
	PyObject *pair = PyList_GET_ITEM(segments, i);
	if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) {
		PyErr_SetString(PyExc_TypeError, "a segment is an address and a length");
		return -1;
	}
	found->iov_base = (void *)PyLong_AsUnsignedLongMask(PyTuple_GET_ITEM(pair, 0));
	found->iov_len = PyLong_AsUnsignedLongMask(PyTuple_GET_ITEM(pair, 1));
	return PyErr_Occurred() ? -1 : 0;
}

/* total(segments, most) -> bytes in all of them, or the most that it may be */
static PyObject *total_of(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 2 || !PyList_Check(a[0])) { PyErr_SetString(PyExc_TypeError, "total(segments, most)"); return NULL; }
	size_t most = PyLong_AsSize_t(a[1]), sum = 0;
	struct iovec each;
	for (Py_ssize_t i = 0; i < PyList_GET_SIZE(a[0]); i++) {
		if (segment(a[0], i, &each)) return NULL;
		sum = each.iov_len > most - sum ? most : sum + each.iov_len;
	}
	return PyErr_Occurred() ? NULL : PyLong_FromSize_t(sum);
}

/* Move what is at `data` from or to the segments' memory behind the first `skip` bytes: all of it, or as far as they go.
 * How much it was, or -1 with errno. */
static ssize_t move_segments(pid_t tid, PyObject *segments, size_t skip, char *data, size_t length, int in)
{
	struct iovec remote[SEGMENTS_AT_ONCE];
	size_t done = 0;
	for (Py_ssize_t next = 0; next < PyList_GET_SIZE(segments) && done < length;) {
		unsigned long count = 0;
		size_t wanted = 0;
		for (; next < PyList_GET_SIZE(segments) && count < SEGMENTS_AT_ONCE && done + wanted < length; next++) {
			struct iovec each;
			if (segment(segments, next, &each)) return -1;
			if (skip >= each.iov_len) { skip -= each.iov_len; continue; }
			each.iov_base = (char *)each.iov_base + skip;
			each.iov_len -= skip;
			skip = 0;
			if (each.iov_len > length - done - wanted) each.iov_len = length - done - wanted;
			wanted += each.iov_len;
			remote[count++] = each;
		}
		struct iovec local = {data + done, wanted};
		ssize_t moved = !wanted ? 0 : in ? process_vm_writev(tid, &local, 1, remote, count, 0)
						 : process_vm_readv(tid, &local, 1, remote, count, 0);
		if (moved != (ssize_t)wanted) {
			fail_with(moved < 0 && errno != EFAULT ? errno : EFAULT);
			return -1;
		}
		done += wanted;
	}
	return (ssize_t)done;
}

/* gather(tid, segments, skip, limit) -> at most so many bytes of their memory behind the first ones */
static PyObject *gather(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 4 || !PyList_Check(a[1])) { PyErr_SetString(PyExc_TypeError, "gather(tid, segments, skip, limit)"); return NULL; }
	pid_t tid = (pid_t)PyLong_AsLong(a[0]);
	size_t skip = PyLong_AsSize_t(a[2]), limit = PyLong_AsSize_t(a[3]), there = 0;
	struct iovec each;
	if (PyErr_Occurred()) return NULL;
	for (Py_ssize_t i = 0; i < PyList_GET_SIZE(a[1]) && there < skip + limit; i++) {
		if (segment(a[1], i, &each)) return NULL;
		there = each.iov_len > skip + limit - there ? skip + limit : there + each.iov_len;
	}
	PyObject *out = PyBytes_FromStringAndSize(NULL, there > skip ? (Py_ssize_t)(there - skip) : 0);
	if (out && move_segments(tid, a[1], skip, PyBytes_AS_STRING(out), (size_t)PyBytes_GET_SIZE(out), 0) < 0) Py_CLEAR(out);
	return out;
}

/* scatter(tid, segments, skip, data): write it into their memory behind the first bytes, as far as it goes */
static PyObject *scatter(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	Py_buffer b;
	if (n != 4 || !PyList_Check(a[1])) { PyErr_SetString(PyExc_TypeError, "scatter(tid, segments, skip, data)"); return NULL; }
	pid_t tid = (pid_t)PyLong_AsLong(a[0]);
	size_t skip = PyLong_AsSize_t(a[2]);
	if (PyErr_Occurred() || PyObject_GetBuffer(a[3], &b, PyBUF_SIMPLE)) return NULL;
	forget_cstr();
	ssize_t moved = move_segments(tid, a[1], skip, b.buf, (size_t)b.len, 1);
	PyBuffer_Release(&b);
	if (moved < 0) return NULL;
	Py_RETURN_NONE;
}
