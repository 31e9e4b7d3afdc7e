/* Finds the loops of a Go program in which a thread may wait for another, and has them counted.
 * detbox/cpu/goloops.py tells why, and how what is found here is used.
 *
 * Only what lies in the way of every turn is changed, and only a whole instruction or the target of one, so that
 * nothing can jump into the middle of what was overwritten.  Where that cannot be, the loop is left alone.
 */
#define STUB 32 /* bytes; as in detbox/cpu/goloops.py */
#define STUB_BODY 10
#define JUMP_NEAR 5
#define JUMP_SHORT 2
#define SHORT 120 /* bytes that a short jump reaches surely */
#define HOPS 4
#define LOOK_AHEAD 24 /* instructions that are looked at for what becomes of the flags */
#define FUNCTION_MOST 65536 /* bytes: what is longer is generated, and waits for nobody */
#define CALL_COUNTS 24 /* instructions that a call stands for */
#define WEIGHT_MOST 127
#define GO_RSP 4

enum { I_PLAIN, I_BRANCH, I_JUMP, I_CALL, I_CALL_NEAR, I_END };
enum { TURN_COUNTED = 1, MOVED };
enum { FLAGS_KEPT, FLAGS_SET, FLAGS_USED };

struct instruction {
	int at, length, kind, flags, target; /* the target is an offset in the function */
	unsigned char opcode, map, vector, modrm, rex, locked;
	unsigned char changed;
	unsigned char loads, arrived; /* it reads memory, or may; a branch leads here */
	unsigned writes; /* general registers that it may change, as bits */
	unsigned address; /* those that its memory operand's address is made of */
	int computed; /* its address is not relative to itself */
};

struct __attribute__((packed)) counted_loop {
	uint64_t target, site; /* where to go on at a breakpoint; what was overwritten */
	uint8_t length;
	unsigned char old[15];
};

struct counting_loops {
	const unsigned char *text;
	unsigned char *patched;
	Py_ssize_t size;
	uint64_t vaddr, stubs_at, counter_at;
	struct instruction *of; /* of the function that is looked at */
	int *index; /* by the offset in it; -1: no instruction begins there */
	int count, begin, end;
	int weight; /* what a turn of the loop that is looked at counts */
	unsigned char *stubs;
	struct counted_loop *found;
	Py_ssize_t found_count, room;
};

static int flags_of(const unsigned char *raw, const struct form *f)
{
	int op = raw[f->opcode], group = f->modrm ? raw[f->modrm] >> 3 & 7 : 0;

	if (f->map == 0 && !f->vector) {
		if (op < 0x40 && (op & 7) < 6)
			return (op >> 3) == 2 || (op >> 3) == 3 ? FLAGS_USED : FLAGS_SET;
		if (op == 0x80 || op == 0x81 || op == 0x83)
			return group == 2 || group == 3 ? FLAGS_USED : FLAGS_SET;
		if (op == 0x84 || op == 0x85 || op == 0xa8 || op == 0xa9)
			return FLAGS_SET;
		if (op == 0xf6 || op == 0xf7)
			return group < 2 || group == 3 ? FLAGS_SET : FLAGS_KEPT;
		if (op == 0xc0 || op == 0xc1 || (op >= 0xd0 && op < 0xd4))
			return group == 2 || group == 3 ? FLAGS_USED : FLAGS_KEPT;
		if ((op >= 0x70 && op < 0x80) || op == 0x9c || op == 0x9f || op == 0xf5 || (op >= 0xe0 && op < 0xe4) || op == 0xcc || op == 0xcd)
			return FLAGS_USED;
		return FLAGS_KEPT;
	}
	if (f->map == 1 && !f->vector) {
		if ((op >= 0x80 && op < 0xa0) || (op >= 0x40 && op < 0x50) || op == 0x05 || op == 0x0b)
			return FLAGS_USED;
		return op == 0x2e || op == 0x2f ? FLAGS_SET : FLAGS_KEPT;
	}
	/* adcx, adox */
	return f->map == 2 && op == 0xf6 ? FLAGS_USED : FLAGS_KEPT;
}

