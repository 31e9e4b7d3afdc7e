/* Threads that wait for each other by turns, each in a loop that is known (turns.c): what the supervisor does for each of
 * them at each turn, without a line of Python.  detbox/supervisor/relay.py tells when that is done, and what it leaves out.
 *
 * Whatever is not foreseen here ends it, with everything as it was before: a stop that is no breakpoint of a loop's, a call,
 * a loop that has to be walked, a time at which something expires.
 */
enum { RELAY_THREADS = 64, RELAY_LOOPS = 64, RELAY_STEPS = 5000 };
/* Instructions from one loop to the next; places for instructions (detbox/spin/ground.py); attempts without a result
 * before only one in so many is made. */
enum { TRAVEL_MOST = 400, GROUND_PLACES = 4096, GROUND_HEAD = 16, TRAVEL_VAIN = 16, TRAVEL_RARE = 32, W_ORIG_RAX = 15 };
/* Steps in a row in which nobody has gone on, before memory is kept. */
enum { RELAY_CALM = 8 };
enum { RELAY_RUNS, RELAY_WAITS, RELAY_READY };

/* What a thread waits for that has been parked here: the path of its turn, and what its memory holds then. */
struct relay_watch {
	int length, count;
	unsigned char path[TURN_PATH];
	struct turn_span spans[TURN_SPANS];
	uint64_t held[TURN_SPANS];
};

struct relay_thread {
	pid_t tid;
	int space, state, loop, chosen;
	long order; /* in which they were parked, and became ready */
	uint64_t since;
	PyObject *watched, *cpu; /* what the supervisor says that it waits for */
	int parked; /* here: what it waits for is its relay_watch */
	uint64_t r[sizeof(struct user_regs_struct) / 8];
	int known; /* its registers are these, which it has to be given yet */
};

/* What is known of a space's code; `right`: since a thread has gone on last. */
struct relay_ground {
	PyObject *source, *places;
	char *head;
	struct turn_instruction *all;
	uint64_t shut, open; /* memory that is left alone */
	int right;
};

/* What is expected of a thread that goes on, at the next breakpoint. */
struct forecast {
	pid_t tid;
	int fresh, cells;
	struct turn_instruction *instructions[TRAVEL_MOST];
	uint64_t r[sizeof(struct user_regs_struct) / 8];
	struct turn_cell held[TURN_CELLS];
};

struct relay_loop { int space; long visits, spins; struct turn_loop l; };

