/* Executes the turns of a loop that is known to wait, for a thread that has arrived at it: what single steps would do
 * for some 25 us each.  detbox/spin/turns.py tells when that is done and what follows from it.
 *
 * Nothing of the thread is changed before it is known where it gets to.  What is not stated here exactly (an
 * instruction, memory that cannot be read, a loop that does not come back to a state within some turns) gives no result,
 * and the thread is walked.
 */
enum { TURN_CELLS = 64, TURN_PLACES = 256, TURN_SPANS = 64, TURN_MOST = 6, TURN_STEPS = 600, TURN_PATH = 256 };

/* Numbers of words in struct user_regs_struct. */
enum { W_RBP = 4, W_RAX = 10, W_RDX = 12, W_RIP = 16, W_EFLAGS = 18, W_RSP = 19, W_NONE = 255 };
enum { F_CF = 1, F_PF = 4, F_AF = 0x10, F_ZF = 0x40, F_SF = 0x80, F_OF = 0x800, F_ALL = 0x8d5 };

/* As in detbox/spin/turns.py. */
enum { T_UNKNOWN, T_NOP, T_MOV, T_MOVSX, T_LEA, T_ADD, T_SUB, T_AND, T_OR, T_XOR, T_CMP, T_TEST, T_INC, T_DEC, T_NEG, T_NOT,
       T_XCHG, T_XADD, T_CMPXCHG, T_JUMP, T_BRANCH, T_CALL, T_RET, T_PUSH, T_POP, T_LEAVE, T_SET, T_CMOV, T_CDQE, T_SHL, T_SHR, T_SAR, T_IMUL,
       T_MUL, T_DIV, T_IDIV, T_CDQ };
enum { O_NONE, O_REG, O_MEM, O_IMM };

struct turn_operand {
	uint8_t kind, width, word, index, scale, segment, unused[2];
	int64_t value; /* an immediate, or what is added to an address */
};

struct turn_instruction {
	uint64_t address;
	uint8_t size, what, condition, locked;
	uint32_t seen; /* relay.c: the processor has done the same */
	struct turn_operand a, b;
};

/* Eight aligned bytes of the thread's memory: as they are, as they have become, and at the head of the turn before. */
struct turn_cell { uint64_t at, original, value, before; uint8_t stored, changed, locked; };
struct turn_span { uint64_t at, length; };

struct turns {
	pid_t tid;
	int space;
	uint64_t r[sizeof(struct user_regs_struct) / 8];
	struct turn_cell cells[TURN_CELLS];
	struct turn_span spans[TURN_SPANS];
	int cell_count, span_count, bad;
	uint8_t places[TURN_PLACES]; /* a cell's number, from 1 on */
	uint64_t open; /* flags that instructions have left undefined: what depends on them is not executed */
	struct blocks blocks;
};

static uint64_t low_bits(uint64_t value, int width)
{
	return width == 8 ? value : value & ((1ULL << 8 * width) - 1);
}

static struct turn_cell *turn_cell(struct turns *t, uint64_t at)
{
	unsigned place = (unsigned)(at >> 3 ^ at >> 11) % TURN_PLACES;
	for (; t->places[place]; place = (place + 1) % TURN_PLACES)
		if (t->cells[t->places[place] - 1].at == at) return &t->cells[t->places[place] - 1];
	uint64_t word;
	const struct block *block = t->cell_count == TURN_CELLS ? NULL : block_at(&t->blocks, t->tid, t->space, at);
	if (!block) { t->bad = 1; return NULL; }
	memcpy(&word, block->held + (at & (BLOCK - 1)), 8);
	t->cells[t->cell_count] = (struct turn_cell){at, word, word, word, 0, 0, 0};
	t->places[place] = (uint8_t)(t->cell_count + 1);
	return &t->cells[t->cell_count++];
}

static void used_span(struct turns *t, uint64_t at, int width)
{
	for (int i = 0; i < t->span_count; i++)
		if (t->spans[i].at == at && t->spans[i].length == (uint64_t)width) return;
	if (t->span_count == TURN_SPANS) t->bad = 1;
	else t->spans[t->span_count++] = (struct turn_span){at, (uint64_t)width};
}

