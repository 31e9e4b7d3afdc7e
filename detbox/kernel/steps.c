/* Single steps of a stopped thread. */

/* The bytes at an address, as many as are mapped of up to n. */
static ssize_t code_at(pid_t tid, unsigned long addr, unsigned char *code, size_t n)
{
	size_t in_page = PAGE - addr % PAGE;
	struct iovec l = {code, n};
	struct iovec r[2] = {{(void *)addr, n < in_page ? n : in_page}, {(void *)(addr + in_page), n < in_page ? 0 : n - in_page}};
	return process_vm_readv(tid, &l, 1, r, 2, 0);
}

/* Index of the opcode behind legacy and REX prefixes. */
static ssize_t opcode_at(const unsigned char *code, ssize_t n)
{
	ssize_t i = 0;
	while (i < n && code[i] && strchr("\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3", code[i])) i++;
	if (i < n && (code[i] & 0xf0) == 0x40) i++;
	return i;
}

/* Takes the trap flag out of the flags that a stepped pushf has pushed: a later
 * popf would hand it to the guest. */
static void mend_pushed_flags(pid_t tid)
{
	unsigned long rsp = (unsigned long)ptrace(PTRACE_PEEKUSER, tid, offsetof(struct user_regs_struct, rsp), NULL);
	uint16_t flags;
	struct iovec l = {&flags, sizeof flags}, r = {(void *)rsp, sizeof flags};
	if (process_vm_readv(tid, &l, 1, &r, 1, 0) != sizeof flags) return;
	flags &= (uint16_t)~0x100;
	process_vm_writev(tid, &l, 1, &r, 1, 0);
}

enum { TRAP_BIT = 1 << (SIGTRAP - 1) };

/* The end of a step is a SIGTRAP.  Where that is blocked the kernel would open it for good and take its handler
 * away (kernel/signal.c, force_sig_info_to_task): it is opened for the step alone.  The mask before, or 0 if nothing
 * was changed.  Steps over calls may change the mask themselves, and are left to the kernel. */
static uint64_t open_trap(pid_t tid)
{
	uint64_t mask;
	if (ptrace(PTRACE_GETSIGMASK, tid, sizeof mask, &mask) || !(mask & TRAP_BIT)) return 0;
	unsigned char code[8] = {0};
	unsigned long rip = (unsigned long)ptrace(PTRACE_PEEKUSER, tid, offsetof(struct user_regs_struct, rip), NULL);
	ssize_t at = opcode_at(code, code_at(tid, rip, code, sizeof code - 1));
	if (code[at] == 0x0f && code[at + 1] == 0x05) return 0;
	uint64_t open = mask & ~(uint64_t)TRAP_BIT;
	return ptrace(PTRACE_SETSIGMASK, tid, sizeof open, &open) ? 0 : mask;
}

static void close_trap(pid_t tid, uint64_t mask)
{
	if (mask) ptrace(PTRACE_SETSIGMASK, tid, sizeof mask, &mask);
}

/* Whether a stop is the end of a step, and not a SIGTRAP of the program's own.  TRAP_BRKPT is the end of a step over a
 * call, and of any step (once in 200,000) where a nested virtual machine loses the reason in DR6.  icebp (`code`
 * 0xf1) has it, too; int3 has not. */
static int step_ended(pid_t tid, int status, unsigned char code)
{
	siginfo_t si;
	return WIFSTOPPED(status) && status >> 8 == SIGTRAP && !ptrace(PTRACE_GETSIGINFO, tid, NULL, &si)
	       && (si.si_code == TRAP_TRACE || (si.si_code == TRAP_BRKPT && code != 0xf1));
}

/* single_step(tid) -> (wait status, whether one instruction was executed and nothing else happened, registers):
 * waits for the stop.  Registers are empty if the thread is gone. */