/* General registers that an instruction may change. */
static unsigned writes_of(const unsigned char *raw, const struct form *f)
{
	int op = raw[f->opcode], modrm = f->modrm ? raw[f->modrm] : 0, group = modrm >> 3 & 7;
	unsigned reg = 1u << (group | (f->rex & 4) << 1), low = 1u << ((op & 7) | (f->rex & 1) << 3);
	unsigned rm = f->modrm && modrm >> 6 == 3 ? 1u << ((modrm & 7) | (f->rex & 1) << 3) : 0;

	if (f->vector)
		return f->map > 1 && op >= 0xf0 ? 0xffff : 0; /* BMI */
	if (f->map == 0) {
		if (op < 0x38 && (op & 7) < 6)
			return (op & 7) < 2 ? rm : (op & 7) < 4 ? reg : 1;
		if (op >= 0x80 && op < 0x84)
			return group == 7 ? 0 : rm;
		if (op == 0x63 || op == 0x69 || op == 0x6b || op == 0x8a || op == 0x8b || op == 0x8d)
			return reg;
		if (op == 0x86 || op == 0x87)
			return reg | rm;
		if (op == 0x88 || op == 0x89 || op == 0x8f || op == 0xc0 || op == 0xc1 || (op >= 0xd0 && op < 0xd4) || op == 0xc6 || op == 0xc7 || op >= 0xfe)
			return rm;
		if ((op >= 0x58 && op < 0x60) || (op >= 0xb0 && op < 0xc0))
			return low;
		if (op >= 0x90 && op < 0x98)
			return op == 0x90 && !(f->rex & 1) ? 0 : low | 1;
		if (op == 0x98 || op == 0x99)
			return op == 0x98 ? 1 : 4;
		if (op == 0xf6 || op == 0xf7)
			return group < 2 ? 0 : group < 4 ? rm : 1 | 4;
		return op >= 0xa4 && op < 0xb0 && op != 0xa8 && op != 0xa9 ? 1 | 2 | 64 | 128 : 0;
	}
	if (f->map == 1) {
		if ((op >= 0x40 && op < 0x50) || op == 0xaf || op == 0xb6 || op == 0xb7 || op == 0xbe || op == 0xbf || op == 0xbc || op == 0xbd ||
		    op == 0xb8 || op == 0x2c || op == 0x2d || op == 0x50 || op == 0xd7)
			return reg;
		if (op == 0xb0 || op == 0xb1)
			return rm | 1;
		if (op == 0xc0 || op == 0xc1)
			return reg | rm;
		if (op >= 0xc8 && op < 0xd0)
			return low;
		return (op >= 0x90 && op < 0xa0) || (op >= 0xa4 && op < 0xbc) || op == 0x7e ? rm : 0;
	}
	return op >= 0xf0 ? reg : 0;
}

/* Whether it reads memory, and not only to change it there. */
static int loads(const unsigned char *raw, const struct form *f)
{
	int op = raw[f->opcode];

	if (!f->modrm || raw[f->modrm] >> 6 == 3 || f->vector)
		return 0;
	if (f->map == 0)
		return op != 0x88 && op != 0x89 && op != 0x8d && op != 0xc6 && op != 0xc7;
	return f->map == 1 && (op == 0xb6 || op == 0xb7 || op == 0xbe || op == 0xbf || op == 0xa3 || op == 0xba || op == 0xb0 || op == 0xb1 ||
				op == 0xc0 || op == 0xc1 || op == 0x10 || op == 0x6e || op == 0x7e || op == 0x2e || op == 0x2f);
}

static unsigned address_of(const unsigned char *raw, const struct form *f)
{
	int modrm = raw[f->modrm], base = modrm & 7, mod = modrm >> 6;
	unsigned used = 0;

	if (base == 4) {
		int sib = raw[f->modrm + 1], scaled = (sib >> 3 & 7) | (f->rex & 2) << 2;
		if (scaled != 4)
			used |= 1u << scaled;
		base = sib & 7;
		if (base == 5 && mod == 0)
			return used;
	}
	return used | 1u << (base | (f->rex & 1) << 3);
}

