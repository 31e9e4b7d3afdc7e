/* What a process has around it: namespaces, mounts, its own settings. */

static PyObject *py_unshare(PyObject *self, PyObject *args)
{
	int flags;
	if (!PyArg_ParseTuple(args, "i", &flags)) return NULL;
	if (unshare(flags)) return fail();
	Py_RETURN_NONE;
}

static PyObject *py_mount(PyObject *self, PyObject *args)
{
	const char *source, *target, *type, *data;
	unsigned long flags;
	if (!PyArg_ParseTuple(args, "zyzkz", &source, &target, &type, &flags, &data)) return NULL;
	if (mount(source, target, type, flags, data)) return fail();
	Py_RETURN_NONE;
}

static PyObject *py_umount(PyObject *self, PyObject *args)
{
	const char *target;
	int flags;
	if (!PyArg_ParseTuple(args, "yi", &target, &flags)) return NULL;
	if (umount2(target, flags)) return fail();
	Py_RETURN_NONE;
}

static PyObject *py_pivot_root(PyObject *self, PyObject *args)
{
	const char *new_root, *put_old;
	if (!PyArg_ParseTuple(args, "yy", &new_root, &put_old)) return NULL;
	if (syscall(SYS_pivot_root, new_root, put_old)) return fail();
	Py_RETURN_NONE;
}

static PyObject *py_prctl(PyObject *self, PyObject *args)
{
	int option;
	unsigned long v[4] = {0};
	if (!PyArg_ParseTuple(args, "i|kkkk", &option, &v[0], &v[1], &v[2], &v[3])) return NULL;
	int r = prctl(option, v[0], v[1], v[2], v[3]);
	return r < 0 ? fail() : PyLong_FromLong(r);
}

static PyObject *py_personality(PyObject *self, PyObject *args)
{
	unsigned long persona;
	if (!PyArg_ParseTuple(args, "k", &persona)) return NULL;
	int r = personality(persona);
	return r < 0 ? fail() : PyLong_FromLong(r);
}

static PyObject *set_signal(PyObject *self, PyObject *args)
{
	/* The call itself: signal(3) refuses the two signals that glibc keeps for itself, which posix_spawn(3) leaves
	 * ignored if its caller has used them. */
	int number, ignored;
	struct { void (*handler)(int); unsigned long flags; void *restorer; unsigned long mask; } action = {0};
	(void)self;
	if (!PyArg_ParseTuple(args, "ip", &number, &ignored)) return NULL;
	action.handler = ignored ? SIG_IGN : SIG_DFL;
	if (syscall(SYS_rt_sigaction, number, &action, NULL, sizeof(action.mask))) return fail();
	Py_RETURN_NONE;
}