static uint64_t turn_load(struct turns *t, uint64_t at, int width)
{
	uint64_t value = 0;
	used_span(t, at, width);
	for (int done = 0, part; done < width; done += part) {
		const struct turn_cell *cell = turn_cell(t, (at + (uint64_t)done) & ~7ULL);
		int offset = (int)(at + (uint64_t)done) & 7;
		if (!cell) return 0;
		part = width - done < 8 - offset ? width - done : 8 - offset;
		value |= low_bits(cell->value >> 8 * offset, part) << 8 * done;
	}
	return value;
}

static void turn_store(struct turns *t, uint64_t at, int width, uint64_t value, int locked)
{
	used_span(t, at, width);
	for (int done = 0, part; done < width; done += part) {
		struct turn_cell *cell = turn_cell(t, (at + (uint64_t)done) & ~7ULL);
		int offset = (int)(at + (uint64_t)done) & 7;
		if (!cell) return;
		part = width - done < 8 - offset ? width - done : 8 - offset;
		cell->value = (cell->value & ~(low_bits(~0ULL, part) << 8 * offset)) | low_bits(value >> 8 * done, part) << 8 * offset;
		cell->stored = 1;
		cell->locked |= (uint8_t)locked;
		if (cell->value != cell->original) cell->changed = 1;
	}
}

static uint64_t turn_address(const struct turns *t, const struct turn_operand *o)
{
	uint64_t at = (uint64_t)o->value;
	if (o->word != W_NONE) at += t->r[o->word];
	if (o->index != W_NONE) at += t->r[o->index] * o->scale;
	if (o->segment != W_NONE) at += t->r[o->segment];
	return at;
}

static uint64_t value_of(struct turns *t, const struct turn_operand *o)
{
	if (o->kind == O_REG) return low_bits(t->r[o->word], o->width);
	if (o->kind == O_IMM) return low_bits((uint64_t)o->value, o->width);
	if (o->kind == O_MEM) return turn_load(t, turn_address(t, o), o->width);
	t->bad = 1;
	return 0;
}

static void give(struct turns *t, const struct turn_operand *o, uint64_t value, int locked)
{
	if (o->kind == O_MEM) turn_store(t, turn_address(t, o), o->width, value, locked);
	else if (o->kind != O_REG) t->bad = 1;
	else if (o->width >= 4) t->r[o->word] = low_bits(value, o->width);
	else t->r[o->word] = (t->r[o->word] & ~low_bits(~0ULL, o->width)) | low_bits(value, o->width);
}

static void set_flags(struct turns *t, uint64_t which, uint64_t result, int width, uint64_t others)
{
	uint64_t flags = others;
	if (!low_bits(result, width)) flags |= F_ZF;
	if (result >> (8 * width - 1) & 1) flags |= F_SF;
	if (!__builtin_parity((unsigned)(result & 0xff))) flags |= F_PF;
	t->r[W_EFLAGS] = (t->r[W_EFLAGS] & ~which) | (flags & which);
	t->open &= ~which;
}

static uint64_t sum_of(struct turns *t, uint64_t a, uint64_t b, int width, uint64_t which)
{
	uint64_t sum = low_bits(a + b, width), top = 8 * (uint64_t)width - 1;
	set_flags(t, which, sum, width, (sum < a ? F_CF : 0) | ((a ^ b ^ sum) & 0x10) | (((a ^ sum) & (b ^ sum)) >> top & 1 ? F_OF : 0));
	return sum;
}

static uint64_t difference_of(struct turns *t, uint64_t a, uint64_t b, int width, uint64_t which)
{
	uint64_t left = low_bits(a - b, width), top = 8 * (uint64_t)width - 1;
	set_flags(t, which, left, width, (a < b ? F_CF : 0) | ((a ^ b ^ left) & 0x10) | (((a ^ b) & (a ^ left)) >> top & 1 ? F_OF : 0));
	return left;
}

