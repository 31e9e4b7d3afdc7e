/* Makes a copy of a stretch of x86-64 code that does the same and counts; detbox/counted/translate.py tells how.
 *
 * Only the lengths of instructions are decoded, and what depends on where an instruction is.  What is not known
 * ends the copy: the original goes on from there.
 */
#define COPY_INSTRUCTIONS 48 /* of a copy at most */
#define COPY_BYTES 8192 /* more than a copy of so many instructions takes */
#define COPY_EXITS 256
#define COPY_MARKS 256
#define ENTRY_WEIGHT 8 /* what a counted entry counts besides the copy's instructions: about what it takes */

enum { SLOT_COUNTER = 0, SLOT_RCX = 40, SLOT_SCRATCH = 56, LOOKUP_AT = 0x1000 };
enum { R_RCX = 1, R_RBX = 3, R_RSI = 6, R_RDI = 7 };

struct form { /* the parts of an instruction, as offsets from its start; 0: absent */
	int length, opcode, modrm;
	int map; /* 0: one byte, 1: 0F, 2: 0F38, 3: 0F3A */
	int rex, vector; /* the REX byte; length of the VEX or EVEX prefix */
	int operand16, address32, locked_or_other; /* prefixes 66 and 67; any prefix at all */
	int relative; /* the address of its memory operand is relative to the instruction */
	int other; /* the second register that a VEX prefix names, or -1 */
};

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

static int is_prefix(unsigned char byte)
{
	return byte == 0x66 || byte == 0x67 || byte == 0xf0 || byte == 0xf2 || byte == 0xf3 || byte == 0x2e ||
	       byte == 0x36 || byte == 0x3e || byte == 0x26 || byte == 0x64 || byte == 0x65;
}

/* Whether an opcode of the one-byte map has a ModRM byte; -1: there is no such instruction in 64-bit mode. */
static int modrm_of_one_byte(int op)
{
	if (op < 0x40)
		return (op & 7) < 4 ? 1 : (op & 7) < 6 ? 0 : -1;
	if (op < 0x60 || (op >= 0x70 && op < 0x80) || (op >= 0x90 && op < 0xc0))
		return op == 0x9a ? -1 : 0;
	if (op == 0x63 || op == 0x69 || op == 0x6b)
		return 1;
	if (op < 0x63 || op == 0x82 || op == 0xce || (op >= 0xd4 && op <= 0xd6) || op == 0xea)
		return -1;
	if (op < 0x70)
		return 0;
	return op < 0x90 || op == 0xc0 || op == 0xc1 || op == 0xc6 || op == 0xc7 || (op >= 0xd0 && op < 0xd4) ||
	       (op >= 0xd8 && op < 0xe0) || op == 0xf6 || op == 0xf7 || op >= 0xfe;
}

static int modrm_of_two_bytes(int op)
{
	if (op == 0x04 || op == 0x0a || op == 0x0c || op == 0x0f || (op >= 0x24 && op < 0x28) || op == 0x36 ||
	    op == 0x39 || (op >= 0x3b && op < 0x40) || op == 0x78 || op == 0x79 || op == 0x7a || op == 0x7b ||
	    op == 0xa6 || op == 0xa7)
		return -1;
	return !((op >= 5 && op <= 0x0b) || op == 0x0e || (op >= 0x30 && op < 0x38) || op == 0x77 ||
		 (op >= 0x80 && op < 0x90) || (op >= 0xa0 && op < 0xa3) || (op >= 0xa8 && op < 0xab) ||
		 (op >= 0xc8 && op < 0xd0));
}

/* Whether the middle bits of the ModRM byte make an instruction with such an opcode. */
static int known_group(int op, int modrm)
{
	int group = modrm >> 3 & 7;

	if (op == 0xc6 || op == 0xc7)
		return group == 0 || modrm == 0xf8;
	return op == 0x8f ? group == 0 : op == 0xfe ? group < 2 : op != 0xff || group < 7;
}

static int immediate_of_two_bytes(int op)
{
	if (op >= 0x80 && op < 0x90)
		return 4;
	return (op >= 0x70 && op < 0x74) || op == 0xa4 || op == 0xac || op == 0xba || op == 0xc2 ||
	       (op >= 0xc4 && op <= 0xc6);
}