static int read_instruction(struct counting_loops *c, int at, struct instruction *out)
{
	const unsigned char *raw = c->text + c->begin + at;
	int64_t target;
	struct form f;
	int op, wide;

	if (!decode(raw, c->end - c->begin - at, &f))
		return 0;
	op = raw[f.opcode];
	*out = (struct instruction){.at = at, .length = f.length, .opcode = op, .map = f.map, .vector = f.vector, .modrm = f.modrm, .rex = f.rex};
	out->locked = f.modrm && raw[f.modrm] >> 6 != 3 && (memchr(raw, 0xf0, (size_t)(f.opcode - (f.map == 1))) || (f.map == 0 && (op & 0xfe) == 0x86));
	out->flags = flags_of(raw, &f);
	out->target = -1;
	out->writes = writes_of(raw, &f);
	if ((out->loads = loads(raw, &f)) && !f.relative) {
		out->address = address_of(raw, &f);
		out->computed = 1;
	}
	if (f.vector || f.map > 1)
		return 1;
	if (left_alone(raw, &f))
		out->kind = I_END;
	if ((f.map == 1 && op >= 0x80 && op < 0x90) || (f.map == 0 && op >= 0x70 && op < 0x80))
		out->kind = I_BRANCH;
	else if (f.map == 0 && (op == 0xe9 || op == 0xeb))
		out->kind = I_JUMP;
	else if (f.map == 0 && op == 0xe8)
		out->kind = f.length == JUMP_NEAR ? I_CALL_NEAR : I_CALL;
	else if (f.map == 0 && op == 0xff && (raw[f.modrm] >> 3 & 7) == 2)
		out->kind = I_CALL;
	else if (f.map == 0 && (op == 0xc2 || op == 0xc3 || (op == 0xff && (raw[f.modrm] >> 3 & 7) == 4) || (op >= 0xe0 && op < 0xe4)))
		out->kind = I_END;
	if (out->kind == I_BRANCH || out->kind == I_JUMP) {
		wide = f.map == 1 || op == 0xe9;
		target = at + f.length + distance_of(raw + f.length, wide ? 4 : 1);
		out->target = target >= 0 && target < c->end - c->begin ? (int)target : -1;
	}
	return 1;
}

/* All instructions of the function; 0 if there is something else in it. */
static int read_function(struct counting_loops *c)
{
	int at = 0, size = c->end - c->begin;

	memset(c->index, 0xff, (size_t)size * sizeof *c->index);
	for (c->count = 0; at < size; at += c->of[c->count++].length) {
		if (c->text[c->begin + at] == 0xcc) { /* what fills the rest */
			c->of[c->count] = (struct instruction){.at = at, .length = 1, .kind = I_END, .flags = FLAGS_USED, .target = -1, .opcode = 0xcc};
			continue;
		}
		if (!read_instruction(c, at, &c->of[c->count]))
			return 0;
		c->index[at] = c->count;
	}
	for (at = 0; at < c->count; at++)
		if (c->of[at].target >= 0 && c->index[c->of[at].target] >= 0)
			c->of[c->index[c->of[at].target]].arrived = 1;
	return 1;
}

/* Whether whatever the flags are before an instruction is seen by nobody. */
static int flags_are_free(struct counting_loops *c, int from)
{
	int steps, at = from;

	for (steps = 0; steps < LOOK_AHEAD && at >= 0 && at < c->count; steps++) {
		struct instruction *i = &c->of[at];
		if (i->kind == I_CALL || i->kind == I_CALL_NEAR)
			return 1; /* functions are given no flags */
		if (i->flags == FLAGS_USED)
			return 0;
		if (i->flags == FLAGS_SET)
			return 1;
		if (i->kind == I_END)
			return i->opcode == 0xc3;
		at = i->kind == I_JUMP ? (i->target < 0 ? -1 : c->index[i->target]) : at + 1;
	}
	return 0;
}

/* Whether it compares what it loads from memory. */
static int compares(struct counting_loops *c, struct instruction *i)
{
	int group = c->text[c->begin + i->at + i->modrm] >> 3 & 7;

	if (i->map == 0)
		return (i->opcode >= 0x38 && i->opcode < 0x3c) || ((i->opcode & 0xfc) == 0x80 && group == 7) || i->opcode == 0x84 || i->opcode == 0x85 ||
		       ((i->opcode == 0xf6 || i->opcode == 0xf7) && group < 2);
	return i->map == 1 && i->flags == FLAGS_SET;
}

