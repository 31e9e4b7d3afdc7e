/* Makes a copy of a stretch of x86-64 code that does the same and counts; detbox/counted/translate.py tells how.
 *
 * Only the lengths of instructions are decoded (forms.c), and what depends on where an instruction is.  What is not known
 * ends the copy: the original goes on from there.
 */
#define COPY_INSTRUCTIONS 48 /* of a copy at most */
#define COPY_BYTES 8192 /* more than a copy of so many instructions takes */
#define COPY_EXITS 256
#define COPY_MARKS 256
#define ENTRY_WEIGHT 8 /* what a counted entry counts besides the copy's instructions: about what it takes */

enum { SLOT_COUNTER = 0, SLOT_RCX = 40, SLOT_SCRATCH = 56, LOOKUP_AT = 0x1000 };
enum { R_RCX = 1, R_RBX = 3, R_RSI = 6, R_RDI = 7 };

/* These two are handed over as they are in memory: counted/translate.py has the same forms. */
struct __attribute__((packed)) copied_exit {
	uint16_t offset, patch;
	uint8_t counted, why; /* index into WHY */
	uint64_t target;
};
enum { WHY_COUNTED, WHY_NATIVE, WHY_JUMP };

/* There are 50 of these for each copy. */
struct __attribute__((packed)) copied_mark {
	uint8_t offset; /* how far the copy has got since the mark before */
	uint8_t place_and_saved; /* the same of the original, at most 15, in the upper half; index into SAVED */
};
enum { SAVED_NONE, SAVED_RDI, SAVED_RSI, SAVED_RBX, SAVED_RCX, SAVED_AFTER_CALL };

struct copying {
	uint64_t address, at, slots;
	unsigned char code[COPY_BYTES];
	int length, plain, weight_at, instructions, calls;
	struct copied_exit exits[COPY_EXITS];
	struct copied_mark marks[COPY_MARKS];
	struct { int patch, counted; uint64_t target; } links[COPY_EXITS];
	int exit_count, mark_count, link_count;
	int marked; /* where the last mark is */
	uint64_t marked_place;
	uint64_t onward, back;
};

static void emit(struct copying *c, const void *bytes, int length)
{
	memcpy(c->code + c->length, bytes, length);
	c->length += length;
}

static void emit_byte(struct copying *c, int byte)
{
	c->code[c->length++] = byte;
}

static void emit_word(struct copying *c, uint64_t word, int length)
{
	emit(c, &word, length); /* little endian */
}

/* mov between a low register and a slot. */
static void emit_move(struct copying *c, int slot, int reg, int load)
{
	emit_byte(c, 0x48);
	emit_byte(c, load ? 0x8b : 0x89);
	emit_byte(c, 5 | reg << 3);
	emit_word(c, c->slots + slot - (c->at + c->length + 4), 4);
}

static void emit_push(struct copying *c, uint64_t value)
{
	emit_byte(c, 0x68);
	emit_word(c, value, 4);
	/* push extends the sign; the upper half is stored over it, without a change of flags. */
	emit(c, "\xc7\x44\x24\x04", 4);
	emit_word(c, value >> 32, 4);
}

static void emit_lookup(struct copying *c)
{
	emit_byte(c, 0xe9);
	emit_word(c, c->slots + LOOKUP_AT - (c->at + c->length + 4), 4);
}

static void mark(struct copying *c, uint64_t place, int saved)
{
	c->marks[c->mark_count++] = (struct copied_mark){c->length - c->marked, (place - c->marked_place) << 4 | saved};
	c->marked = c->length;
	c->marked_place = place;
}

static void stop_at(struct copying *c, int why, uint64_t target, int counted, int patch)
{
	emit_byte(c, 0xcc);
	c->exits[c->exit_count++] = (struct copied_exit){c->length, patch, counted, why, target};
}

static void link_to(struct copying *c, uint64_t target, int counted)
{
	c->links[c->link_count].patch = c->length;
	c->links[c->link_count].counted = counted;
	c->links[c->link_count++].target = target;
	emit_word(c, 0, 4);
}

static void jump_onward(struct copying *c, uint64_t target, int counted)
{
	emit_byte(c, 0xe9);
	link_to(c, target, counted);
	c->onward = target;
}

