/* Threads that wait for each other by turns, each in a loop that is known (turns.c): what the supervisor does for each of
 * them at each turn, without a line of Python.  detbox/supervisor/relay.py tells when that is done, and what it leaves out.
 *
 * Whatever is not foreseen here ends it, with everything as it was before: a stop that is no breakpoint of a loop's, a call,
 * a loop that has to be walked, a time at which something expires.
 */
enum { RELAY_THREADS = 64, RELAY_LOOPS = 64, RELAY_STEPS = 5000 };
enum { RELAY_RUNS, RELAY_WAITS, RELAY_READY };

struct relay_thread {
	pid_t tid;
	int space, state, loop, chosen;
	long order; /* in which they were parked, and became ready */
	uint64_t since;
	PyObject *watched, *path; /* our own references, if `path` is one */
	PyObject *cpu;
};

struct relay_loop { int space; long visits, spins; struct turn_loop l; };

struct relay {
	int listener, control, count, loop_count;
	long ms, order, stops, steps, most_steps;
	uint64_t now, limit, spin_ns, spin_most;
	struct page *page;
	pid_t stopped;
	int status;
	struct relay_thread threads[RELAY_THREADS];
	struct relay_loop loops[RELAY_LOOPS];
	struct turns t;
};

/* Whether a thread has stopped: what else happens is next_event()'s business. */
static int relay_wait(struct relay *y, pid_t tid)
{
	struct timespec ts = {y->ms / 1000, y->ms % 1000 * 1000000};
	for (;;) {
		pid_t got = waitpid(tid, &y->status, WNOHANG | __WALL);
		if (got == tid) return 1;
		if (got < 0) return 0;
		struct pollfd p[2] = {{y->listener, POLLIN, 0}, {y->control, POLLIN, 0}};
		int r;
		Py_BEGIN_ALLOW_THREADS
		r = ppoll(p, y->control >= 0 ? 2 : 1, &ts, &open_mask);
		Py_END_ALLOW_THREADS
		if (r >= 0 || errno != EINTR || PyErr_CheckSignals()) return 0;
		if (!(__atomic_exchange_n(&told, 0, __ATOMIC_SEQ_CST) & STOPPED)) continue;
		siginfo_t other = {.si_pid = 0};
		if (waitid(P_ALL, 0, &other, WNOHANG | WNOWAIT | WEXITED | WSTOPPED | __WALL)) return 0;
		if (other.si_pid && other.si_pid != tid) {
			more_stops = 1;
			return 0;
		}
	}
}

static int relay_loop_at(const struct relay *y, int space, uint64_t head)
{
	for (int i = 0; i < y->loop_count; i++)
		if (y->loops[i].space == space && y->loops[i].l.count && y->loops[i].l.all->address == head) return i;
	return -1;
}

/* A thread goes on, and may look at clocks. */
static int relay_go_on(struct relay *y, struct relay_thread *thread)
{
	long long watches;
	if (number(thread->cpu, &cpus, WATCHING, &watches)) return -1;
	if ((watches || y->page->open) && prepare_page(y->page, thread->cpu, 1)) return -1;
	thread->state = RELAY_RUNS;
	ptrace(PTRACE_CONT, thread->tid, NULL, NULL); /* it may be dead */
	return LOOP_LEFT;
}

/* A thread that is stopped at a loop's head, with the registers `y->t.r`: it is taken to where it gets to, and goes on or is parked.
 * NO_TURNS if it is left as it is; -1 with an exception. */
static int relay_step(struct relay *y, struct relay_thread *thread, int loop)
{
	unsigned char path[TURN_PATH], seen[TURN_PATH] = {0};
	int length = 0, found = go_round(&y->t, &y->loops[loop].l, path, &length);
	uint64_t ns = 0;
	if (found == LOOP_SPINS) {
		for (int i = 0; i < length; i++) {
			ns += seen[path[i]] ? 0 : y->spin_ns;
			seen[path[i]] = 1;
		}
		if (ns > y->spin_most) ns = y->spin_most;
		if (y->now + ns >= y->limit) return NO_TURNS;
	}
	if (!found || turn_commit(&y->t) || ptrace(PTRACE_SETREGS, thread->tid, NULL, y->t.r)) return NO_TURNS;
	y->loops[loop].visits++;
	if (found == LOOP_LEFT) return relay_go_on(y, thread);
	PyObject *watched = held_in(&y->t), *way = PyBytes_FromStringAndSize((char *)path, length);
	if (!watched || !way) {
		Py_XDECREF(watched);
		Py_XDECREF(way);
		return -1;
	}
	if (thread->path) Py_XDECREF(thread->watched);
	Py_XSETREF(thread->path, way);
	thread->watched = watched;
	thread->loop = loop;
	thread->state = RELAY_WAITS;
	thread->since = y->now;
	thread->order = y->order++;
	y->now += ns;
	y->loops[loop].spins++;
	return set_number(y->page->clock, &clocks, NOW, (long long)y->now) ? -1 : found;
}