/* The conditions in the order of their opcodes: o, no, b, nb, z, nz, be, nbe, s, ns, p, np, l, nl, le, nle. */
static int holds(struct turns *t, int condition)
{
	static const uint64_t used[] = {F_OF, F_CF, F_ZF, F_CF | F_ZF, F_SF, F_PF, F_SF | F_OF, F_ZF | F_SF | F_OF};
	uint64_t f = t->r[W_EFLAGS];
	if (t->open & used[condition >> 1 & 7]) t->bad = 1;
	int less = !(f & F_SF) != !(f & F_OF), met = 0;
	switch (condition >> 1) {
	case 0: met = !!(f & F_OF); break;
	case 1: met = !!(f & F_CF); break;
	case 2: met = !!(f & F_ZF); break;
	case 3: met = !!(f & (F_CF | F_ZF)); break;
	case 4: met = !!(f & F_SF); break;
	case 5: met = !!(f & F_PF); break;
	case 6: met = less; break;
	default: met = less || f & F_ZF;
	}
	return met ^ (condition & 1);
}

static void turn_push(struct turns *t, uint64_t value)
{
	t->r[W_RSP] -= 8;
	turn_store(t, t->r[W_RSP], 8, value, 0);
}

static uint64_t turn_pop(struct turns *t)
{
	uint64_t value = turn_load(t, t->r[W_RSP], 8);
	t->r[W_RSP] += 8;
	return value;
}

static int64_t signed_of(uint64_t value, int width)
{
	return (int64_t)(value << (64 - 8 * width)) >> (64 - 8 * width);
}

static void shift_by(struct turns *t, const struct turn_instruction *i)
{
	int width = i->a.width, bits = 8 * width, by = (int)(value_of(t, &i->b) & (width == 8 ? 63 : 31));
	uint64_t x = value_of(t, &i->a), result, carry, over;
	if (width < 4 || i->b.width == 0) t->bad = 1;
	if (t->bad) return;
	if (!by) { give(t, &i->a, x, 0); return; }
	if (i->what == T_SHL) {
		result = low_bits(x << by, width);
		carry = x >> (bits - by) & 1;
		over = (result >> (bits - 1) & 1) ^ carry;
	} else {
		result = i->what == T_SHR ? x >> by : low_bits((uint64_t)(signed_of(x, width) >> by), width);
		carry = x >> (by - 1) & 1;
		over = i->what == T_SHR ? x >> (bits - 1) & 1 : 0;
	}
	set_flags(t, F_ALL & ~F_AF, result, width, (carry ? F_CF : 0) | (over ? F_OF : 0));
	t->open |= by == 1 ? F_AF : F_AF | F_OF;
	give(t, &i->a, result, 0);
}

/* Two factors; with three operands one is where the first has its immediate. */
static void multiply(struct turns *t, const struct turn_instruction *i)
{
	int width = i->a.width;
	uint64_t x = i->condition ? (uint64_t)i->a.value : value_of(t, &i->a);
	if (width < 4) t->bad = 1;
	__int128 product = (__int128)signed_of(low_bits(x, width), width) * signed_of(value_of(t, &i->b), width);
	uint64_t result = low_bits((uint64_t)product, width);
	set_flags(t, F_CF | F_OF, result, width, product != signed_of(result, width) ? F_CF | F_OF : 0);
	t->open |= F_ALL & ~(uint64_t)(F_CF | F_OF);
	give(t, &i->a, result, 0);
}

/* rax by an operand, or eax: the upper half is in rdx. */
static void multiply_wide(struct turns *t, const struct turn_instruction *i)
{
	int width = i->a.width;
	if (width < 4) t->bad = 1;
	unsigned __int128 product = (unsigned __int128)low_bits(t->r[W_RAX], width) * value_of(t, &i->a);
	uint64_t high = low_bits((uint64_t)(product >> 8 * width), width);
	set_flags(t, F_CF | F_OF, 0, width, high ? F_CF | F_OF : 0);
	t->open |= F_ALL & ~(uint64_t)(F_CF | F_OF);
	t->r[W_RAX] = low_bits((uint64_t)product, width);
	t->r[W_RDX] = high;
}