struct relay {
	int listener, control, count, loop_count, ground_count;
	uint64_t heads; /* some bits of their addresses */
	long ms, order, stops, steps, most_steps;
	uint64_t now, limit, spin_ns, spin_most;
	struct page *page;
	pid_t stopped;
	int status;
	struct relay_thread threads[RELAY_THREADS];
	struct relay_loop loops[RELAY_LOOPS];
	struct relay_ground grounds[RELAY_THREADS];
	int calm; /* steps since somebody has gone on */
	struct forecast forecast;
	struct turns t;
	struct relay_watch watches[RELAY_THREADS];
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

static uint64_t head_bit(uint64_t address)
{
	return 1ULL << (address ^ address >> 6) % 64;
}

static int relay_loop_at(const struct relay *y, int space, uint64_t head)
{
	if (!(y->heads & head_bit(head))) return -1;
	for (int i = 0; i < y->loop_count; i++)
		if (y->loops[i].space == space && y->loops[i].l.count && y->loops[i].l.all->address == head) return i;
	return -1;
}

/* A thread goes on, with the registers `y->t.r`, and may look at clocks. */
static int relay_go_on(struct relay *y, struct relay_thread *thread)
{
	long long watches;
	if (number(thread->cpu, &cpus, WATCHING, &watches)) return -1;
	if ((watches || y->page->open) && prepare_page(y->page, thread->cpu, 1)) return -1;
	thread->state = RELAY_RUNS;
	thread->known = 0;
	for (int i = 0; i < y->ground_count; i++) y->grounds[i].right = 0;
	for (int i = 0; i < y->loop_count; i++) y->loops[i].l.right = 0;
	end_blocks(&y->t.blocks);
	y->calm = 0;
	ptrace(PTRACE_SETREGS, thread->tid, NULL, y->t.r);
	ptrace(PTRACE_CONT, thread->tid, NULL, NULL); /* it may be dead */
	return LOOP_LEFT;
}

/* -- from one loop to the next -- */

static struct turn_instruction *ground_at(struct relay_ground *g, uint64_t address)
{
	for (uint64_t at = (address ^ address >> 12) % GROUND_PLACES; g->all[at].address; at = (at + 1) % GROUND_PLACES)
		if (g->all[at].address == address) return &g->all[at];
	return NULL;
}

/* Whether what is known of the code is what the thread would execute; -1 with an exception. */
static int is_right(struct relay_ground *g, pid_t tid)
{
	if (g->right) return 1;
	PyObject *code = PyObject_GetAttrString(g->source, "code"), *shut = code ? PyObject_GetAttrString(g->source, "shut") : NULL;
	unsigned long long from = 0, to = 0;
	int held = -1;
	if (shut && PyTuple_Check(code) && PyArg_ParseTuple(shut, "KK", &from, &to)) held = is_still_held(tid, code);
	Py_XDECREF(code);
	Py_XDECREF(shut);
	g->shut = from, g->open = to;
	return g->right = held > 0, held;
}

/* What has not been met before is asked for; NULL if there is nothing, or -- `*failed` -- with an exception. */
static struct turn_instruction *ground_more(struct relay_ground *g, pid_t tid, uint64_t address, int *failed)
{
	PyObject *found = PyObject_CallMethod(g->source, "more", "iK", (int)tid, (unsigned long long)address);
	int more = found ? PyObject_IsTrue(found) : -1;
	Py_XDECREF(found);
	g->right = 0;
	if (more < 0 || (more && is_right(g, tid) < 0)) *failed = 1;
	return more > 0 && g->right ? ground_at(g, address) : NULL;
}

/* A thread that has left a loop, with the registers and memory of `y->t`, is taken to the next one: 1, and `*loop`.
 * 0 if it has to go by itself (and `y->t` is of no use any more); -1 with an exception. */
static int relay_travel(struct relay *y, struct relay_thread *thread, int *loop)
{
	struct relay_ground *g = &y->grounds[thread->space];
	struct forecast *f = &y->forecast;
	uint32_t *vain = (uint32_t *)g->head, *tries = vain + 1;
	int failed = 0, steps = 0, right;
	/* What the caller asks is heard while a thread runs: one does at the beginning, and at the end. */
	if (!y->steps || y->steps >= RELAY_STEPS || (*vain >= TRAVEL_VAIN && ++*tries % TRAVEL_RARE)) return 0;
	if ((right = is_right(g, thread->tid)) <= 0) return right;
	f->fresh = 0;
	for (; steps < TRAVEL_MOST && (*loop = relay_loop_at(y, thread->space, y->t.r[W_RIP])) < 0; steps++) {
		struct turn_instruction *i = ground_at(g, y->t.r[W_RIP]);
		int cells = y->t.cell_count;
		if (!i && !(i = ground_more(g, thread->tid, y->t.r[W_RIP], &failed))) break;
		if (i->what == T_UNKNOWN) break;
		if (!i->seen) f->instructions[f->fresh++] = i;
		y->t.span_count = 0;
		turn_step(&y->t, i);
		for (; cells < y->t.cell_count; cells++)
			if (y->t.cells[cells].at + 8 > g->shut && y->t.cells[cells].at < g->open) y->t.bad = 1;
		if (y->t.bad) break;
	}
	if (y->t.bad) *loop = -1;
	if (failed) return -1;
	if (steps == TRAVEL_MOST || *loop < 0 || y->t.open) {
		++*vain;
		return 0;
	}
	*vain = 0;
	y->t.r[W_ORIG_RAX] = ~0ULL; /* as behind a breakpoint */
	if (!f->fresh) return 1;
	f->tid = thread->tid;
	f->cells = y->t.cell_count;
	memcpy(f->r, y->t.r, sizeof f->r);
	memcpy(f->held, y->t.cells, sizeof f->held);
	return 0;
}

/* A thread that was let go on, with a forecast, is at a loop's head with the registers `y->t.r`. */
static void relay_compare(struct relay *y)
{
	struct forecast *f = &y->forecast;
	int same = !memcmp(f->r, y->t.r, sizeof f->r);
	for (int i = 0; same && i < f->cells; i++) {
		uint64_t held;
		struct iovec l = {&held, 8}, r = {(void *)f->held[i].at, 8};
		same = process_vm_readv(f->tid, &l, 1, &r, 1, 0) == 8 && held == f->held[i].value;
	}
	for (int i = 0; i < f->fresh; i++)
		if (same) f->instructions[i]->seen = 1;
		else if (!f->instructions[i]->seen) f->instructions[i]->what = T_UNKNOWN;
}

/* Has the thread's memory hold what its turns have stored; -1 if it cannot, and is as it was. */
static int relay_commit(struct relay *y)
{
	int changed = 0;
	if (turn_commit(&y->t)) return -1;
	for (int i = 0; i < y->loop_count; i++)
		for (int k = 0; k < y->t.cell_count; k++) {
			const struct turn_cell *cell = &y->t.cells[k];
			struct turn_loop *l = &y->loops[i].l;
			if (!cell->stored || cell->at + 8 <= l->start || cell->at >= l->start + (uint64_t)l->size) continue;
			l->right = 0;
			changed = 1;
		}
	if (changed) drop_blocks(&y->t.blocks); /* code is read where it is */
	return 0;
}

/* A thread that is stopped at a loop's head, with the registers `y->t.r`: it is taken to where it gets to, and goes on or is parked.
 * NO_TURNS if it is left as it is; -1 with an exception. */
static int relay_step(struct relay *y, struct relay_thread *thread, int loop)
{
	unsigned char path[TURN_PATH], seen[TURN_PATH] = {0};
	uint64_t head[sizeof y->t.r / 8], ns = 0;
	int length, found, next, arrived, travelled = 0;
	y->forecast.tid = 0;
	begin_turns(&y->t);
	y->t.blocks.keeps = y->calm++ >= RELAY_CALM;
	for (;;) {
		memcpy(head, y->t.r, sizeof head);
		length = 0, ns = 0;
		found = go_round(&y->t, &y->loops[loop].l, path, &length);
		if (found == LOOP_SPINS) {
			memset(seen, 0, sizeof seen);
			for (int i = 0; i < length; i++) {
				ns += seen[path[i]] ? 0 : y->spin_ns;
				seen[path[i]] = 1;
			}
			if (ns > y->spin_most) ns = y->spin_most;
			if (y->now + ns >= y->limit) found = NO_TURNS;
		}
		arrived = 0;
		if (found == LOOP_LEFT) {
			if ((arrived = relay_travel(y, thread, &next)) < 0) return -1;
			if (!arrived || relay_commit(y)) { /* what it has done up to there is done once more, from where it was */
				arrived = 0;
				memcpy(y->t.r, head, sizeof head);
				begin_turns(&y->t);
				found = go_round(&y->t, &y->loops[loop].l, path, &length);
			}
		}
		if (!arrived && (!found || relay_commit(y))) {
			if (!travelled) return NO_TURNS;
			memcpy(y->t.r, head, sizeof head); /* it executes the breakpoint */
			return relay_go_on(y, thread);
		}
		y->loops[loop].visits++;
		y->steps += travelled;
		y->stops += travelled;
		if (!arrived) break;
		no_cells(&y->t);
		loop = next;
		travelled = 1;
	}
	if (found == LOOP_LEFT) return relay_go_on(y, thread);
	struct relay_watch *watch = &y->watches[thread - y->threads];
	watch->length = length;
	memcpy(watch->path, path, (size_t)length);
	watch->count = held_in(&y->t, watch->spans, watch->held);
	memcpy(thread->r, y->t.r, sizeof thread->r);
	thread->known = thread->parked = 1;
	thread->loop = loop;
	thread->state = RELAY_WAITS;
	thread->since = y->now;
	thread->order = y->order++;
	y->now += ns;
	y->loops[loop].spins++;
	return set_number(y->page->clock, &clocks, NOW, (long long)y->now) ? -1 : found;
}

static int relay_registers(struct relay *y, struct relay_thread *thread)
{
	y->t.tid = thread->tid;
	y->t.space = thread->space;
	if (thread->known) memcpy(y->t.r, thread->r, sizeof y->t.r);
	else if (ptrace(PTRACE_GETREGS, thread->tid, NULL, y->t.r)) return -1;
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
		if (relay_registers(y, thread)) return NO_TURNS;
		if ((loop = relay_loop_at(y, thread->space, --y->t.r[W_RIP])) < 0) return NO_TURNS;
		if (y->forecast.tid == thread->tid) relay_compare(y);
		if ((found = relay_step(y, thread, loop)) <= 0) return found;
		y->steps++;
		y->stops++;
		y->stopped = 0;
		if (found == LOOP_SPINS) return found;
	}
}