static int relay_registers(struct relay *y, pid_t tid)
{
	y->t.tid = tid;
	if (ptrace(PTRACE_GETREGS, tid, NULL, y->t.r)) return -1;
	y->t.r[W_EFLAGS] &= ~(uint64_t)(1 << 8 | 1 << 16); /* the debugger's own */
	return 0;
}

/* Waits for the thread that runs, up to a breakpoint at which it begins to wait: LOOP_SPINS.  NO_TURNS if that was not all. */
static int relay_run(struct relay *y, struct relay_thread *thread)
{
	for (;;) {
		siginfo_t info;
		uint64_t blocked = 0, open = 1ULL << (SIGTRAP - 1);
		uint64_t others = 1ULL << (SIGSEGV - 1) | 1ULL << (SIGBUS - 1) | 1ULL << (SIGILL - 1) | 1ULL << (SIGFPE - 1);
		int loop, found;
		y->stopped = 0;
		if (y->steps >= RELAY_STEPS || !relay_wait(y, thread->tid)) return PyErr_Occurred() ? -1 : NO_TURNS;
		y->stopped = thread->tid;
		if (y->page->shown->now != y->page->now) return NO_TURNS; /* it has looked at a clock */
		if (!WIFSTOPPED(y->status) || y->status >> 8 != SIGTRAP) return NO_TURNS;
		if (ptrace(PTRACE_GETSIGINFO, thread->tid, NULL, &info) || info.si_code != SI_KERNEL) return NO_TURNS;
		/* It may be that the signal was blocked: image.py puts that back. */
		if (ptrace(PTRACE_GETSIGMASK, thread->tid, sizeof blocked, &blocked) || blocked & (open | others)) return NO_TURNS;
		if (relay_registers(y, thread->tid)) return NO_TURNS;
		if ((loop = relay_loop_at(y, thread->space, --y->t.r[W_RIP])) < 0) return NO_TURNS;
		if ((found = relay_step(y, thread, loop)) <= 0) return found;
		y->steps++;
		y->stops++;
		y->stopped = 0;
		if (found == LOOP_SPINS) return found;
	}
}

/* Those whose memory has changed are ready, and the first of them is chosen; NULL if there is none, or -- `failed` --
 * with an exception. */
static struct relay_thread *relay_choose(struct relay *y, const struct relay_thread *parked, int *failed)
{
	struct relay_thread *first = NULL;
	int ready = 0;
	for (long after = -1, last = y->order;;) {
		struct relay_thread *next = NULL;
		for (int i = 0; i < y->count; i++) {
			struct relay_thread *each = &y->threads[i];
			if (each->state != RELAY_WAITS || each->order <= after || each->order >= last) continue;
			if (!next || each->order < next->order) next = each;
		}
		if (!next) break;
		after = next->order;
		int held = next == parked ? 1 : is_still_held(next->tid, next->watched);
		if (held < 0) { *failed = 1; return NULL; }
		if (held) continue;
		next->state = RELAY_READY;
		if (y->now > next->since &&
		    ignore(PyObject_CallMethod(next->cpu, "spend", "K", (unsigned long long)(y->now - next->since)))) {
			*failed = 1;
			return NULL;
		}
		next->order = y->order++;
	}
	for (int i = 0; i < y->count; i++) {
		struct relay_thread *each = &y->threads[i];
		if (each->state != RELAY_READY) continue;
		ready++;
		if (!first || each->order < first->order) first = each;
	}
	return ready > 1 && y->steps >= y->most_steps ? NULL : first;
}

/* Whether anything was done. */
static int relay_all(struct relay *y)
{
	struct relay_thread *thread = y->threads;
	int found, failed = 0, begun = 0;
	while (thread) {
		int loop = relay_registers(y, thread->tid) ? -1 : relay_loop_at(y, thread->space, y->t.r[W_RIP]);
		if (loop < 0 || !(found = relay_step(y, thread, loop))) return begun;
		if (found < 0) return -1;
		begun = 1;
		thread->chosen++;
		y->steps++;
		if (found == LOOP_LEFT && (found = relay_run(y, thread)) != LOOP_SPINS) return found < 0 ? -1 : 1;
		thread = relay_choose(y, thread, &failed);
	}
	return failed ? -1 : 1;
}

