/* The memory of stopped threads, as turns.c and relay.c read it and write to it.
 *
 * A call of the kernel costs as much for eight bytes as for some hundreds, and more than all instructions of a turn.  So
 * blocks are read whole.  Where they are kept, nobody goes on meanwhile but those whose turns are made here: then a block is
 * what it was until something is stored that may be in memory twice, and what is stored in a process's own memory
 * (anonymous, mapped once) is written in the end.  Only what is stored there first is written at once, which shows that it may be.
 */
enum { BLOCK = 256, /* bytes: no part of a block is missing */ BLOCKS = 128, BLOCK_PLACES = 512, BLOCK_WORD = 8 };
enum { PAGE_UNKNOWN, PAGE_OWN, PAGE_SHARED };
enum { PAGES_CLOSED = -2, PAGES_NONE = -1 };

struct block {
	uint64_t at;
	pid_t tid;
	int space, page; /* whose the page is that has been written to */
	unsigned read; /* when: it may be another one in other steps, unless it is its own */
	uint32_t stored; /* words that the thread's memory has not been given yet, as bits */
	unsigned char held[BLOCK];
};

struct blocks {
	unsigned step;
	int keeps, count, pages, pages_of; /* a descriptor of what tells of a space's pages */
	uint8_t places[BLOCK_PLACES]; /* a block's number, from 1 on */
	struct block all[BLOCKS];
};

static void begin_blocks(struct blocks *b)
{
	b->keeps = b->count = 0;
	b->pages = PAGES_CLOSED;
	b->step++;
	memset(b->places, 0, sizeof b->places);
}

/* Gives the threads' memory what has been stored, and forgets the blocks. */
static void drop_blocks(struct blocks *b)
{
	for (struct block *each = b->all; each < b->all + b->count; each++) {
		struct iovec l[BLOCK / BLOCK_WORD], r[BLOCK / BLOCK_WORD];
		unsigned long n = 0;
		for (int word = 0; word < BLOCK / BLOCK_WORD; word++)
			if (each->stored >> word & 1) {
				l[n] = (struct iovec){each->held + BLOCK_WORD * word, BLOCK_WORD};
				r[n++] = (struct iovec){(void *)(each->at + (uint64_t)(BLOCK_WORD * word)), BLOCK_WORD};
			}
		if (n) process_vm_writev(each->tid, l, n, r, n, 0); /* it may be dead */
	}
	b->count = 0;
	memset(b->places, 0, sizeof b->places);
}

/* Somebody is about to go on. */
static void end_blocks(struct blocks *b)
{
	drop_blocks(b);
	if (b->pages >= 0) close(b->pages);
	begin_blocks(b);
}

/* The block at an address, or NULL and its place. */
static struct block *known_block(struct blocks *b, int space, uint64_t at, unsigned *place)
{
	*place = (unsigned)(at / BLOCK ^ at >> 17 ^ (uint64_t)space << 5) % BLOCK_PLACES;
	for (; b->places[*place]; *place = (*place + 1) % BLOCK_PLACES) {
		struct block *each = &b->all[b->places[*place] - 1];
		if (each->at == at && each->space == space) return each;
	}
	return NULL;
}

/* The block that an address lies in, NULL if it cannot be read. */
static struct block *block_at(struct blocks *b, pid_t tid, int space, uint64_t at)
{
	unsigned place;
	at &= ~(uint64_t)(BLOCK - 1);
	struct block *each = known_block(b, space, at, &place), *new = NULL;
	if (each && (each->page == PAGE_OWN || each->read == b->step)) return each;
	if (!each) {
		if (b->count == BLOCKS) {
			drop_blocks(b);
			known_block(b, space, at, &place);
		}
		each = new = &b->all[b->count];
		*new = (struct block){.at = at, .tid = tid, .space = space};
	}
	struct iovec l = {each->held, BLOCK}, r = {(void *)at, BLOCK};
	if (process_vm_readv(tid, &l, 1, &r, 1, 0) != BLOCK) return NULL;
	each->read = b->step;
	if (new) b->places[place] = (uint8_t)++b->count;
	return each;
}

/* Whether a page that has been written to is a process's own: it is there, not of a file, and mapped once. */
static int is_own_page(struct blocks *b, const struct block *block)
{
	char path[40];
	uint64_t entry;
	if (b->pages >= 0 && b->pages_of != block->space) {
		close(b->pages);
		b->pages = PAGES_CLOSED;
	}
	if (b->pages == PAGES_CLOSED) {
		snprintf(path, sizeof path, "/proc/%d/pagemap", block->tid);
		if ((b->pages = open(path, O_RDONLY | O_CLOEXEC)) < 0) b->pages = PAGES_NONE;
		b->pages_of = block->space;
	}
	return b->pages >= 0 && pread(b->pages, &entry, sizeof entry, (off_t)(block->at / PAGE * sizeof entry)) == sizeof entry &&
	       entry >> 63 && !(entry >> 61 & 1) && entry >> 56 & 1;
}

/* Whether what is stored there need not be written yet. */
static int is_deferred(struct blocks *b, int space, uint64_t at)
{
	unsigned place;
	const struct block *each = known_block(b, space, at & ~(uint64_t)(BLOCK - 1), &place);
	return each && each->page == PAGE_OWN;
}

/* Eight aligned bytes have been stored, and written if they are not deferred. */
static void block_stored(struct blocks *b, int space, uint64_t at, uint64_t value)
{
	unsigned place, offset = at & (BLOCK - 1);
	struct block *each = known_block(b, space, at - offset, &place);
	if (each) {
		memcpy(each->held + offset, &value, BLOCK_WORD);
		if (each->page == PAGE_OWN) {
			each->stored |= 1U << offset / BLOCK_WORD;
			return;
		}
		if (each->page == PAGE_UNKNOWN && b->keeps) each->page = is_own_page(b, each) ? PAGE_OWN : PAGE_SHARED;
		if (each->page == PAGE_OWN) return;
	}
	if (b->keeps) b->step++;
}