/* Whether somebody else may end the loop: it calls functions, or a branch depends on memory at a place that stays the
 * same, other than the stack. */
static int may_wait(struct counting_loops *c, int first, int last)
{
	unsigned changed = 0, other;
	int at, again, next;

	for (at = first; at <= last; at++)
		if (c->of[at].kind == I_CALL || c->of[at].kind == I_CALL_NEAR || c->of[at].locked)
			return 1;
	/* What is loaded from a place that stays the same is taken to stay the same. */
	do {
		other = changed;
		for (at = first; at <= last; at++) {
			struct instruction *i = &c->of[at];
			if (!(i->loads && i->kind == I_PLAIN && i->opcode == 0x8b && i->map == 0 && !(i->address & changed)))
				changed |= i->writes;
		}
		again = changed != other;
	} while (again);
	for (at = first; at <= last; at++) {
		struct instruction *i = &c->of[at];
		if (!i->loads || (i->address & changed) || (i->computed && i->address & (1u << GO_RSP)))
			continue;
		if (compares(c, i) || (i->map == 1 && (i->opcode == 0xb0 || i->opcode == 0xb1 || i->opcode == 0xa3 || i->opcode == 0xba)) || i->opcode == 0x87)
			return 1;
		/* It is tested before it is changed. */
		for (next = at + 1; next <= last && next <= at + 8; next++) {
			struct instruction *n = &c->of[next];
			const unsigned char *raw = c->text + c->begin + n->at;
			if (n->flags == FLAGS_SET && n->modrm && raw[n->modrm] >> 6 == 3) {
				int modrm = raw[n->modrm];
				unsigned used = 1u << ((modrm & 7) | (n->rex & 1) << 3);
				if (n->opcode < 0x40 || n->opcode == 0x84 || n->opcode == 0x85)
					used |= 1u << ((modrm >> 3 & 7) | (n->rex & 4) << 1);
				if (used & i->writes)
					return 1;
			}
			if (n->flags == FLAGS_SET && !n->modrm && i->writes & 1)
				return 1; /* with an immediate operand, of RAX */
			if (n->writes & i->writes || n->kind != I_PLAIN)
				break;
		}
	}
	return 0;
}

/* Whether nothing leads out of the loop. */
static int is_endless(struct counting_loops *c, int first, int last)
{
	int at, begin = c->of[first].at, end = c->of[last].at;

	if (c->of[last].kind != I_JUMP)
		return 0;
	for (at = first; at <= last; at++) {
		struct instruction *i = &c->of[at];
		if (i->kind == I_END || ((i->kind == I_BRANCH || i->kind == I_JUMP) && (i->target < begin || i->target > end)))
			return 0;
	}
	return 1;
}

static uint64_t stub_place(struct counting_loops *c) { return c->stubs_at + (uint64_t)c->found_count * STUB; }

static void put_distance(unsigned char *at, uint64_t from, uint64_t to)
{
	int32_t distance = (int32_t)(to - from);

	memcpy(at, &distance, 4);
}

/* A stub that counts, executes an instruction (or none), and goes on at a place. */
static int add_stub(struct counting_loops *c, uint64_t target, uint64_t site, int length, const unsigned char *body, int body_length, uint64_t onward)
{
	unsigned char *stub;
	uint64_t place = stub_place(c);
	struct counted_loop *entry;

	if (c->found_count == c->room)
		return 0;
	stub = c->stubs + c->found_count * STUB;
	entry = &c->found[c->found_count++];
	memset(stub, 0xcc, STUB);
	memcpy(stub, "\x48\x83\x2d\0\0\0\0\0\x78", 9); /* sub qword [counter], weight; js, to the last byte */
	put_distance(stub + 3, place + 8, c->counter_at);
	stub[7] = (unsigned char)c->weight;
	stub[9] = STUB - 1 - STUB_BODY;
	memcpy(stub + STUB_BODY, body, (size_t)body_length);
	stub[STUB_BODY + body_length] = 0xe9;
	put_distance(stub + STUB_BODY + body_length + 1, place + STUB_BODY + (uint64_t)body_length + JUMP_NEAR, onward);
	*entry = (struct counted_loop){.target = target, .site = site, .length = (uint8_t)length};
	memcpy(entry->old, c->text + (site - c->vaddr), (size_t)length);
	return 1;
}