/* Whether a piece of a thread's memory holds some bytes, as far as it is known here. */
static int relay_piece(struct relay *y, const struct relay_thread *thread, uint64_t at, const char *bytes, uint64_t size)
{
	for (uint64_t part; size; at += part, bytes += part, size -= part) {
		uint64_t offset = at & (BLOCK - 1);
		const struct block *block = block_at(&y->t.blocks, thread->tid, thread->space, at);
		part = size < BLOCK - offset ? size : BLOCK - offset;
		if (!block || memcmp(block->held + offset, bytes, part)) return 0;
	}
	return 1;
}

/* Whether what a parked thread waits for is as it was; -1 with an exception. */
static int relay_waits(struct relay *y, const struct relay_thread *thread)
{
	const struct relay_watch *watch = &y->watches[thread - y->threads];
	int same = 1;
	if (!y->t.blocks.keeps && !thread->parked) return is_still_held(thread->tid, thread->watched);
	if (!y->t.blocks.keeps) return are_still_held(thread->tid, watch->spans, watch->held, watch->count);
	for (int i = 0; thread->parked && same && i < watch->count; i++)
		same = relay_piece(y, thread, watch->spans[i].at, (const char *)&watch->held[i], watch->spans[i].length);
	for (Py_ssize_t i = 0; !thread->parked && same && i < PyTuple_GET_SIZE(thread->watched); i++) {
		unsigned long long at;
		const char *bytes;
		Py_ssize_t size;
		if (!PyArg_ParseTuple(PyTuple_GET_ITEM(thread->watched, i), "Ky#", &at, &bytes, &size)) return -1;
		same = relay_piece(y, thread, at, bytes, (uint64_t)size);
	}
	return same;
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
		int held = next == parked ? 1 : relay_waits(y, next);
		if (held < 0) { *failed = 1; return NULL; }
		if (held) continue;
		next->state = RELAY_READY;
		if (y->now > next->since && spend_cpu(next->cpu, (long long)(y->now - next->since))) {
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
		int loop = relay_registers(y, thread) ? -1 : relay_loop_at(y, thread->space, y->t.r[W_RIP]);
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
		struct relay_watch *watch = &y->watches[i];
		PyObject *path = each->parked ? PyBytes_FromStringAndSize((char *)watch->path, watch->length) : Py_NewRef(Py_None);
		PyObject *held = each->parked ? watched_as(watch->spans, watch->held, watch->count) : Py_NewRef(Py_None);
		PyObject *one = path && held ? Py_BuildValue("(ilKiiOO)", each->state, each->order, (unsigned long long)each->since,
							     each->chosen, each->loop, path, held) : NULL;
		Py_XDECREF(path);
		Py_XDECREF(held);
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

static int relay_begin(struct relay *y, long ready, PyObject *threads, PyObject *grounds, PyObject *loops)
{
	if (PyTuple_GET_SIZE(threads) > RELAY_THREADS || PyTuple_GET_SIZE(loops) > RELAY_LOOPS || PyTuple_GET_SIZE(grounds) > RELAY_THREADS) {
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
		each->state = y->count > ready ? RELAY_WAITS : RELAY_READY;
		each->order = y->order++;
	}
	for (; y->ground_count < PyTuple_GET_SIZE(grounds); y->ground_count++) {
		struct relay_ground *each = &y->grounds[y->ground_count];
		if (!PyArg_ParseTuple(PyTuple_GET_ITEM(grounds, y->ground_count), "OO!", &each->source, &PyByteArray_Type, &each->places)) return -1;
		if (PyByteArray_GET_SIZE(each->places) != GROUND_HEAD + (Py_ssize_t)(GROUND_PLACES * sizeof *each->all)) {
			PyErr_SetString(PyExc_ValueError, "the ground has another size");
			return -1;
		}
		each->head = PyByteArray_AS_STRING(each->places);
		each->all = (void *)(each->head + GROUND_HEAD);
	}
	for (; y->loop_count < PyTuple_GET_SIZE(loops); y->loop_count++) {
		struct relay_loop *each = &y->loops[y->loop_count];
		PyObject *instructions, *start, *code;
		if (!PyArg_ParseTuple(PyTuple_GET_ITEM(loops, y->loop_count), "iOOO", &each->space, &instructions, &start, &code) ||
		    turn_loop(&each->l, instructions, start, code))
			return -1;
		if (each->l.count) y->heads |= head_bit(each->l.all->address);
	}
	return 0;
}

/* relay((listener, control, timeout_ms), ((tid, space, cpu, since, watched), ...), ((ground, its places), ...),
 *       ((space, instructions, start, code), ...), page, (limit, spin_ns, spin_most_ns), (ready, crowd)) -> None, or
 * (tid that has stopped or 0, status, stops, ((state, order, since, chosen, loop, path, watched), ...), ((visits, spins), ...))
 *
 * The first thread goes on, `ready` more are, the others are parked, in this order.  More than one is ready only in the first `crowd` steps. */
static PyObject *relay(PyObject *self, PyObject *args)
{
	static struct relay y;
	PyObject *threads, *grounds, *loops, *page;
	unsigned long long limit, spin_ns, spin_most;
	long long now;
	long ready;
	memset(&y, 0, offsetof(struct relay, t));
	if (!PyArg_ParseTuple(args, "(iil)O!O!O!O!(KKK)(ll)", &y.listener, &y.control, &y.ms, &PyTuple_Type, &threads, &PyTuple_Type,
			      &grounds, &PyTuple_Type, &loops, &page_type, &page, &limit, &spin_ns, &spin_most, &ready, &y.most_steps))
		return NULL;
	y.page = (struct page *)page;
	if (relay_begin(&y, ready, threads, grounds, loops) || number(y.page->clock, &clocks, NOW, &now)) return NULL;
	y.now = (uint64_t)now, y.limit = limit, y.spin_ns = spin_ns, y.spin_most = spin_most;
	forget_thread();
	end_receiving();
	begin_blocks(&y.t.blocks);
	int found = y.count && y.page->shown->now == y.page->now ? relay_all(&y) : 0;
	end_blocks(&y.t.blocks);
	for (int i = 0; i < y.count; i++)
		if (y.threads[i].known) ptrace(PTRACE_SETREGS, y.threads[i].tid, NULL, y.threads[i].r); /* it may be dead */
	forget_thread();
	return found < 0 ? NULL : found ? relay_result(&y) : Py_NewRef(Py_None);
}
