/* The way of a call from its notification to its answer, as far as it is the same for each: the thread is held, the clock
 * charged, the handler asked, and if it has said what the call gives, that is answered.  All that is not so simple is done
 * by methods of the loop (supervisor/loop.py).  It is in C because every call pays for it: in Python it took
 * longer than most handlers.
 */
enum {
	NOTIF, NR, ARGS, IP, STATE, QUANTUM, CPU, DATA, PROCESS, EXPOSED, NATIVE,
};
enum {
	COUNTED, SIGNALLED,
};
enum {
	RUNNING, NOTIFICATIONS, OUTCOME,
};

static struct class tasks = {
	NULL, {"notif", "nr", "args", "ip", "state", "quantum", "cpu", "data", "process", "exposed", "native"}, {0}};
static struct class processes = {NULL, {"counted", "signalled"}, {0}};
static struct class loops = {NULL, {"running", "notifications", "outcome"}, {0}};

static long window_weight; /* as in machine/clock.py */
static PyObject *state_running, *state_held, *continue_call, *stirred;

/* What the loop and its parts are, for as long as calls are answered without a way back to Python. */
struct loop {
	PyObject *sup, *m, *tasks, *clock, *scheduler, *awaited, *counting, *table, *counts, *looking, *observers;
	struct page *page;
	int listener;
};

static void leave_loop(struct loop *l)
{
	PyObject **every[] = {&l->m, &l->tasks, &l->clock, &l->scheduler, &l->awaited, &l->counting, &l->table,
			      &l->counts, &l->looking, &l->observers};
	for (size_t i = 0; i < sizeof every / sizeof *every; i++) Py_CLEAR(*every[i]);
	Py_CLEAR(l->page);
}

static int enter_loop(struct loop *l, PyObject *sup)
{
	memset(l, 0, sizeof *l);
	if (!is_a(sup, &loops)) return -1;
	l->sup = sup;
	PyObject *listener = NULL;
	int found = (l->m = PyObject_GetAttrString(sup, "m")) && (l->tasks = PyObject_GetAttrString(l->m, "tasks")) &&
		    (l->clock = PyObject_GetAttrString(l->m, "clock")) &&
		    (l->scheduler = PyObject_GetAttrString(l->m, "scheduler")) &&
		    (l->awaited = PyObject_GetAttrString(l->scheduler, "awaited")) &&
		    (l->page = page_of(sup)) &&
		    (l->counting = PyObject_GetAttrString(sup, "counting")) &&
		    (l->table = PyObject_GetAttrString(sup, "table")) && (l->counts = PyObject_GetAttrString(sup, "calls")) &&
		    (l->looking = PyObject_GetAttrString(sup, "looking")) &&
		    (l->observers = PyObject_GetAttrString(sup, "observers")) &&
		    (listener = PyObject_GetAttrString(l->m, "listener"));
	if (listener) l->listener = (int)PyLong_AsLong(listener);
	Py_XDECREF(listener);
	if (found && !(PyDict_Check(l->tasks) && PyDict_Check(l->awaited) && PyList_Check(l->table) && PyList_Check(l->counts) &&
		       PyList_Check(l->observers))) {
		PyErr_SetString(PyExc_TypeError, "a loop whose tables are none");
		found = 0;
	}
	if (found && !PyErr_Occurred()) return 0;
	leave_loop(l);
	return -1;
}