static PyObject *single_step(PyObject *self, PyObject *args)
{
	int tid, status;
	struct user_regs_struct r;
	forget_thread();
	if (!PyArg_ParseTuple(args, "i", &tid)) return NULL;
	uint64_t mask = open_trap(tid);
	if (ptrace(PTRACE_SINGLESTEP, tid, NULL, NULL)) return fail();
	while (waitpid(tid, &status, __WALL) < 0)
		if (errno != EINTR) return fail();
	if (!WIFSTOPPED(status) || ptrace(PTRACE_GETREGS, tid, NULL, &r)) return Py_BuildValue("iOy", status, Py_False, "");
	close_trap(tid, mask);
	PyObject *ended = step_ended(tid, status, 0) ? Py_True : Py_False;
	return Py_BuildValue("iOy#", status, ended, (char *)&r, (Py_ssize_t)sizeof r);
}

enum { STEPPED_ALL, BEFORE_CALL, OTHER_STOP };

/* While two threads only wake each other, one processor serves them best: a step
 * costs 4 us on one, and 20 us across two (the other has to be woken). */
struct meeting { cpu_set_t own, other; int moved; };

static void meet(pid_t tid, struct meeting *m)
{
	cpu_set_t here;
	CPU_ZERO(&here);
	CPU_SET(sched_getcpu(), &here);
	m->moved = !sched_getaffinity(0, sizeof m->own, &m->own) && !sched_getaffinity(tid, sizeof m->other, &m->other)
		   && !sched_setaffinity(tid, sizeof here, &here) && !sched_setaffinity(0, sizeof here, &here);
}

static void part(pid_t tid, const struct meeting *m)
{
	if (!m->moved) return;
	sched_setaffinity(0, sizeof m->own, &m->own);
	sched_setaffinity(tid, sizeof m->other, &m->other);
}

/* Whether a call that comes next is no reason to stop at when a thread is surveyed; as in detbox/spin/walk.py. */
static int tells_only(pid_t tid, unsigned long nr)
{
	struct user_regs_struct r;
	uint64_t mask, wanted = 0;
	if (nr == SYS_getpid || nr == SYS_gettid) return 1;
	if (nr != SYS_rt_sigprocmask || ptrace(PTRACE_GETREGS, tid, NULL, &r) || r.r10 != sizeof mask) return 0;
	struct iovec l = {&wanted, sizeof wanted}, from = {(void *)r.rsi, sizeof wanted};
	if (r.rsi && process_vm_readv(tid, &l, 1, &from, 1, 0) != sizeof wanted) return 0;
	return !ptrace(PTRACE_GETSIGMASK, tid, sizeof mask, &mask) && !((mask | wanted) & TRAP_BIT);
}

/* One step of a stopped thread.  `known` has a nonzero byte for each number of a call that may be stepped
 * over (NULL: those of tells_only()); the thread is left before any other (one that waits for a reply would never end its step).
 * STEPPED_ALL, BEFORE_CALL, OTHER_STOP with the wait status, or -1 with errno. */
static int one_step(pid_t tid, const unsigned char *known, size_t numbers, int *status)
{
	unsigned char code[8] = {0};
	errno = 0;
	unsigned long rip = (unsigned long)ptrace(PTRACE_PEEKUSER, tid, offsetof(struct user_regs_struct, rip), NULL);
	int gone = errno == ESRCH;
	ssize_t got = code_at(tid, rip, code, sizeof code - 1);
	ssize_t at = opcode_at(code, got);
	/* The vsyscall page makes calls without such an instruction, and cannot be read. */
	if (rip >> 63 && !gone) return BEFORE_CALL;
	if (code[at] == 0x0f && code[at + 1] == 0x05) {
		unsigned long nr = (unsigned long)ptrace(PTRACE_PEEKUSER, tid, offsetof(struct user_regs_struct, rax), NULL);
		if (known ? nr >= numbers || !known[nr] : !tells_only(tid, nr)) return BEFORE_CALL;
	}
	uint64_t mask = open_trap(tid);
	/* ESRCH: it was killed meanwhile, and its end can be waited for. */
	if (ptrace(PTRACE_SINGLESTEP, tid, NULL, NULL) && errno != ESRCH) return -1;
	pid_t r;
	while ((r = waitpid(tid, status, __WALL)) < 0 && errno == EINTR);
	if (r < 0) return -1;
	close_trap(tid, mask);
	if (!step_ended(tid, *status, code[at])) return OTHER_STOP;
	if (at < got && code[at] == 0x9c) mend_pushed_flags(tid);
	return STEPPED_ALL;
}

