/* The virtual clock (machine/clock.py), as far as every call pays for it: what the call costs, and the page in which a guest
 * looks at the clock without one (supervisor/guestclock.py).
 */
static long long call_ns, look_ns, short_patience, patience, window, watching, work_looks, first_measure; /* as in machine/clock.py */
static PyObject *price;

static int expire(PyObject *queue, long long now, int always_there)
{
	long long first;
	if (queue == Py_None && !always_there) return 0;
	if (!is_a(queue, &queues) || number(queue, &queues, FIRST, &first)) return -1;
	return first > now ? 0 : ignore(PyObject_CallMethod(queue, "expire", "L", now));
}

/* Adds to a thread's CPU time and to its process's; timers that are due expire, the thread's first. */
static int spend_cpu(PyObject *cpu, long long ns)
{
	long long value;
	PyObject *time = cpu, *queue;
	while (time != Py_None) {
		if (!is_a(time, &cpus) || add(time, &cpus, NS, ns, &value)) return -1;
		if (!(queue = get(time, &cpus, TIMERS)) || expire(queue, value, 0)) return -1;
		if (!(time = get(time, &cpus, PARENT))) return -1;
	}
	return 0;
}

static int charge_cpu(PyObject *clock, PyObject *cpu, int looking)
{
	long long value;
	if (!is_a(clock, &clocks) || !is_a(cpu, &cpus)) return -1;
	if (!looking) {
		if (number(cpu, &cpus, LOOKS, &value)) return -1;
		if (value && ignore(PyObject_CallMethod(cpu, "begin_anew", NULL))) return -1;
		if (number(cpu, &cpus, WATCHING, &value)) return -1;
		if (value && set(cpu, &cpus, WATCHING, PyLong_FromLongLong(value - 1))) return -1;
	}
	if (add(clock, &clocks, NOW, call_ns, &value)) return -1;
	PyObject *queue;
	if (spend_cpu(cpu, call_ns)) return -1;
	if (number(clock, &clocks, NOW, &value) || !(queue = get(clock, &clocks, CLOCK_TIMERS))) return -1;
	return expire(queue, value, 1);
}

/* charge(clock, cpu, looking): see Clock.charge */
static PyObject *charge(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 3) { PyErr_SetString(PyExc_TypeError, "charge(clock, cpu, looking)"); return NULL; }
	if (charge_cpu(a[0], a[1], PyObject_IsTrue(a[2]))) return NULL;
	Py_RETURN_NONE;
}

static int set_number(PyObject *object, const struct class *known, int which, long long value)
{
	return set(object, known, which, PyLong_FromLongLong(value));
}

/* What a look costs (price() of machine/clock.py); the first of many, which most are, cost the same. */
static int price_of(PyObject *cpu, long long *cost)
{
	long long looks, asked;
	PyObject *work = get(cpu, &cpus, WORK_TIME), *result;
	if (!work || number(cpu, &cpus, LOOKS, &looks) || number(cpu, &cpus, ASKED, &asked)) return -1;
	*cost = look_ns;
	if (work == Py_None && looks < short_patience && asked < patience) return 0;
	if (!(result = PyObject_CallOneArg(price, cpu))) return -1;
	*cost = PyLong_AsLongLong(result);
	Py_DECREF(result);
	return *cost == -1 && PyErr_Occurred() ? -1 : 0;
}

/* How many looks a thread may make without a call.  The same look is left to a call whenever this is asked: a call uses up
 * some of the thread's turn. */
static int alike_of(PyObject *cpu, long long *count)
{
	long long looks, measure_at, before;
	if (number(cpu, &cpus, LOOKS, &looks) || number(cpu, &cpus, MEASURE_AT, &measure_at)) return -1;
	*count = window - 1 - looks % window;
	before = measure_at > looks ? measure_at - looks - 1 : 0;
	if (before < *count) *count = before;
	return 0;
}

/* alike(cpu): see alike_of() */
static PyObject *alike(PyObject *self, PyObject *cpu)
{
	long long count;
	return !is_a(cpu, &cpus) || alike_of(cpu, &count) ? NULL : PyLong_FromLongLong(count);
}