static int immediate_of_one_byte(const struct form *f, int op, int modrm)
{
	int full = f->operand16 && !(f->rex & 8) ? 2 : 4;

	if (op < 0x40)
		return (op & 7) == 4 ? 1 : (op & 7) == 5 ? full : 0;
	if (op >= 0xb8 && op < 0xc0)
		return f->rex & 8 ? 8 : full;
	if (op >= 0xa0 && op < 0xa4)
		return f->address32 ? 4 : 8;
	if (op == 0xf6 || op == 0xf7)
		return modrm >> 3 & 6 ? 0 : op == 0xf6 ? 1 : full;
	if (op == 0x68 || op == 0x69 || op == 0x81 || op == 0xa9 || op == 0xc7)
		return full;
	if (op == 0xe8 || op == 0xe9)
		return 4;
	if (op == 0xc2 || op == 0xca)
		return 2;
	if (op == 0xc8)
		return 3;
	return op == 0x6a || op == 0x6b || (op >= 0x70 && op < 0x80) || op == 0x80 || op == 0x83 || op == 0xa8 ||
	       (op >= 0xb0 && op < 0xb8) || op == 0xc0 || op == 0xc1 || op == 0xc6 || op == 0xcd ||
	       (op >= 0xe0 && op < 0xe8) || op == 0xeb;
}

/* The length of the ModRM byte and what belongs to it, or -1. */
static int operand_length(const unsigned char *raw, int room, struct form *f)
{
	int mod, rm, length = 1;

	if (room < 1)
		return -1;
	mod = raw[0] >> 6, rm = raw[0] & 7;
	if (mod == 3)
		return 1;
	if (rm == 4) {
		if (room < 2)
			return -1;
		length = 2;
		if (mod == 0 && (raw[1] & 7) == 5)
			length += 4;
	} else if (mod == 0 && rm == 5) {
		f->relative = 1;
		length += 4;
	}
	return length + (mod == 1 ? 1 : mod == 2 ? 4 : 0);
}

/* Behind a VEX or EVEX prefix: its length, and the map and the second register that it names; 0: unknown. */
static int vector_prefix(const unsigned char *raw, int room, struct form *f)
{
	if (f->rex || f->operand16 || room < 3)
		return 0;
	f->other = ~raw[raw[0] == 0xc5 ? 1 : 2] >> 3 & 15;
	f->map = raw[0] == 0xc5 ? 1 : raw[1] & (raw[0] == 0xc4 ? 31 : 7);
	f->vector = raw[0] == 0xc5 ? 2 : raw[0] == 0xc4 ? 3 : 4;
	return f->map >= 1 && f->map <= 3 ? f->vector : 0;
}

/* The parts of the instruction; 0 if it is not known or not whole. */
static int decode(const unsigned char *raw, int room, struct form *f)
{
	int at = 0, has, op, immediate, operand = 0;

	memset(f, 0, sizeof(*f));
	f->other = -1;
	if (room > 15)
		room = 15;
	for (; at < room && is_prefix(raw[at]); at++) {
		f->operand16 |= raw[at] == 0x66;
		f->address32 |= raw[at] == 0x67;
		f->locked_or_other = 1;
	}
	if (at < room && (raw[at] & 0xf0) == 0x40)
		f->rex = raw[at++];
	if (at >= room)
		return 0;
	op = raw[at];
	if (is_prefix(op) || (op & 0xf0) == 0x40)
		return 0;
	if (op == 0xc4 || op == 0xc5 || op == 0x62) {
		if (!(has = vector_prefix(raw + at, room - at, f)))
			return 0;
		at += has;
	} else if (op == 0x0f) {
		f->map = at + 1 >= room ? 0 : raw[at + 1] == 0x38 ? 2 : raw[at + 1] == 0x3a ? 3 : 1;
		at += f->map == 1 ? 1 : 2;
	}
	if (at >= room)
		return 0;
	f->opcode = at;
	op = raw[at++];
	has = f->map == 0 ? modrm_of_one_byte(op) : f->map == 1 ? modrm_of_two_bytes(op) : 1;
	if (has < 0 || (has && at >= room))
		return 0;
	if (has && f->map == 0 && !known_group(op, raw[at]))
		return 0;
	if (has) {
		f->modrm = at;
		if ((operand = operand_length(raw + at, room - at, f)) < 0)
			return 0;
	}
	immediate = f->map == 0 ? immediate_of_one_byte(f, op, has ? raw[at] : 0) :
		    f->map == 1 ? immediate_of_two_bytes(op) : f->map == 3;
	f->length = at + operand + immediate;
	return f->length <= room;
}

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