/* Lead a jump, a branch or a call by way of a stub. */
static int lead_by(struct counting_loops *c, struct instruction *i, uint64_t to)
{
	uint64_t site = c->vaddr + (uint64_t)(c->begin + i->at), place = stub_place(c);

	if (!add_stub(c, to, site, i->length, NULL, 0, to))
		return 0;
	put_distance(c->patched + c->begin + i->at + i->length - 4, site + (uint64_t)i->length, place);
	i->changed = TURN_COUNTED;
	return 1;
}

/* Make room for a jump where an instruction is: it is executed in a stub, and counted there or not. */
static int overwrite(struct counting_loops *c, struct instruction *i, int how)
{
	unsigned char body[15], *at = c->patched + c->begin + i->at;
	uint64_t site = c->vaddr + (uint64_t)(c->begin + i->at), place = stub_place(c);
	struct form f;

	memcpy(body, c->text + c->begin + i->at, (size_t)i->length);
	if (!decode(body, i->length, &f) || (f.relative && f.address32))
		return 0;
	if (f.relative) {
		int32_t distance = (int32_t)distance_of(body + f.modrm + 5, 4);
		put_distance(body + f.modrm + 1, place + STUB_BODY, site + (uint64_t)(int64_t)distance);
	}
	if (!add_stub(c, site, site, i->length, body, i->length, site + (uint64_t)i->length))
		return 0;
	memset(at, 0x90, (size_t)i->length);
	at[0] = 0xe9;
	put_distance(at + 1, site + JUMP_NEAR, place + (how == MOVED ? STUB_BODY : 0));
	i->changed = (unsigned char)how;
	return 1;
}

/* Five bytes that nobody needs between two places of the text: of what fills the space between functions. */
static Py_ssize_t find_filler(struct counting_loops *c, Py_ssize_t first, Py_ssize_t last)
{
	int run = 0;

	for (; first < last; first++) {
		run = c->text[first] == 0xcc && c->patched[first] == 0xcc ? run + 1 : 0;
		if (run == JUMP_NEAR)
			return first + 1 - JUMP_NEAR;
	}
	return -1;
}

static struct instruction *instruction_at(struct counting_loops *c, Py_ssize_t at)
{
	return at >= c->begin && at < c->end && c->index[at - c->begin] >= 0 ? &c->of[c->index[at - c->begin]] : NULL;
}

/* Where a short jump leads that ends at a place, and from there to five bytes that nobody needs: what fills the space between
 * functions, or what a long instruction leaves that is executed in a stub; -1: there is no such place. */
static Py_ssize_t find_room(struct counting_loops *c, Py_ssize_t behind, int hops, Py_ssize_t *room)
{
	Py_ssize_t found = -1, end = c->end, begin = c->begin, at;
	int way;

	for (; end > behind && c->text[end - 1] == 0xcc; end--)
		;
	for (; begin > 0 && c->text[begin - 1] == 0xcc; begin--)
		;
	if (end <= behind + SHORT)
		found = find_filler(c, end, c->end < behind + SHORT ? c->end : behind + SHORT);
	if (found < 0 && c->begin > behind - SHORT)
		found = find_filler(c, begin > behind - SHORT ? begin : behind - SHORT, c->begin);
	for (at = behind - SHORT; found < 0 && at < behind + SHORT - JUMP_NEAR; at++) {
		struct instruction *i = instruction_at(c, at);
		if (i && i->kind == I_PLAIN && !i->changed && i->length >= 2 * JUMP_NEAR && overwrite(c, i, MOVED))
			found = at + JUMP_NEAR;
	}
	if (found >= 0 || !hops)
		return *room = found;
	/* By way of the instruction that is the farthest in either direction and leaves enough for a short jump. */
	for (way = -1; way <= 1; way += 2)
		for (at = behind + way * (SHORT - JUMP_NEAR); at != behind; at -= way) {
			struct instruction *i = instruction_at(c, at);
			if (!i || i->kind != I_PLAIN || i->changed || i->length < JUMP_NEAR + JUMP_SHORT)
				continue;
			i->changed = MOVED;
			found = find_room(c, at + JUMP_NEAR + JUMP_SHORT, hops - 1, room);
			i->changed = 0;
			if (found < 0 || !overwrite(c, i, MOVED))
				break;
			c->patched[at + JUMP_NEAR] = 0xeb;
			c->patched[at + JUMP_NEAR + 1] = (unsigned char)(found - (at + JUMP_NEAR + JUMP_SHORT));
			return at + JUMP_NEAR;
		}
	return -1;
}