/* Makes the limit the last moment before a timer expires, by a clock that is `ahead` of the timers', if that is earlier. */
static int limit_by(PyObject *queue, long long ahead, long long *limit)
{
	long long first;
	PyObject *deadline;
	if (!is_a(queue, &queues) || number(queue, &queues, FIRST, &first)) return -1;
	if (first > *limit - ahead) return 0;
	/* `first` may be that of a cancelled timer, until somebody asks: when that is may depend on the machine. */
	if (!(deadline = PyObject_CallMethod(queue, "next_deadline", NULL))) return -1;
	if (deadline != Py_None) {
		first = PyLong_AsLongLong(deadline); /* no later than `first` was, so it is one */
		if (first <= *limit - ahead) *limit = first + ahead - 1;
	}
	Py_DECREF(deadline);
	return PyErr_Occurred() ? -1 : 0;
}

/* The page in which a thread looks at the clock by itself, from the supervisor's side (supervisor/guestclock.py).  The guest
 * can write all of it: what it was given is kept here. */
struct page {
	PyObject_HEAD
	PyObject *clock, *cpu; /* `cpu`: of the thread that the page was prepared for, or NULL */
	Py_buffer view;
	volatile struct guest_clock *shown;
	long long now, cost, place, other, turns;
	long long looks;
	char open;
};

static int settle_page(struct page *p)
{
	long long gone, looks, value, place, other, turns;
	if (!p->cpu) return 0;
	place = (long long)p->shown->place, other = (long long)p->shown->other, turns = p->shown->turns;
	/* These are the thread's until it makes a call, which may change them in its CPU time, and not in the page. */
	if (p->open && (place != p->place || other != p->other || turns != p->turns)) {
		p->place = place, p->other = other, p->turns = turns;
		if (set_number(p->cpu, &cpus, CPU_PLACE, place) || set_number(p->cpu, &cpus, CPU_OTHER, other) ||
		    set_number(p->cpu, &cpus, CPU_TURNS, turns))
			return -1;
	}
	if (!(gone = p->shown->now - p->now)) return 0;
	looks = gone / p->cost;
	p->looks += looks;
	p->now += gone;
	if (add(p->clock, &clocks, NOW, gone, &value) || add(p->cpu, &cpus, LOOKS, looks, &value) ||
	    add(p->cpu, &cpus, LOOKED, looks, &value) || set_number(p->cpu, &cpus, WATCHING, watching))
		return -1;
	return ignore(PyObject_CallMethod(p->cpu, "spend", "L", gone));
}

/* What a thread that is about to go on is given if it may look. */
static int fill_page(struct page *p, PyObject *cpu, long long now, long long *limit)
{
	volatile struct guest_clock *g = p->shown;
	long long count, cost, ns, looks, timing, rest;
	PyObject *time, *queue = get(p->clock, &clocks, CLOCK_TIMERS), *whole = get(cpu, &cpus, PARENT);
	if (!queue || !whole || price_of(cpu, &cost) || alike_of(cpu, &count)) return -1;
	/* As when the supervisor answers it. */
	g->cost = p->cost = cost += call_ns;
	*limit = now + count * cost;
	if (limit_by(queue, 0, limit)) return -1;
	for (time = cpu; time != Py_None;) {
		if (!is_a(time, &cpus) || !(queue = get(time, &cpus, TIMERS)) || number(time, &cpus, NS, &ns)) return -1;
		if (queue != Py_None && limit_by(queue, now - ns, limit)) return -1;
		g->cpu[time == cpu] = ns - now;
		if (!(time = get(time, &cpus, PARENT))) return -1;
	}
	if (whole == Py_None) {
		whole = cpu;
		g->cpu[0] = g->cpu[1];
	}
	if (number(cpu, &cpus, LOOKS, &looks) || number(cpu, &cpus, TIMING, &timing) || number(whole, &cpus, REST, &rest)) return -1;
	/* The same look is left to a call whenever this is asked. */
	g->work = now + (looks < work_looks ? work_looks - looks : 0) * cost;
	g->day = timing >= first_measure || rest ? 0 : INT64_MAX;
	if (number(cpu, &cpus, CPU_PLACE, &p->place) || number(cpu, &cpus, CPU_OTHER, &p->other) ||
	    number(cpu, &cpus, CPU_TURNS, &p->turns) || number(cpu, &cpus, CPU_DULL, &ns))
		return -1;
	g->place = (uintptr_t)p->place, g->other = (uintptr_t)p->other, g->turns = p->turns, g->dull = (uintptr_t)ns;
	return 0;
}

