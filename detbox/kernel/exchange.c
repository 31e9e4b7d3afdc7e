/* Changes of a stopped thread's code, each of which expects what is there: all are read in one call, and the file of its
 * memory is opened once.
 */

struct edit { uint64_t at; const char *old, *new; Py_ssize_t old_size, new_size; };

/* What there is at the places of edits, one behind the other: whether all could be read in the ordinary way. */
static int read_places(pid_t tid, const struct edit *every, Py_ssize_t count, char *into, size_t size)
{
	struct iovec places[PLACES_AT_ONCE], all = {into, size};
	if (!size) return 1;
	if (count > PLACES_AT_ONCE) return 0;
	for (Py_ssize_t i = 0; i < count; i++)
		places[i] = (struct iovec){(void *)(uintptr_t)every[i].at, (size_t)every[i].old_size};
	return process_vm_readv(tid, &all, 1, places, (unsigned long)count, 0) == (ssize_t)size;
}

/* 1: all edits have been made; 0: the memory is not what one of them expects; -1 with errno. */
static int make_edits(pid_t tid, const struct edit *every, Py_ssize_t count, char *found, size_t size)
{
	int fd = open_memory(tid), result = 1;
	if (fd < 0) return -1;
	int whole = read_places(tid, every, count, found, size);
	for (Py_ssize_t i = 0; result > 0 && i < count; i++) {
		size_t length = (size_t)every[i].old_size;
		/* What may only be executed can be read by the file alone. */
		int there = whole || pread(fd, found, length, (off_t)every[i].at) == (ssize_t)length;
		result = there && !memcmp(found, every[i].old, length);
		found += length;
	}
	for (Py_ssize_t i = 0; result > 0 && i < count; i++)
		if (pwrite(fd, every[i].new, (size_t)every[i].new_size, (off_t)every[i].at) != every[i].new_size) result = -1;
	int err = errno;
	close(fd);
	errno = err;
	return result;
}

/* exchange(tid, [(address, old, new)], base) -> whether a stopped thread's memory has `old` at each address plus base:
 * then there is `new` now, else nothing has changed.  `old` may be empty.  Private copies of read-only pages are made
 * (FOLL_FORCE). */
static PyObject *exchange(PyObject *self, PyObject *args)
{
	PyObject *edits, *result = NULL;
	unsigned long long base;
	int tid;
	(void)self;
	if (!PyArg_ParseTuple(args, "iO!K", &tid, &PyList_Type, &edits, &base)) return NULL;
	Py_ssize_t count = PyList_GET_SIZE(edits), i;
	size_t size = 0;
	struct edit *every = PyMem_Calloc((size_t)count + 1, sizeof *every);
	char *found = NULL;
	if (!every) return PyErr_NoMemory();
	for (i = 0; i < count; i++) {
		struct edit *e = &every[i];
		unsigned long long at;
		if (!PyArg_ParseTuple(PyList_GET_ITEM(edits, i), "Ky#y#", &at, &e->old, &e->old_size, &e->new, &e->new_size)) break;
		e->at = base + at;
		size += (size_t)e->old_size;
	}
	if (i == count) {
		found = PyMem_Malloc(size + 1);
		forget_cstr();
		int done = found ? make_edits(tid, every, count, found, size) : 0;
		result = !found ? PyErr_NoMemory() : done < 0 ? fail() : PyBool_FromLong(done);
	}
	PyMem_Free(found);
	PyMem_Free(every);
	return result;
}