static void begin_copy(struct copying *c)
{
	emit_move(c, SLOT_RCX, R_RCX, 0);
	emit_move(c, SLOT_COUNTER, R_RCX, 1);
	emit(c, "\x48\x8d\x89\0\0\0\0", 7); /* lea rcx, [rcx - weight] */
	c->weight_at = c->length - 4;
	emit_move(c, SLOT_COUNTER, R_RCX, 0);
	emit(c, "\x0f\xb6\x0d", 3); /* movzx ecx, byte of the counter: zero unless it is negative */
	emit_word(c, c->slots + SLOT_COUNTER + 7 - (c->at + c->length + 4), 4);
	emit(c, "\xe3\x08", 2); /* jrcxz, behind the breakpoint */
	emit_move(c, SLOT_RCX, R_RCX, 1);
	stop_at(c, WHY_COUNTED, c->address, 0, 0);
	emit_move(c, SLOT_RCX, R_RCX, 1);
	c->plain = c->length;
}

/* Traps, enters the kernel in another way than by a call, or may change what a copy relies on. */
static int left_alone(const unsigned char *raw, const struct form *f)
{
	int op = raw[f->opcode], next = f->modrm ? raw[f->modrm] : 0, group = next >> 3 & 7, branch;

	if (f->vector || f->map > 1)
		return 0;
	if (f->map == 1) {
		if (op == 0xc7)
			return next >= 0xf0; /* rdrand, rdseed, rdpid */
		if (op == 0x01)
			return next == 0xf9 || next == 0xd0; /* rdtscp, xgetbv */
		if (op >= 0x80 && op < 0x90)
			return f->operand16;
		/* syscall, sysret, sysenter, sysexit, ud2, ud1, ud0, cpuid, rdtsc, rdpmc, wrmsr, rdmsr */
		return op == 0x05 || op == 0x07 || op == 0x34 || op == 0x35 || op == 0x0b || op == 0xb9 || op == 0xff ||
		       op == 0xa2 || op == 0x31 || op == 0x33 || op == 0x30 || op == 0x32;
	}
	branch = op == 0xe8 || op == 0xe9 || op == 0xeb || op == 0xc2 || op == 0xc3 || (op >= 0xe0 && op < 0xe4) ||
		 (op >= 0x70 && op < 0x80) || (op == 0xff && (group == 2 || group == 4));
	/* REX.W outdoes the prefix: so are the calls of __tls_get_addr() padded. */
	if (branch)
		return f->operand16 && !(f->rex & 8);
	/* int3, int, int1, hlt, iret, far returns, ports, popf (it may set the trap flag), segment registers, xbegin */
	return op == 0xcc || op == 0xcd || op == 0xf1 || op == 0xf4 || op == 0xcf || op == 0xca || op == 0xcb ||
	       (op >= 0xe4 && op < 0xe8) || (op >= 0xec && op < 0xf0) || (op >= 0x6c && op < 0x70) || op == 0x9d ||
	       op == 0x8e || (op == 0xc7 && next == 0xf8) || (op == 0xff && (group == 3 || group == 5));
}

static int64_t distance_of(const unsigned char *end, int size)
{
	int32_t wide;

	if (size == 1)
		return (signed char)end[-1];
	memcpy(&wide, end - 4, 4);
	return wide;
}

/* Whether the ModRM byte's middle bits are more of the opcode. */
static int is_group(const unsigned char *raw, const struct form *f)
{
	int op = raw[f->opcode];

	if (f->map == 0)
		return (op >= 0x80 && op < 0x84) || op == 0x8f || op == 0xc0 || op == 0xc1 || op == 0xc6 || op == 0xc7 ||
		       (op >= 0xd0 && op < 0xe0) || op == 0xf6 || op == 0xf7 || op >= 0xfe;
	return f->map == 1 && !f->vector && (op <= 1 || op == 0x0d || op == 0x18 || op == 0x1f || op == 0xae || op == 0xba);
}