static int prepare_page(struct page *p, PyObject *cpu, int allowed)
{
	long long now, limit = -1, looked;
	if (!p->shown) { PyErr_SetString(PyExc_ValueError, "a page without memory"); return -1; }
	if (p->shown->now != p->now && settle_page(p)) return -1;
	if (number(p->clock, &clocks, NOW, &now) || number(cpu, &cpus, WATCHING, &looked)) return -1;
	p->open = allowed && looked > 0;
	if (p->open && fill_page(p, cpu, now, &limit)) return -1;
	Py_XSETREF(p->cpu, Py_NewRef(cpu));
	p->shown->now = p->now = now;
	p->shown->limit = limit;
	return 0;
}

static PyObject *page_settle(PyObject *self, PyObject *unused)
{
	if (settle_page((struct page *)self)) return NULL;
	Py_RETURN_NONE;
}

static PyObject *page_grant(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	if (n != 2 || !is_a(a[0], &cpus)) {
		if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "grant(cpu, allowed)");
		return NULL;
	}
	if (prepare_page((struct page *)self, a[0], PyObject_IsTrue(a[1]))) return NULL;
	Py_RETURN_NONE;
}

/* ClockPage(clock, memory) */
static int page_init(PyObject *self, PyObject *args, PyObject *named)
{
	struct page *p = (struct page *)self;
	PyObject *clock, *memory;
	if (!PyArg_ParseTuple(args, "OO", &clock, &memory) || !is_a(clock, &clocks)) return -1;
	if (p->shown) { PyErr_SetString(PyExc_TypeError, "a page is made once"); return -1; }
	if (PyObject_GetBuffer(memory, &p->view, PyBUF_WRITABLE)) return -1;
	if (p->view.len < (Py_ssize_t)sizeof *p->shown) { PyErr_SetString(PyExc_ValueError, "too small for a page"); return -1; }
	p->clock = Py_NewRef(clock);
	p->shown = p->view.buf;
	p->shown->cost = p->cost = call_ns + look_ns;
	p->shown->limit = -1; /* before every time: no look is allowed */
	if (number(clock, &clocks, NOW, &p->now)) return -1;
	p->shown->now = p->now;
	return 0;
}

static void page_free(PyObject *self)
{
	struct page *p = (struct page *)self;
	Py_XDECREF(p->clock);
	Py_XDECREF(p->cpu);
	PyBuffer_Release(&p->view);
	Py_TYPE(self)->tp_free(self);
}

static PyMethodDef page_methods[] = {
	{"settle", page_settle, METH_NOARGS, "Account for the looks that the running thread has made.  Without effect if there were none."},
	{"grant", (PyCFunction)(void (*)(void))page_grant, METH_FASTCALL, "Prepare the page for a thread that is about to go on."},
	{NULL, NULL, 0, NULL},
};

static PyMemberDef page_members[] = {
	{"looks", T_LONGLONG, offsetof(struct page, looks), READONLY, "made in the guest so far"},
	{"open", T_BOOL, offsetof(struct page, open), READONLY, "whether the page allows looks, so that there may be some to account for"},
	{NULL, 0, 0, 0, NULL},
};

static PyTypeObject page_type = {
	PyVarObject_HEAD_INIT(NULL, 0).tp_name = "detbox.kernel._native.ClockPage",
	.tp_basicsize = sizeof(struct page),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
	.tp_new = PyType_GenericNew,
	.tp_init = page_init,
	.tp_dealloc = page_free,
	.tp_methods = page_methods,
	.tp_members = page_members,
};

/* The page of a supervisor (a new reference). */
static struct page *page_of(PyObject *sup)
{
	PyObject *found = PyObject_GetAttrString(sup, "guest_clock");
	if (found && !PyObject_TypeCheck(found, &page_type)) {
		PyErr_SetString(PyExc_TypeError, "a loop whose clock has no page");
		Py_CLEAR(found);
	}
	return (struct page *)found;
}

/* know_clock(Clock, CpuTime, Timers, price, CALL_NS, LOOK_NS, SHORT_PATIENCE, PATIENCE, WINDOW, WATCHING, WORK_LOOKS, FIRST_MEASURE) */
static PyObject *know_clock(PyObject *self, PyObject *args)
{
	PyObject *clock, *cpu, *queue, *pricing;
	if (!PyArg_ParseTuple(args, "OOOOLLLLLLLL", &clock, &cpu, &queue, &pricing, &call_ns, &look_ns, &short_patience, &patience, &window,
			      &watching, &work_looks, &first_measure))
		return NULL;
	if (know(&clocks, clock) || know(&cpus, cpu) || know(&queues, queue)) return NULL;
	Py_XSETREF(price, Py_NewRef(pricing));
	Py_RETURN_NONE;
}
