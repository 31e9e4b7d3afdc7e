/* Attributes of the supervisor's classes that are slots, as C reads and writes them.  Where these lie in their objects is found
 * once, by know_clock(), know_calls() and know_files().
 */

enum {
	NOW, CLOCK_TIMERS,
};
enum {
	PARENT, NS, LOOKS, LOOKED, ASKED, WORK_TIME, MEASURE_AT, TIMING, REST, WATCHING, CPU_PLACE, CPU_OTHER, CPU_TURNS, CPU_DULL, TIMERS,
};
enum {
	FIRST,
};

/* A class, and the offsets of its slots in objects. */
struct class {
	PyTypeObject *type;
	const char *names[16];
	Py_ssize_t at[16];
};

static struct class clocks = {NULL, {"now", "timers"}, {0}};
static struct class cpus = {
	NULL,
	{"parent", "ns", "looks", "looked", "asked", "work_ns", "measure_at", "timing", "rest", "watching", "place", "other", "turns", "dull",
	 "timers"},
	{0}};
static struct class queues = {NULL, {"first"}, {0}};

static int know(struct class *known, PyObject *type)
{
	if (!PyType_Check(type)) { PyErr_SetString(PyExc_TypeError, "a class is wanted"); return -1; }
	for (int i = 0; known->names[i]; i++) {
		PyObject *slot = PyObject_GetAttrString(type, known->names[i]);
		if (!slot) return -1;
		int is_one = Py_TYPE(slot) == &PyMemberDescr_Type && ((PyMemberDescrObject *)slot)->d_member->type == T_OBJECT_EX;
		if (is_one) known->at[i] = ((PyMemberDescrObject *)slot)->d_member->offset;
		Py_DECREF(slot);
		if (!is_one) { PyErr_Format(PyExc_TypeError, "%s is no slot", known->names[i]); return -1; }
	}
	Py_XSETREF(known->type, (PyTypeObject *)Py_NewRef(type));
	return 0;
}

static int is_a(PyObject *object, const struct class *known)
{
	if (known->type && PyObject_TypeCheck(object, known->type)) return 1;
	PyErr_Format(PyExc_TypeError, "%.100s instead of %.100s", Py_TYPE(object)->tp_name,
		     known->type ? known->type->tp_name : "a class that is not known");
	return 0;
}

#define SLOT(object, known, which) (*(PyObject **)((char *)(object) + (known).at[which]))

/* The value of a slot (borrowed); NULL with an exception if it has none. */
static PyObject *get(PyObject *object, const struct class *known, int which)
{
	PyObject *value = SLOT(object, *known, which);
	if (!value) PyErr_SetString(PyExc_AttributeError, known->names[which]);
	return value;
}

/* Takes the value over; -1 if it is NULL. */
static int set(PyObject *object, const struct class *known, int which, PyObject *value)
{
	if (!value) return -1;
	Py_XSETREF(SLOT(object, *known, which), value);
	return 0;
}

/* A number; those that are too large (a time that never comes) are the largest. */
static int number(PyObject *object, const struct class *known, int which, long long *value)
{
	PyObject *given = get(object, known, which);
	int overflow;
	if (!given) return -1;
	*value = PyLong_AsLongLongAndOverflow(given, &overflow);
	if (overflow) *value = overflow > 0 ? LLONG_MAX : LLONG_MIN;
	return *value == -1 && PyErr_Occurred() ? -1 : 0;
}

static int add(PyObject *object, const struct class *known, int which, long long more, long long *sum)
{
	if (number(object, known, which, sum)) return -1;
	*sum += more;
	return set(object, known, which, PyLong_FromLongLong(*sum));
}

static int ignore(PyObject *result)
{
	Py_XDECREF(result);
	return result ? 0 : -1;
}

static int is_true(PyObject *object, const struct class *known, int which)
{
	PyObject *value = get(object, known, which);
	return value ? PyObject_IsTrue(value) : -1;
}