static PyObject *relay_result(struct relay *y)
{
	PyObject *threads = PyTuple_New(y->count), *loops = PyTuple_New(y->loop_count);
	for (int i = 0; threads && loops && i < y->count; i++) {
		struct relay_thread *each = &y->threads[i];
		PyObject *one = Py_BuildValue("(ilKiiOO)", each->state, each->order, (unsigned long long)each->since, each->chosen, each->loop,
					      each->path ? each->path : Py_None, each->path ? each->watched : Py_None);
		if (!one) Py_CLEAR(threads);
		else PyTuple_SET_ITEM(threads, i, one);
	}
	for (int i = 0; threads && loops && i < y->loop_count; i++) {
		PyObject *one = Py_BuildValue("(ll)", y->loops[i].visits, y->loops[i].spins);
		if (!one) Py_CLEAR(loops);
		else PyTuple_SET_ITEM(loops, i, one);
	}
	if (threads && loops)
		return Py_BuildValue("(iilNN)", (int)y->stopped, y->status, y->stops, threads, loops);
	Py_XDECREF(threads);
	Py_XDECREF(loops);
	return NULL;
}

static int relay_begin(struct relay *y, PyObject *threads, PyObject *loops)
{
	if (PyTuple_GET_SIZE(threads) > RELAY_THREADS || PyTuple_GET_SIZE(loops) > RELAY_LOOPS) {
		PyErr_SetString(PyExc_ValueError, "too many for a relay");
		return -1;
	}
	for (; y->count < PyTuple_GET_SIZE(threads); y->count++) {
		struct relay_thread *each = &y->threads[y->count];
		unsigned long long since;
		if (!PyArg_ParseTuple(PyTuple_GET_ITEM(threads, y->count), "iiOKO!", &each->tid, &each->space, &each->cpu, &since,
				      &PyTuple_Type, &each->watched) ||
		    !is_a(each->cpu, &cpus))
			return -1;
		each->since = since;
		each->state = y->count ? RELAY_WAITS : RELAY_READY;
		each->order = y->order++;
	}
	for (; y->loop_count < PyTuple_GET_SIZE(loops); y->loop_count++) {
		struct relay_loop *each = &y->loops[y->loop_count];
		PyObject *instructions, *start, *code;
		if (!PyArg_ParseTuple(PyTuple_GET_ITEM(loops, y->loop_count), "iOOO", &each->space, &instructions, &start, &code) ||
		    turn_loop(&each->l, instructions, start, code))
			return -1;
	}
	return 0;
}

/* relay((listener, control, timeout_ms), ((tid, space, cpu, since, watched), ...), ((space, instructions, start, code), ...),
 *       page, (limit, spin_ns, spin_most_ns), crowd) -> None, or
 * (tid that has stopped or 0, status, stops, ((state, order, since, chosen, loop, path, watched), ...), ((visits, spins), ...))
 *
 * The first thread goes on, the others are parked in this order.  More than one is ready only in the first `crowd` steps. */
static PyObject *relay(PyObject *self, PyObject *args)
{
	static struct relay y;
	PyObject *threads, *loops, *page;
	unsigned long long limit, spin_ns, spin_most;
	long long now;
	memset(&y, 0, offsetof(struct relay, t));
	if (!PyArg_ParseTuple(args, "(iil)O!O!O!(KKK)l", &y.listener, &y.control, &y.ms, &PyTuple_Type, &threads, &PyTuple_Type, &loops,
			      &page_type, &page, &limit, &spin_ns, &spin_most, &y.most_steps))
		return NULL;
	y.page = (struct page *)page;
	if (relay_begin(&y, threads, loops) || number(y.page->clock, &clocks, NOW, &now)) return NULL;
	y.now = (uint64_t)now, y.limit = limit, y.spin_ns = spin_ns, y.spin_most = spin_most;
	forget_thread();
	end_receiving();
	int found = y.count && y.page->shown->now == y.page->now ? relay_all(&y) : 0;
	forget_thread();
	PyObject *result = found < 0 ? NULL : found ? relay_result(&y) : Py_NewRef(Py_None);
	for (int i = 0; i < y.count; i++)
		if (y.threads[i].path) {
			Py_CLEAR(y.threads[i].path);
			Py_CLEAR(y.threads[i].watched);
		}
	return result;
}