/* An operand whose address is relative to the instruction; 0 if it is not known how to replace it. */
static int copy_relative(struct copying *c, const unsigned char *raw, const struct form *f, uint64_t place)
{
	static const int numbers[] = {R_RDI, R_RSI, R_RBX};
	static const int saved[] = {SAVED_RDI, SAVED_RSI, SAVED_RBX};
	int reg = raw[f->modrm] >> 3 & 7, high = f->rex & 4, after = f->modrm + 5, choice = 0;
	uint64_t meant = place + f->length + distance_of(raw + after, 4);
	unsigned char *head;

	if (f->address32)
		return 0;
	if (f->map == 0 && raw[f->opcode] == 0x8d && !f->locked_or_other) { /* lea */
		mark(c, place, SAVED_NONE);
		emit_byte(c, 0x40 | (f->rex & 8) | high >> 2);
		emit_byte(c, 0xb8 | reg);
		emit_word(c, meant, f->rex & 8 ? 8 : 4);
		return 1;
	}
	while (numbers[choice] == f->other || (numbers[choice] == reg && !high && !is_group(raw, f)))
		choice++;
	mark(c, place, SAVED_NONE);
	emit_move(c, SLOT_SCRATCH, numbers[choice], 0);
	mark(c, place, SAVED_NONE);
	emit_byte(c, 0x48);
	emit_byte(c, 0xb8 | numbers[choice]);
	emit_word(c, meant, 8);
	mark(c, place, saved[choice]);
	head = c->code + c->length;
	emit(c, raw, f->modrm);
	/* The base register is a low one; VEX and EVEX hold the bit inverted. */
	if (f->vector > 2)
		head[f->opcode - f->vector + 1] |= 0x20;
	else if (f->rex)
		head[f->opcode - (f->map == 0 ? 1 : f->map == 1 ? 2 : 3)] &= 0xfe;
	emit_byte(c, (raw[f->modrm] & 0x38) | numbers[choice]);
	emit(c, raw + after, f->length - after);
	emit_move(c, SLOT_SCRATCH, numbers[choice], 1);
	return 1;
}

/* A call or jump to what a register or memory holds. */
static void copy_computed(struct copying *c, const unsigned char *raw, const struct form *f, uint64_t place)
{
	int modrm = raw[f->modrm], call = (modrm >> 3 & 7) == 2, at;

	mark(c, place, SAVED_NONE);
	emit_move(c, SLOT_RCX, R_RCX, 0);
	mark(c, place, SAVED_NONE);
	if (f->relative) {
		emit(c, "\x48\xb9", 2);
		emit_word(c, place + f->length + distance_of(raw + f->modrm + 5, 4), 8);
		mark(c, place, SAVED_RCX);
	}
	for (at = 0; is_prefix(raw[at]); at++)
		if (raw[at] == 0x64 || raw[at] == 0x65 || raw[at] == 0x67)
			emit_byte(c, raw[at]);
	if (f->relative) {
		emit(c, "\x48\x8b\x09", 3); /* mov rcx, [rcx] */
	} else {
		emit_byte(c, 0x48 | (f->rex & 3));
		emit_byte(c, 0x8b);
		emit_byte(c, (modrm & 0xc7) | 1 << 3);
		emit(c, raw + f->modrm + 1, f->length - f->modrm - 1);
	}
	if (call) {
		mark(c, place, SAVED_RCX);
		emit_push(c, place + f->length);
		c->back = place + f->length;
	}
	emit_lookup(c);
}

static void copy_return(struct copying *c, const unsigned char *raw, const struct form *f, uint64_t place)
{
	mark(c, place, SAVED_NONE);
	emit_move(c, SLOT_RCX, R_RCX, 0);
	mark(c, place, SAVED_NONE);
	emit_byte(c, 0x59); /* pop rcx */
	if (raw[f->opcode] == 0xc2) {
		emit(c, "\x48\x8d\xa4\x24", 4);
		emit_word(c, raw[f->length - 2] | raw[f->length - 1] << 8, 4);
	}
	emit_lookup(c);
}