/* Copies that are made at once: the one that is needed, and some that may be needed next. */
#define BATCH_MOST 64
#define COPIED_MOST 768 /* bytes that a copy is made from: LONGEST of counted/translate.py */
#define BATCH_QUEUE 256

struct batch {
	PyObject *code, *pages, *copies, *waiting; /* the caller's */
	PyObject *made, *leads, *backs; /* what is handed back */
	struct { uint64_t address; int back; } queue[BATCH_QUEUE];
	int queued, taken;
	unsigned char *text; /* of all copies, for the place ``begin`` */
	Py_ssize_t length, room;
	uint64_t begin;
};

/* Where a jump leads that is to go to the copy at a place. */
static uint64_t entry_of(uint64_t at, int counted, int plain)
{
	return at + (counted ? 0 : (uint64_t)plain);
}

static void set_distance(unsigned char *text, uint64_t from, uint64_t to)
{
	int32_t distance = (int32_t)(to - (from + 4));

	memcpy(text, &distance, 4);
}

/* Append to the tuple of what waits for a copy of the target: twice the place of the jump's distance, and whether it is
 * counted.  Tuples, since the dictionary is shared with those of other processes. */
static int wait_for(struct batch *b, PyObject *target, uint64_t place, int counted)
{
	PyObject *before = PyDict_GetItemWithError(b->waiting, target), *after, *item;
	Py_ssize_t have = before ? PyTuple_GET_SIZE(before) : 0, index;
	int result;

	if ((!before && PyErr_Occurred()) || !(after = PyTuple_New(have + 1)))
		return -1;
	for (index = 0; index < have; index++)
		PyTuple_SET_ITEM(after, index, Py_NewRef(PyTuple_GET_ITEM(before, index)));
	if (!(item = PyLong_FromUnsignedLongLong(place << 1 | (counted != 0)))) {
		Py_DECREF(after);
		return -1;
	}
	PyTuple_SET_ITEM(after, have, item);
	result = PyDict_SetItem(b->waiting, target, after);
	Py_DECREF(after);
	return result;
}

/* The jumps of a new copy lead to those that there are; the others wait for theirs. */
static int lead_on(struct batch *b, struct copying *c)
{
	int index;

	for (index = 0; index < c->link_count; index++) {
		int patch = c->links[index].patch, counted = c->links[index].counted, result = 0;
		uint64_t place = c->at + (uint64_t)patch;
		PyObject *target = PyLong_FromUnsignedLongLong(c->links[index].target), *at;

		if (!target)
			return -1;
		at = PyDict_GetItemWithError(b->copies, target);
		if (at)
			set_distance(c->code + patch, place, entry_of(PyLong_AsUnsignedLongLong(at), counted, c->plain));
		else
			result = PyErr_Occurred() ? -1 : wait_for(b, target, place, counted);
		Py_DECREF(target);
		if (result < 0)
			return -1;
	}
	return 0;
}

static int append_tuple(PyObject *list, PyObject *tuple)
{
	int result = tuple ? PyList_Append(list, tuple) : -1;

	Py_XDECREF(tuple);
	return result;
}

/* What has waited for a copy is led to it: in the text where it is new, too; otherwise the caller writes it. */
static int lead_to(struct batch *b, struct copying *c, PyObject *address)
{
	PyObject *waiting = PyDict_GetItemWithError(b->waiting, address);
	Py_ssize_t index;
	int result = 0;

	if (!waiting)
		return PyErr_Occurred() ? -1 : 0;
	for (index = 0; !result && index < PyTuple_GET_SIZE(waiting); index++) {
		uint64_t packed = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(waiting, index)), place = packed >> 1;
		uint64_t entry = entry_of(c->at, packed & 1, c->plain);
		unsigned char distance[4];

		if (place >= b->begin) {
			set_distance(b->text + (place - b->begin), place, entry);
			continue;
		}
		set_distance(distance, place, entry);
		result = append_tuple(b->leads, Py_BuildValue("(Ky#)", (unsigned long long)place, distance, (Py_ssize_t)4));
	}
	return result < 0 ? -1 : PyDict_DelItem(b->waiting, address);
}