/* Lead a branch with a short distance by way of some room near it. */
static int lead_by_room(struct counting_loops *c, struct instruction *i, int to)
{
	uint64_t site = c->vaddr + (uint64_t)(c->begin + i->at), target = c->vaddr + (uint64_t)(c->begin + to);
	Py_ssize_t behind = c->begin + i->at + i->length, at, room;

	if (i->length != JUMP_SHORT || c->found_count + HOPS + 2 > c->room || (at = find_room(c, behind, HOPS, &room)) < 0)
		return 0;
	c->patched[room] = 0xe9;
	put_distance(c->patched + room + 1, c->vaddr + (uint64_t)room + JUMP_NEAR, stub_place(c));
	add_stub(c, target, site, i->length, NULL, 0, target);
	c->patched[behind - 1] = (unsigned char)(at - behind);
	i->changed = TURN_COUNTED;
	return 1;
}

/* Count at an instruction, if that can be. */
static int count_at(struct counting_loops *c, int at)
{
	struct instruction *i = &c->of[at];

	if (i->changed)
		return i->changed == TURN_COUNTED;
	if (i->kind == I_CALL_NEAR) {
		uint64_t behind = c->vaddr + (uint64_t)(c->begin + i->at + i->length);
		return lead_by(c, i, behind + (uint64_t)distance_of(c->text + c->begin + i->at + i->length, 4));
	}
	return i->kind == I_PLAIN && i->length >= JUMP_NEAR && flags_are_free(c, at) && overwrite(c, i, TURN_COUNTED);
}

/* At one of the instructions that every turn executes before the first branch. */
static int count_at_head(struct counting_loops *c, int head, int last)
{
	int at;

	for (at = head; at <= last; at++) {
		if (count_at(c, at))
			return 1;
		if (c->of[at].kind != I_PLAIN)
			break;
	}
	return 0;
}

/* At one of those without which the last one is not reached. */
static int count_before(struct counting_loops *c, int head, int last)
{
	int at;

	for (at = last - 1; at >= head && !c->of[at + 1].arrived; at--) {
		if (c->of[at].kind == I_END || c->of[at].kind == I_JUMP)
			break;
		if (count_at(c, at))
			return 1;
	}
	return 0;
}

/* What a turn counts: about as many instructions as it has, and more for calls. */
static int weight_of(struct counting_loops *c, int first, int last)
{
	int at, weight = 1 + last - first;

	for (at = first; at <= last; at++)
		if (c->of[at].kind == I_CALL || c->of[at].kind == I_CALL_NEAR)
			weight += CALL_COUNTS;
	return weight < WEIGHT_MOST ? weight : WEIGHT_MOST;
}

static int starts_with_check(struct counting_loops *c)
{
	int at, size = c->end - c->begin < 40 ? c->end - c->begin : 40;

	for (at = 0; at + 4 <= size; at++)
		if ((c->text[c->begin + at] & 0xfb) == 0x49 && !memcmp(c->text + c->begin + at + 1, "\x3b\x66\x10", 3))
			return 1;
	return 0;
}

