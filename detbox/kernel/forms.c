/* Takes x86-64 instructions apart, as far as their lengths and the places of their parts go.
 *
 * The tables of opcodes are those of the manual (Intel SDM, volume 2, appendix A).  What is not known has no form.
 */
struct form { /* the parts of an instruction, as offsets from its start; 0: absent */
	int length, opcode, modrm;
	int map; /* 0: one byte, 1: 0F, 2: 0F38, 3: 0F3A */
	int rex, vector; /* the REX byte; length of the VEX or EVEX prefix */
	int operand16, address32, locked_or_other; /* prefixes 66 and 67; any prefix at all */
	int relative; /* the address of its memory operand is relative to the instruction */
	int other; /* the second register that a VEX prefix names, or -1 */
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