/* What the handler of a call decides; an OSError is a decision, too. */
static PyObject *ask_handler(const struct loop *l, PyObject *task, Py_ssize_t nr)
{
	PyObject *handler = nr >= 0 && nr < PyList_GET_SIZE(l->table) ? PyList_GET_ITEM(l->table, nr) : Py_None;
	PyObject *args = get(task, &tasks, ARGS), *decision;
	if (!args) return NULL;
	if (handler == Py_None) return PyObject_CallMethod(l->sup, "unknown", "On", task, nr);
	PyObject *given[] = {NULL, l->m, task, args};
	Py_INCREF(handler);
	Py_INCREF(args);
	decision = PyObject_Vectorcall(handler, given + 1, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
	Py_DECREF(args);
	Py_DECREF(handler);
	if (decision || !PyErr_ExceptionMatches(PyExc_OSError)) return decision;
	PyObject *type, *error, *traceback;
	PyErr_Fetch(&type, &error, &traceback);
	PyErr_NormalizeException(&type, &error, &traceback);
	if (traceback) PyException_SetTraceback(error, traceback);
	decision = PyObject_CallMethod(l->m, "failed", "O", error);
	Py_XDECREF(type);
	Py_XDECREF(error);
	Py_XDECREF(traceback);
	return decision;
}

enum { PLAIN, MAY_BE_COUNTED, SPECIAL };

/* Whether the thread may be counted from the answer on, or others have to hear of a decision; -1 with an exception. */
static int how_special(const struct loop *l, PyObject *task, PyObject *decision)
{
	PyObject *process, *data = get(task, &tasks, DATA);
	int result;
	if (!data || !(process = get(task, &tasks, PROCESS)) || !is_a(process, &processes)) return -1;
	if ((decision != continue_call && !PyLong_CheckExact(decision)) || PyList_GET_SIZE(l->observers)) return SPECIAL;
	if ((result = is_true(process, &processes, SIGNALLED))) return result < 0 ? -1 : SPECIAL;
	if (!PyDict_Check(data)) { PyErr_SetString(PyExc_TypeError, "data that is no dictionary"); return -1; }
	if (PyDict_GET_SIZE(data)) return PyDict_GetItemString(data, "leader_leaves") ? SPECIAL : MAY_BE_COUNTED;
	if (PyDict_GET_SIZE(l->awaited)) return MAY_BE_COUNTED;
	result = is_true(process, &processes, COUNTED);
	return result > 0 ? MAY_BE_COUNTED : result;
}

/* Whether the thread may look at the clock by itself from the answer on; -1 with an exception. */
static int may_look(const struct loop *l, PyObject *task, int counted)
{
	if (!counted) return 1;
	PyObject *measured = PyObject_CallMethod(l->counting, "measures", "O", task);
	int result = measured ? PyObject_Not(measured) : -1;
	Py_XDECREF(measured);
	return result;
}

/* As finish() of the loop does it, with all that is left out if nothing is special. */
static int answer(const struct loop *l, PyObject *task, PyObject *cpu, PyObject *decision, int counted)
{
	if (counted && ignore(PyObject_CallMethod(l->counting, "before_return", "O", task))) return -1;
	struct seccomp_notif_resp r = {0};
	PyObject *notif = get(task, &tasks, NOTIF);
	int native = decision == continue_call, overflow = 0, looks;
	long long value = native ? 0 : PyLong_AsLongLongAndOverflow(decision, &overflow);
	if (!notif) return -1;
	if (native) {
		r.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
	} else if (!overflow && value >= -4095 && value < 0) {
		r.error = (int)value;
	} else {
		r.val = overflow ? (long long)PyLong_AsUnsignedLongLongMask(decision) : value;
	}
	r.id = PyLong_AsUnsignedLongLong(notif);
	looks = is_true(cpu, &cpus, WATCHING);
	if (looks < 0 || PyErr_Occurred()) return -1;
	if (looks || l->page->open) {
		int may = may_look(l, task, counted);
		if (may < 0 || prepare_page(l->page, cpu, may)) return -1;
	}
	forget_thread();
	patient_ioctl(l->listener, SECCOMP_IOCTL_NOTIF_SEND, &r); /* the thread may be dead */
	long long running;
	if (set(task, &tasks, NOTIF, PyLong_FromLong(0)) || set(task, &tasks, STATE, Py_NewRef(state_running)) ||
	    set(task, &tasks, EXPOSED, Py_NewRef(Py_False)) || set(task, &tasks, NATIVE, PyBool_FromLong(native)))
		return -1;
	return add(l->sup, &loops, RUNNING, 1, &running);
}

static int decide_call(const struct loop *l, PyObject *task)
{
	long long nr, looks, measure_at;
	PyObject *cpu, *decision;
	if (!is_a(task, &tasks) || number(task, &tasks, NR, &nr) || !(cpu = get(task, &tasks, CPU))) return -1;
	int looking = PySet_Contains(l->looking, SLOT(task, tasks, NR)), result;
	if (looking < 0 || charge_cpu(l->clock, cpu, looking)) return -1;
	if (!(decision = ask_handler(l, task, (Py_ssize_t)nr))) return -1;
	Py_INCREF(cpu);
	result = looking && (number(cpu, &cpus, LOOKS, &looks) || number(cpu, &cpus, MEASURE_AT, &measure_at)) ? -1 : 0;
	if (!result && looking && looks >= measure_at)
		result = ignore(PyObject_CallMethod(l->counting, "after_look", "O", task));
	if (!result) result = how_special(l, task, decision);
	if (result == SPECIAL) result = ignore(PyObject_CallMethod(l->sup, "perform", "OO", task, decision));
	else if (result >= 0) result = answer(l, task, cpu, decision, result == MAY_BE_COUNTED);
	Py_DECREF(cpu);
	Py_DECREF(decision);
	return result;
}

/* decide(supervisor, task): asks the handler of the thread's call, and has its decision carried out. */
static PyObject *decide(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	struct loop l;
	if (n != 2) { PyErr_SetString(PyExc_TypeError, "decide(supervisor, task)"); return NULL; }
	if (enter_loop(&l, a[0])) return NULL;
	int failed = decide_call(&l, a[1]);
	leave_loop(&l);
	if (failed) return NULL;
	Py_RETURN_NONE;
}

/* A thread has made a call: it is held, and it is noted down what it calls. */
static int take_call(const struct loop *l, PyObject *task, const struct seccomp_notif *q)
{
	long long count;
	PyObject *state, *args, *one;
	if (!is_a(task, &tasks) || !(state = get(task, &tasks, STATE)) || !(args = arguments(q))) return -1;
	if (set(task, &tasks, NOTIF, PyLong_FromUnsignedLongLong(q->id)) || set(task, &tasks, NR, PyLong_FromLong(q->data.nr)) ||
	    set(task, &tasks, ARGS, args) ||
	    set(task, &tasks, IP, PyLong_FromUnsignedLongLong(q->data.instruction_pointer)))
		return -1;
	if (state == state_running &&
	    (add(l->sup, &loops, RUNNING, -1, &count) || set(task, &tasks, STATE, Py_NewRef(state_held))))
		return -1;
	if (PyObject_SetAttr(l->scheduler, stirred, Py_True)) return -1;
	if (q->data.nr < 0 || q->data.nr >= PyList_GET_SIZE(l->counts)) return 0;
	count = PyLong_AsLongLong(PyList_GET_ITEM(l->counts, q->data.nr));
	if (PyErr_Occurred() || !(one = PyLong_FromLongLong(count + 1))) return -1;
	return PyList_SetItem(l->counts, q->data.nr, one);
}

/* What a call uses up of the thread's turn; whether that is over (-1 with an exception). */
static int turn_is_over(PyObject *task)
{
	PyObject *cpu = get(task, &tasks, CPU);
	long long looks, quantum;
	if (!cpu || !is_a(cpu, &cpus) || number(cpu, &cpus, LOOKS, &looks)) return -1;
	if (add(task, &tasks, QUANTUM, looks % window == window - 1 ? -window_weight : -1, &quantum)) return -1;
	return quantum <= 0;
}

static int serve_call(const struct loop *l, const struct seccomp_notif *q)
{
	long long count;
	int result;
	if (add(l->sup, &loops, NOTIFICATIONS, 1, &count) || (l->page->open && settle_page(l->page))) return -1;
	PyObject *tid = PyLong_FromLong((long)q->pid), *task = tid ? PyDict_GetItemWithError(l->tasks, tid) : NULL;
	Py_XDECREF(tid);
	if (!task) {
		if (PyErr_Occurred()) return -1;
		return ignore(PyObject_CallMethod(l->sup, "nobodys", "ii", q->data.nr, (int)q->pid));
	}
	Py_INCREF(task);
	result = take_call(l, task, q) ? -1 : is_true(task, &tasks, DATA);
	if (result > 0) {
		result = PySet_Contains(l->looking, SLOT(task, tasks, NR));
		if (result >= 0)
			result = ignore(PyObject_CallMethod(l->counting, "on_call", "OO", task, result ? Py_True : Py_False));
	}
	if (!result) result = turn_is_over(task);
	if (result > 0) {
		PyObject *over = PyObject_CallMethod(l->sup, "turn_ends", "O", task);
		result = over ? PyObject_IsTrue(over) : -1;
		Py_XDECREF(over);
		if (result > 0) goto done; /* others go first */
	}
	if (!result) result = decide_call(l, task);
done:
	Py_DECREF(task);
	return result < 0 ? -1 : 0;
}

/* serve(supervisor, listener, control, timeout_ms, tick_ms) -> as wait_event(), but calls are dealt with; () when no thread
 * runs any more or the run is over; and how many milliseconds it was, when the time is over: timeout_ms is for the first event,
 * tick_ms for those that come after a call. */
static PyObject *serve(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 5) { PyErr_SetString(PyExc_TypeError, "serve(supervisor, listener, control, timeout_ms, tick_ms)"); return NULL; }
	int listener = (int)PyLong_AsLong(a[1]), control = (int)PyLong_AsLong(a[2]), called = 0;
	long ms = PyLong_AsLong(a[3]), tick = PyLong_AsLong(a[4]);
	struct seccomp_notif q;
	struct loop l;
	if (PyErr_Occurred() || enter_loop(&l, a[0])) return NULL;
	PyObject *event;
	long long running = 1;
	for (;;) {
		event = next_event(listener, control, ms, &q, &called);
		if (!called || serve_call(&l, &q) || number(l.sup, &loops, RUNNING, &running)) break;
		if (!running || SLOT(l.sup, loops, OUTCOME) != Py_None) break;
		ms = tick;
	}
	leave_loop(&l);
	if (PyErr_Occurred()) return NULL;
	if (event != Py_None) return called ? PyTuple_New(0) : event;
	Py_DECREF(event);
	return PyLong_FromLong(ms);
}

/* know_calls(Supervisor, Task, Process, State.RUNNING, State.HELD, CONTINUE, WINDOW_WEIGHT) */
static PyObject *know_calls(PyObject *self, PyObject *args)
{
	PyObject *loop, *task, *process, *run, *held, *native;
	if (!PyArg_ParseTuple(args, "OOOOOOl", &loop, &task, &process, &run, &held, &native, &window_weight))
		return NULL;
	if (know(&loops, loop) || know(&tasks, task) || know(&processes, process)) return NULL;
	if (!stirred && !(stirred = PyUnicode_InternFromString("stirred"))) return NULL;
	Py_XSETREF(state_running, Py_NewRef(run));
	Py_XSETREF(state_held, Py_NewRef(held));
	Py_XSETREF(continue_call, Py_NewRef(native));
	Py_RETURN_NONE;
}