/* rdx:rax by an operand, or edx:eax; what raises an exception is left to the processor. */
static void divide(struct turns *t, const struct turn_instruction *i)
{
	int width = i->a.width;
	uint64_t by = value_of(t, &i->a);
	if (width < 4 || !by) t->bad = 1;
	if (t->bad) return;
	unsigned __int128 whole = (unsigned __int128)low_bits(t->r[W_RDX], width) << 8 * width | low_bits(t->r[W_RAX], width);
	uint64_t quotient, rest;
	if (i->what == T_DIV) {
		if (whole >> 8 * width >= by) { t->bad = 1; return; }
		quotient = (uint64_t)(whole / by), rest = (uint64_t)(whole % by);
	} else {
		/* Quotients of one bit more are looked at, too. */
		__int128 from = width == 8 ? (__int128)whole : (int64_t)whole, to = signed_of(by, width);
		if (from == (__int128)((unsigned __int128)1 << 127)) { t->bad = 1; return; }
		quotient = (uint64_t)(from / to), rest = (uint64_t)(from % to);
		if (from / to != signed_of(low_bits(quotient, width), width)) { t->bad = 1; return; }
	}
	t->open |= F_ALL;
	t->r[W_RAX] = low_bits(quotient, width);
	t->r[W_RDX] = low_bits(rest, width);
}

/* Compares with the accumulator, and replaces what is in memory only if it is equal. */
static void compare_and_exchange(struct turns *t, const struct turn_instruction *i)
{
	uint64_t held = value_of(t, &i->a), wanted = low_bits(t->r[W_RAX], i->a.width);
	struct turn_operand accumulator = {.kind = O_REG, .width = i->a.width, .word = W_RAX};
	difference_of(t, wanted, held, i->a.width, F_ALL);
	/* What becomes of the upper half of rax then is not the same on all processors. */
	if (held == wanted && i->a.width == 4 && t->r[W_RAX] >> 32) t->bad = 1;
	give(t, &i->a, held == wanted ? value_of(t, &i->b) : held, 1);
	if (held != wanted) give(t, &accumulator, held, 0);
}

static void turn_step(struct turns *t, const struct turn_instruction *i)
{
	const struct turn_operand *a = &i->a, *b = &i->b;
	uint64_t next = i->address + i->size, x, y;
	switch (i->what) {
	case T_NOP: break;
	case T_MOV: give(t, a, value_of(t, b), 0); break;
	case T_MOVSX: give(t, a, (uint64_t)signed_of(value_of(t, b), b->width), 0); break;
	case T_LEA:
		t->bad |= b->kind != O_MEM;
		give(t, a, turn_address(t, b), 0);
		break;
	case T_ADD: x = value_of(t, a); give(t, a, sum_of(t, x, value_of(t, b), a->width, F_ALL), i->locked); break;
	case T_SUB: x = value_of(t, a); give(t, a, difference_of(t, x, value_of(t, b), a->width, F_ALL), i->locked); break;
	case T_CMP: x = value_of(t, a); difference_of(t, x, value_of(t, b), a->width, F_ALL); break;
	case T_INC: give(t, a, sum_of(t, value_of(t, a), 1, a->width, F_ALL & ~F_CF), i->locked); break;
	case T_DEC: give(t, a, difference_of(t, value_of(t, a), 1, a->width, F_ALL & ~F_CF), i->locked); break;
	case T_NEG: give(t, a, difference_of(t, 0, value_of(t, a), a->width, F_ALL), i->locked); break;
	case T_NOT: give(t, a, ~value_of(t, a), i->locked); break;
	/* These leave AF open; all processors clear it. */
	case T_AND: x = value_of(t, a) & value_of(t, b); set_flags(t, F_ALL, x, a->width, 0); give(t, a, x, i->locked); break;
	case T_OR: x = value_of(t, a) | value_of(t, b); set_flags(t, F_ALL, x, a->width, 0); give(t, a, x, i->locked); break;
	case T_XOR: x = value_of(t, a) ^ value_of(t, b); set_flags(t, F_ALL, x, a->width, 0); give(t, a, x, i->locked); break;
	case T_TEST: set_flags(t, F_ALL, value_of(t, a) & value_of(t, b), a->width, 0); break;
	case T_XCHG: x = value_of(t, a); y = value_of(t, b); give(t, a, y, 1); give(t, b, x, 1); break;
	case T_XADD: x = value_of(t, a); y = value_of(t, b); give(t, b, x, 1); give(t, a, sum_of(t, x, y, a->width, F_ALL), 1); break;
	case T_CMPXCHG: compare_and_exchange(t, i); break;
	case T_JUMP: next = value_of(t, a); break;
	case T_BRANCH: if (holds(t, i->condition)) next = (uint64_t)a->value; break;
	case T_CALL: x = value_of(t, a); turn_push(t, next); next = x; break;
	case T_RET: next = turn_pop(t); break;
	case T_PUSH: turn_push(t, value_of(t, a)); break;
	case T_POP: give(t, a, turn_pop(t), 0); break;
	case T_LEAVE: t->r[W_RSP] = t->r[W_RBP]; t->r[W_RBP] = turn_pop(t); break;
	case T_SET: give(t, a, (uint64_t)holds(t, i->condition), 0); break;
	case T_CMOV: y = value_of(t, b); x = value_of(t, a); give(t, a, holds(t, i->condition) ? y : x, 0); break;
	case T_SHL: case T_SHR: case T_SAR: shift_by(t, i); break;
	case T_IMUL: multiply(t, i); break;
	case T_MUL: multiply_wide(t, i); break;
	case T_DIV: case T_IDIV: divide(t, i); break;
	case T_CDQE: t->r[W_RAX] = (uint64_t)signed_of(t->r[W_RAX], 4); break;
	case T_CDQ: x = i->condition; t->r[W_RDX] = low_bits(signed_of(t->r[W_RAX], (int)x) < 0 ? ~0ULL : 0, (int)x); break;
	default: t->bad = 1;
	}
	t->r[W_RIP] = next;
}

