/* Makes several copies at once (translate.c), puts them behind one another, and has those that there are lead to them. */

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