/* A direct branch; whether the copy ends with it. */
static int copy_branch(struct copying *c, const unsigned char *raw, const struct form *f, uint64_t place)
{
	int op = raw[f->opcode], byte = f->map == 0 && op != 0xe8 && op != 0xe9;
	uint64_t following = place + f->length, target = following + distance_of(raw + f->length, byte ? 1 : 4);

	mark(c, place, SAVED_NONE);
	if (f->map == 1 || (op >= 0x70 && op < 0x80)) {
		emit_byte(c, 0x0f);
		emit_byte(c, 0x80 | (op & 15));
		link_to(c, target, target <= place);
		return 0;
	}
	if (op == 0xe8) {
		emit_push(c, following);
		jump_onward(c, target, 1);
		c->back = following;
	} else if (op == 0xe9 || op == 0xeb) {
		jump_onward(c, target, target <= place);
	} else { /* loopne, loope, loop, jrcxz: their distance has eight bits only */
		if (f->address32)
			emit_byte(c, 0x67);
		emit_byte(c, op);
		emit_byte(c, 5);
		emit_byte(c, 0xe9);
		link_to(c, following, 0);
		emit_byte(c, 0xe9);
		link_to(c, target, target <= place);
	}
	return 1;
}

/* A system call; RCX is to hold what it would hold behind the original. */
static void copy_call(struct copying *c, uint64_t place)
{
	c->calls++;
	mark(c, place, SAVED_NONE);
	emit(c, "\x0f\x05", 2);
	mark(c, place + 2, SAVED_AFTER_CALL);
	emit(c, "\x48\xb9", 2);
	emit_word(c, place + 2, 8);
}

/* mov eax or rax, rt_sigreturn: that call does not come back to the copy. */
static int is_signal_return(const unsigned char *raw, int length)
{
	return (length == 5 && !memcmp(raw, "\xb8\x0f\0\0\0", 5)) || (length == 7 && !memcmp(raw, "\x48\xc7\xc0\x0f\0\0\0", 7));
}

/* One instruction.  1: it is copied; 0: the copy ends with it; -1: it is left to the original. */
static int copy_instruction(struct copying *c, const unsigned char *raw, const struct form *f, uint64_t place)
{
	int op = raw[f->opcode], group = f->modrm ? raw[f->modrm] >> 3 & 7 : 0;

	if (left_alone(raw, f))
		return -1;
	if (!f->vector) {
		if ((f->map == 1 && op >= 0x80 && op < 0x90) ||
		    (f->map == 0 && ((op >= 0x70 && op < 0x80) || (op >= 0xe0 && op < 0xe4) || op == 0xe8 || op == 0xe9 || op == 0xeb)))
			return !copy_branch(c, raw, f, place);
		if (f->map == 0 && (op == 0xc2 || op == 0xc3)) {
			copy_return(c, raw, f, place);
			return 0;
		}
		if (f->map == 0 && op == 0xff && (group == 2 || group == 4)) {
			if (f->relative && f->address32)
				return -1;
			copy_computed(c, raw, f, place);
			return 0;
		}
	}
	if (f->relative)
		return copy_relative(c, raw, f, place) ? 1 : -1;
	mark(c, place, SAVED_NONE);
	emit(c, raw, f->length);
	return 1;
}

static void copy_all(struct copying *c, const unsigned char *code, int room, int call_weight)
{
	int at = 0, length = 0, state = 1, breaks, calls;
	struct form f;

	for (;; at += length) {
		const unsigned char *raw = code + at;
		uint64_t place = c->address + at;

		if (c->instructions == COPY_INSTRUCTIONS) {
			jump_onward(c, place, 1);
			break;
		}
		if (!decode(raw, room - at, &f)) {
			if (c->mark_count)
				stop_at(c, WHY_NATIVE, place, 0, 0);
			break;
		}
		calls = f.map == 1 && !f.vector && raw[f.opcode] == 0x05 && !(at && is_signal_return(raw - length, length));
		length = f.length;
		c->instructions++;
		if (calls) {
			copy_call(c, place);
			continue;
		}
		state = copy_instruction(c, raw, &f, place);
		if (state < 0 && c->mark_count)
			stop_at(c, WHY_NATIVE, place, 0, 0);
		if (state <= 0)
			break;
	}
	int32_t weight = -(ENTRY_WEIGHT + c->instructions + call_weight * c->calls);
	memcpy(c->code + c->weight_at, &weight, 4);
	for (breaks = 0; breaks < c->link_count; breaks++) {
		int32_t distance = c->length - (c->links[breaks].patch + 4);
		memcpy(c->code + c->links[breaks].patch, &distance, 4);
		stop_at(c, WHY_JUMP, c->links[breaks].target, c->links[breaks].counted, c->links[breaks].patch);
	}
}