/* step_many(tid, count, known) -> (steps, wait status, why): single-steps a stopped thread; `known` as in
 * one_step().  why: 0 all steps done; 1 before a call that is not known; 2 another stop or the thread's end,
 * which the wait status describes. */
static PyObject *step_many(PyObject *self, PyObject *args)
{
	int tid, status = 0, why = STEPPED_ALL;
	long count, done = 0;
	Py_buffer known;
	struct meeting place;
	forget_thread();
	if (!PyArg_ParseTuple(args, "ily*", &tid, &count, &known)) return NULL;
	meet(tid, &place);
	while (done < count && (why = one_step(tid, known.buf, (size_t)known.len, &status)) == STEPPED_ALL) done++;
	int err = errno;
	part(tid, &place);
	PyBuffer_Release(&known);
	if (why < 0) return fail_with(err);
	return Py_BuildValue("lii", done, status, why);
}

/* The registers that a program computes with, at one moment. */
struct moment { uint64_t rip, values[16]; };
enum { MOST_MOMENTS = 4096 };

static int look_at(pid_t tid, struct moment *m)
{
	struct user_regs_struct r;
	if (ptrace(PTRACE_GETREGS, tid, NULL, &r)) return -1;
	*m = (struct moment){r.rip, {r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11,
				     r.r12, r.r13, r.r14, r.r15}};
	return 0;
}

/* How often a turn may come to the same program counter, in a function that it calls at several places. */
enum { MOST_VISITS = 4 };

/* Whether registers that were `before`, and `earlier` before that (NULL: not known; they must be the same), changed by the same steps. */
static int same_steps(const struct moment *last, const struct moment *before, const struct moment *earlier)
{
	for (size_t i = 0; i < sizeof last->values / sizeof *last->values; i++) {
		uint64_t step = earlier ? before->values[i] - earlier->values[i] : 0;
		if (last->values[i] - before->values[i] != step) return 0;
	}
	return 1;
}

/* Whether the last moments of the same program counter are those of turns that are alike, of one to MOST_VISITS visits each. */
static int regular(const struct moment *every, long count)
{
	const struct moment *last = &every[count - 1], *before[2 * MOST_VISITS] = {NULL};
	int found = 0;
	for (const struct moment *m = last; m-- > every && found < 2 * MOST_VISITS;)
		if (m->rip == last->rip) before[found++] = m;
	for (int visits = 1; visits <= MOST_VISITS && visits <= found; visits++)
		if (same_steps(last, before[visits - 1], before[2 * visits - 1])) return 1;
	return 0;
}

/* survey(tid, count) -> (steps, wait status, why, regular): single-steps a thread as step_many() does, up to
 * any call but those of tells_only(), and tells whether its last turns were alike, at the end or a quarter before it: one
 * of the two is not just where an inner loop begins anew, which surveys as long as the outer loop would meet again and again. */
static PyObject *survey(PyObject *self, PyObject *args)
{
	static struct moment every[MOST_MOMENTS];
	int tid, status = 0, why = STEPPED_ALL;
	long count, done = 0;
	struct meeting place;
	forget_thread();
	if (!PyArg_ParseTuple(args, "il", &tid, &count)) return NULL;
	if (count > MOST_MOMENTS) count = MOST_MOMENTS;
	meet(tid, &place);
	while (done < count && !look_at(tid, &every[done]) && (why = one_step(tid, NULL, 0, &status)) == STEPPED_ALL) done++;
	int err = errno;
	part(tid, &place);
	if (why < 0) return fail_with(err);
	int alike = done > 0 && (regular(every, done) || regular(every, done - done / 4));
	return Py_BuildValue("liiO", done, status, why, alike ? Py_True : Py_False);
}