/* Writes what the turns have stored, in one call: where nothing may be written the thread would have taken a signal.
 * Memory is as it was if that fails. */
static int turn_commit(struct turns *t)
{
	struct iovec l[TURN_CELLS], r[TURN_CELLS];
	struct turn_cell *end = t->cells + t->cell_count, *each;
	unsigned long n = 0, i;
	for (each = t->cells; each < end; each++) {
		if (!each->stored || is_deferred(&t->blocks, t->space, each->at)) continue;
		l[n] = (struct iovec){&each->value, 8};
		r[n++] = (struct iovec){(void *)each->at, 8};
	}
	if (n && process_vm_writev(t->tid, l, n, r, n, 0) != (ssize_t)(8 * n)) {
		for (i = 0; i < n; i++) {
			l[i].iov_base = (char *)l[i].iov_base - offsetof(struct turn_cell, value) + offsetof(struct turn_cell, original);
			process_vm_writev(t->tid, &l[i], 1, &r[i], 1, 0);
		}
		return -1;
	}
	for (each = t->cells; each < end; each++)
		if (each->stored) block_stored(&t->blocks, t->space, each->at, each->value);
	return 0;
}

static int same_as_before(struct turns *t, const uint64_t *before)
{
	int same = !memcmp(t->r, before, sizeof t->r);
	for (int i = 0; i < t->cell_count; i++) {
		same = same && t->cells[i].value == t->cells[i].before;
		t->cells[i].before = t->cells[i].value;
	}
	return same;
}

static int by_place(const void *a, const void *b)
{
	const struct turn_span *x = a, *y = b;
	if (x->at != y->at) return x->at < y->at ? -1 : 1;
	return x->length < y->length ? -1 : x->length > y->length;
}

/* What memory holds at some places: ((address, bytes), ...). */
static PyObject *watched_as(const struct turn_span *spans, const uint64_t *held, int n)
{
	PyObject *all = PyTuple_New(n);
	for (int i = 0; all && i < n; i++) {
		PyObject *one = Py_BuildValue("(Ky#)", (unsigned long long)spans[i].at, (const char *)&held[i], (Py_ssize_t)spans[i].length);
		if (!one) { Py_DECREF(all); return NULL; }
		PyTuple_SET_ITEM(all, i, one);
	}
	return all;
}

/* What the turn depends on, in the order of addresses: how many places. */
static int held_in(struct turns *t, struct turn_span *spans, uint64_t *held)
{
	int n = t->span_count;
	qsort(t->spans, (size_t)n, sizeof *t->spans, by_place);
	memcpy(spans, t->spans, (size_t)n * sizeof *spans);
	for (int i = 0; i < n; i++) held[i] = turn_load(t, spans[i].at, (int)spans[i].length);
	return n;
}