static void queue_up(struct batch *b, uint64_t address, int back)
{
	if (!address || b->queued == BATCH_QUEUE)
		return;
	b->queue[b->queued].address = address;
	b->queue[b->queued++].back = back;
}

/* Put a copy that has been made with the others. */
static int add_copy(struct batch *b, struct copying *c, PyObject *address)
{
	PyObject *at = PyLong_FromUnsignedLongLong(c->at);
	Py_ssize_t padded = (c->length + 15) & ~15;
	int index, result = at ? PyDict_SetItem(b->copies, address, at) : -1;

	Py_XDECREF(at);
	if (result < 0)
		return -1;
	if (b->length + padded > b->room) {
		unsigned char *text = PyMem_Realloc(b->text, (size_t)(2 * b->room + padded));
		if (!text) {
			PyErr_NoMemory();
			return -1;
		}
		b->text = text;
		b->room = 2 * b->room + padded;
	}
	if (lead_on(b, c) < 0)
		return -1;
	memcpy(b->text + b->length, c->code, (size_t)c->length);
	memset(b->text + b->length + c->length, 0, (size_t)(padded - c->length));
	b->length += padded;
	if (lead_to(b, c, address) < 0)
		return -1;
	queue_up(b, c->onward, 0);
	queue_up(b, c->back, 1);
	for (index = 0; index < c->link_count; index++)
		queue_up(b, c->links[index].target, 0);
	return append_tuple(b->made, Py_BuildValue("(KKy#y#)", (unsigned long long)c->address, (unsigned long long)c->at,
						    c->exits, (Py_ssize_t)(c->exit_count * sizeof *c->exits),
						    c->marks, (Py_ssize_t)(c->mark_count * sizeof *c->marks)));
}

/* The code at an address, as bytes and where it begins in them: mostly it is within a page that is known. */
static PyObject *code_to_copy(struct batch *b, PyObject *address, uint64_t start, Py_ssize_t *offset)
{
	PyObject *key, *code = NULL;

	*offset = (Py_ssize_t)(start & (PAGE - 1));
	if ((unsigned long)*offset + COPIED_MOST <= PAGE) {
		if (!(key = PyLong_FromUnsignedLongLong(start & ~(uint64_t)(PAGE - 1))))
			return NULL;
		code = Py_XNewRef(PyDict_GetItemWithError(b->pages, key));
		Py_DECREF(key);
		if (code || PyErr_Occurred())
			return code;
	}
	*offset = 0;
	code = PyObject_CallOneArg(b->code, address);
	if (code && !PyBytes_Check(code)) {
		PyErr_SetString(PyExc_TypeError, "code(address) is to return bytes");
		Py_CLEAR(code);
	}
	return code;
}

/* Make the copy of the code at an address: 1, or 0 if there is one or the code cannot be copied. */
static int make_copy(struct batch *b, struct copying *c, uint64_t start, uint64_t slots, int weight, int back)
{
	PyObject *address = PyLong_FromUnsignedLongLong(start), *code = NULL;
	Py_ssize_t offset, room;
	int result = address ? PyDict_Contains(b->copies, address) : -1;

	if (result) {
		Py_XDECREF(address);
		return result < 0 ? -1 : 0;
	}
	result = -1;
	if ((code = code_to_copy(b, address, start, &offset))) {
		room = PyBytes_GET_SIZE(code) - offset;
		c->address = c->marked_place = start, c->at = b->begin + (uint64_t)b->length, c->slots = slots;
		c->onward = c->back = 0;
		c->marked = c->length = c->instructions = c->calls = c->exit_count = c->mark_count = c->link_count = 0;
		begin_copy(c);
		copy_all(c, (const unsigned char *)PyBytes_AS_STRING(code) + offset, (int)(room < COPIED_MOST ? room : COPIED_MOST), weight);
		result = c->mark_count ? add_copy(b, c, address) < 0 ? -1 : 1 : 0;
		if (result > 0 && back)
			result = append_tuple(b->backs, Py_BuildValue("(OK)", address, (unsigned long long)c->at)) < 0 ? -1 : 1;
	}
	Py_XDECREF(code);
	Py_DECREF(address);
	return result;
}