static void count_function(struct counting_loops *c)
{
	int at, checks = starts_with_check(c);

	for (at = 0; at < c->count; at++) {
		struct instruction *i = &c->of[at];
		int head;
		/* A function that calls itself has no need of loops. */
		if (i->kind == I_CALL_NEAR && i->at + i->length + distance_of(c->text + c->begin + i->at + i->length, 4) == 0) {
			c->weight = weight_of(c, 0, at);
			count_at(c, at);
			continue;
		}
		if (i->target < 0 || i->target > i->at || (head = c->index[i->target]) < 0)
			continue;
		if (i->target == 0 && i->kind == I_JUMP && checks)
			continue; /* the stack has grown */
		if (i->changed || !(may_wait(c, head, at) || is_endless(c, head, at)))
			continue;
		c->weight = weight_of(c, head, at);
		if (i->length >= JUMP_NEAR && flags_are_free(c, head)) {
			lead_by(c, i, c->vaddr + (uint64_t)(c->begin + i->target));
			continue;
		}
		if (count_at_head(c, head, at) || count_before(c, head, at))
			continue;
		if (flags_are_free(c, head))
			lead_by_room(c, i, i->target);
	}
}

/* Whether a function is of the runtime: it does not wait without a call. */
static int is_own(const char *name)
{
	return !strncmp(name, "runtime.", 8) || !strncmp(name, "internal/runtime/", 17) || !strncmp(name, "internal/bytealg", 16) ||
	       !strncmp(name, "internal/cpu", 12) || !strncmp(name, "internal/abi", 12) || !strncmp(name, "_rt0", 4) || !strncmp(name, "type:", 5);
}

/* The functions, from the table that Go's runtime has of them (runtime/symtab.go). */
static int go_through(struct counting_loops *c, const unsigned char *table, uint64_t size)
{
	uint64_t count, names, entries, at;

	if (size < 72)
		return 0;
	memcpy(&count, table + 8, 8), memcpy(&names, table + 32, 8), memcpy(&entries, table + 64, 8);
	if (names >= size || entries >= size || count > (size - entries) / 8)
		return 0;
	for (at = 0; at < count; at++) {
		uint32_t begin, entry, end = 0, name;
		memcpy(&begin, table + entries + 8 * at, 4), memcpy(&entry, table + entries + 8 * at + 4, 4);
		if (entries + 8 * at + 12 <= size)
			memcpy(&end, table + entries + 8 * at + 8, 4);
		if (entries + entry + 8 > size || end <= begin || end > c->size || end - begin > FUNCTION_MOST)
			continue;
		memcpy(&name, table + entries + entry + 4, 4);
		if (names + name >= size || !memchr(table + names + name, 0, size - names - name) || is_own((const char *)table + names + name))
			continue;
		c->begin = (int)begin, c->end = (int)end;
		if (read_function(c))
			count_function(c);
	}
	return 1;
}

/* count_loops(text, address, table, stubs, counter, most) -> (text, stubs, loops) | None
 * The table is the one of Go's runtime, for the text that begins at the address. */
static PyObject *count_loops(PyObject *self, PyObject *args)
{
	struct counting_loops c = {0};
	Py_buffer text, table;
	unsigned long long address, stubs, counter;
	PyObject *patched = NULL, *result = NULL;
	Py_ssize_t most;

	(void)self;
	if (!PyArg_ParseTuple(args, "y*Ky*KKn", &text, &address, &table, &stubs, &counter, &most))
		return NULL;
	c.text = text.buf, c.size = text.len, c.vaddr = address, c.stubs_at = stubs, c.counter_at = counter, c.room = most;
	patched = PyBytes_FromStringAndSize(text.buf, text.len);
	c.of = PyMem_Malloc(FUNCTION_MOST * sizeof *c.of);
	c.index = PyMem_Malloc(FUNCTION_MOST * sizeof *c.index);
	c.stubs = PyMem_Malloc((size_t)most * STUB);
	c.found = PyMem_Malloc((size_t)most * sizeof *c.found);
	if (patched && c.of && c.index && c.stubs && c.found) {
		c.patched = (unsigned char *)PyBytes_AS_STRING(patched);
		if (go_through(&c, table.buf, (uint64_t)table.len))
			result = Py_BuildValue("(Oy#y#)", patched, c.stubs, c.found_count * STUB, c.found, c.found_count * (Py_ssize_t)sizeof *c.found);
		else
			result = Py_NewRef(Py_None);
	} else if (!PyErr_Occurred()) {
		PyErr_NoMemory();
	}
	PyMem_Free(c.of), PyMem_Free(c.index), PyMem_Free(c.stubs), PyMem_Free(c.found);
	Py_XDECREF(patched);
	PyBuffer_Release(&text), PyBuffer_Release(&table);
	return result;
}