/* A loop's instructions, its head first, and what is to be at `start`, breakpoints and all. */
struct turn_loop {
	const struct turn_instruction *all;
	Py_ssize_t count, size;
	const char *code;
	unsigned long start;
	int right; /* what lies there is that, since nobody has executed anything that was not followed here */
};

enum { NO_TURNS, LOOP_LEFT, LOOP_SPINS };

static int turn_loop(struct turn_loop *l, PyObject *instructions, PyObject *start, PyObject *code)
{
	if (!PyBytes_Check(instructions) || !PyBytes_Check(code)) {
		PyErr_SetString(PyExc_TypeError, "a loop is its instructions, where it starts and its code");
		return -1;
	}
	l->all = (const void *)PyBytes_AS_STRING(instructions);
	l->count = PyBytes_GET_SIZE(instructions) / (Py_ssize_t)sizeof *l->all;
	l->size = PyBytes_GET_SIZE(code);
	l->code = PyBytes_AS_STRING(code);
	l->start = PyLong_AsUnsignedLongMask(start);
	l->right = 0;
	return PyErr_Occurred() ? -1 : 0;
}

static void no_cells(struct turns *t)
{
	t->cell_count = t->span_count = 0;
	memset(t->places, 0, sizeof t->places);
}

static void begin_turns(struct turns *t)
{
	if (!t->blocks.keeps) begin_blocks(&t->blocks);
	no_cells(t);
	t->open = 0;
	t->bad = 0;
}

/* Where a thread gets to that is at the head, with the registers `t->r`: nothing of it is changed yet.  It goes the path
 * (numbers of instructions) over and over again if it spins. */
static int go_round(struct turns *t, struct turn_loop *l, unsigned char *path, int *went)
{
	uint64_t before[sizeof t->r / 8];
	unsigned char code[4096];
	int length = 0, steps = 0, turn = 0, spins = 0, low = 0;
	const struct turn_instruction *all = l->all, *end = all + l->count, *i;
	struct iovec here = {code, (size_t)l->size}, there = {(void *)l->start, (size_t)l->size};
	if (!l->count || l->count > TURN_PATH || l->size > (Py_ssize_t)sizeof code) return NO_TURNS;
	if (!l->right) {
		if (process_vm_readv(t->tid, &here, 1, &there, 1, 0) != l->size || memcmp(code, l->code, (size_t)l->size)) return NO_TURNS;
		l->right = 1;
	}
	uint64_t head = all->address;
	if (t->r[W_RIP] != head) return NO_TURNS;
	for (i = all; !t->bad; i++) {
		if (i >= end || i->address != t->r[W_RIP])
			for (i = all; i < end && i->address != t->r[W_RIP]; i++);
		if (i == end) break; /* it has left the loop */
		if (i == all) {
			if (t->open) return NO_TURNS;
			if (turn && (spins = same_as_before(t, before))) break;
			if (turn++ == TURN_MOST) return NO_TURNS;
			memcpy(before, t->r, sizeof before);
			t->span_count = length = low = 0;
			for (int c = 0; c < t->cell_count; c++) {
				t->cells[c].changed = t->cells[c].value != t->cells[c].original;
				t->cells[c].locked = 0;
			}
		}
		if (++steps > TURN_STEPS || length == TURN_PATH) return NO_TURNS;
		low |= i->address < head;
		path[length++] = (unsigned char)(i - all);
		turn_step(t, i);
	}
	/* The state that it is parked in has the lowest address, and of locks that it takes and gives back as few as possible. */
	if (t->bad || t->open || (spins && low)) return NO_TURNS;
	for (int c = 0; spins && c < t->cell_count; c++)
		if (t->cells[c].locked && t->cells[c].changed) return NO_TURNS;
	*went = length;
	return spins ? LOOP_SPINS : LOOP_LEFT;
}

/* take_turns(tid, instructions, start, code, registers, commit): of a stopped thread that is at the first instruction.
 * None: it has to be walked.  (registers,): it has left the loop, and has them now.  (registers, path, watched): it spins,
 * is at the loop's head, and goes the path over and over again as long as the memory holds that.
 * Without `commit` the thread is left as it is. */