/* make_copies(code, pages, copies, waiting, address, at, slots, call_weight, ahead)
 * -> (text, [(address, at, exits, marks)], [(place, distance)], [(address, at)], plain) */
static PyObject *make_copies(PyObject *self, PyObject *args)
{
	static struct copying copying;
	struct batch b = {0};
	unsigned long long address, at, slots;
	int weight, ahead, result;
	PyObject *found = NULL;

	(void)self;
	if (!PyArg_ParseTuple(args, "OO!O!O!KKKii", &b.code, &PyDict_Type, &b.pages, &PyDict_Type, &b.copies, &PyDict_Type, &b.waiting, &address, &at,
			      &slots, &weight, &ahead))
		return NULL;
	b.begin = at;
	b.room = COPY_BYTES;
	b.text = PyMem_Malloc((size_t)b.room);
	b.made = PyList_New(0), b.leads = PyList_New(0), b.backs = PyList_New(0);
	if (ahead >= BATCH_MOST)
		ahead = BATCH_MOST - 1;
	if (b.text && b.made && b.leads && b.backs) {
		result = make_copy(&b, &copying, address, slots, weight, 0);
		while (result >= 0 && ahead > 0 && b.taken < b.queued) {
			int next = b.taken++;
			result = make_copy(&b, &copying, b.queue[next].address, slots, weight, b.queue[next].back);
			ahead -= result > 0;
		}
		if (result >= 0)
			found = Py_BuildValue("(y#OOOi)", b.text, b.length, b.made, b.leads, b.backs, copying.plain);
	} else if (!PyErr_Occurred()) {
		PyErr_NoMemory();
	}
	PyMem_Free(b.text);
	Py_XDECREF(b.made), Py_XDECREF(b.leads), Py_XDECREF(b.backs);
	return found;
}

/* Append those of a copy's jumps that lead to some places: where the distance is, the breakpoint that it leads to at
 * first, the target, and 1 if it is to the counted entry. */
static int add_jumps(PyObject *found, PyObject *targets, uint64_t at, const struct copied_exit *exits, Py_ssize_t count)
{
	Py_ssize_t index;

	for (index = 0; index < count; index++) {
		const struct copied_exit *each = &exits[index];
		unsigned long long place = at + each->patch, stop = at + each->offset - 1, target = each->target;
		PyObject *key;
		int wanted;

		if (each->why != WHY_JUMP)
			continue;
		if (!(key = PyLong_FromUnsignedLongLong(target)))
			return -1;
		wanted = PySet_Contains(targets, key);
		Py_DECREF(key);
		if (wanted < 0 || (wanted && append_tuple(found, Py_BuildValue("(KKKi)", place, stop, target, (int)each->counted)) < 0))
			return -1;
	}
	return 0;
}

/* jumps_to(targets, made) -> [(place, stop, target, counted)]: of copies as make_copies tells of them */
static PyObject *jumps_to(PyObject *self, PyObject *args)
{
	PyObject *targets, *made, *found;
	Py_ssize_t index;

	(void)self;
	if (!PyArg_ParseTuple(args, "O!O!", &PySet_Type, &targets, &PyList_Type, &made) || !(found = PyList_New(0)))
		return NULL;
	for (index = 0; index < PyList_GET_SIZE(made); index++) {
		unsigned long long address, at;
		const char *exits, *marks;
		Py_ssize_t length, more;

		if (!PyArg_ParseTuple(PyList_GET_ITEM(made, index), "KKy#y#", &address, &at, &exits, &length, &marks, &more) ||
		    add_jumps(found, targets, at, (const struct copied_exit *)exits, length / (Py_ssize_t)sizeof(struct copied_exit)) < 0) {
			Py_DECREF(found);
			return NULL;
		}
	}
	return found;
}