static PyObject *take_turns(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
	static struct turns t;
	struct turn_loop l;
	struct turn_span spans[TURN_SPANS];
	uint64_t held[TURN_SPANS];
	unsigned char path[TURN_PATH];
	int length = 0;
	if (n != 6 || !PyBytes_Check(args[4]) || PyBytes_GET_SIZE(args[4]) != (Py_ssize_t)sizeof t.r) {
		PyErr_SetString(PyExc_TypeError, "take_turns(tid, instructions, start, code, registers, commit)");
		return NULL;
	}
	if (turn_loop(&l, args[1], args[2], args[3])) return NULL;
	t.tid = (pid_t)PyLong_AsLong(args[0]);
	int commit = PyObject_IsTrue(args[5]), found;
	if (PyErr_Occurred()) return NULL;
	memcpy(t.r, PyBytes_AS_STRING(args[4]), sizeof t.r);
	begin_turns(&t);
	if (!(found = go_round(&t, &l, path, &length))) Py_RETURN_NONE;
	if (commit) {
		forget_thread();
		if (turn_commit(&t)) Py_RETURN_NONE;
		if (ptrace(PTRACE_SETREGS, t.tid, NULL, t.r)) return fail();
	}
	if (found == LOOP_LEFT) return Py_BuildValue("(y#)", (char *)t.r, (Py_ssize_t)sizeof t.r);
	int count = held_in(&t, spans, held);
	return Py_BuildValue("(y#y#N)", (char *)t.r, (Py_ssize_t)sizeof t.r, (char *)path, (Py_ssize_t)length, watched_as(spans, held, count));
}

/* Whether a thread's memory still holds that: ((address, bytes), ...); -1 with an exception. */
static int is_still_held(pid_t tid, PyObject *watched)
{
	char now[4096];
	struct iovec r[TURN_SPANS], l = {now, 0};
	Py_ssize_t count = PyTuple_GET_SIZE(watched);
	for (Py_ssize_t done = 0, i = 0; done < count; done = i) {
		for (i = done, l.iov_len = 0; i < count && i - done < TURN_SPANS; i++) {
			PyObject *one = PyTuple_GET_ITEM(watched, i), *held = PyTuple_GET_ITEM(one, 1);
			size_t size = (size_t)PyBytes_GET_SIZE(held);
			if (l.iov_len + size > sizeof now) break;
			r[i - done] = (struct iovec){(void *)PyLong_AsUnsignedLongMask(PyTuple_GET_ITEM(one, 0)), size};
			l.iov_len += size;
		}
		if (PyErr_Occurred()) return -1;
		if (i == done) { PyErr_SetString(PyExc_ValueError, "too long"); return -1; }
		if (process_vm_readv(tid, &l, 1, r, (unsigned long)(i - done), 0) != (ssize_t)l.iov_len) return 0;
		const char *at = now;
		for (Py_ssize_t k = done; k < i; k++) {
			PyObject *held = PyTuple_GET_ITEM(PyTuple_GET_ITEM(watched, k), 1);
			if (memcmp(at, PyBytes_AS_STRING(held), (size_t)PyBytes_GET_SIZE(held))) return 0;
			at += PyBytes_GET_SIZE(held);
		}
	}
	return 1;
}

/* The same for places of up to eight bytes each. */
static int are_still_held(pid_t tid, const struct turn_span *spans, const uint64_t *held, int count)
{
	uint64_t now[TURN_SPANS];
	struct iovec l[TURN_SPANS], r[TURN_SPANS];
	ssize_t size = 0;
	for (int i = 0; i < count; i++) {
		l[i] = (struct iovec){&now[i], spans[i].length};
		r[i] = (struct iovec){(void *)spans[i].at, spans[i].length};
		size += (ssize_t)spans[i].length;
	}
	if (count && process_vm_readv(tid, l, (unsigned long)count, r, (unsigned long)count, 0) != size) return 0;
	for (int i = 0; i < count; i++)
		if (memcmp(&now[i], &held[i], spans[i].length)) return 0;
	return 1;
}

/* still_held(tid, watched): the same. */
static PyObject *still_held(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
	if (n != 2 || !PyTuple_Check(args[1])) { PyErr_SetString(PyExc_TypeError, "still_held(tid, watched)"); return NULL; }
	int held = is_still_held((pid_t)PyLong_AsLong(args[0]), args[1]);
	return held < 0 || PyErr_Occurred() ? NULL : PyBool_FromLong(held);
}
