/* Where branches and addresses in code lead: whether anything comes to a piece of it from outside. */

/* A piece of code (first to last) of a function (start to end). */
struct piece { int64_t first, last, start, end; };

static void reach(const struct piece *pieces, size_t count, char *found, int64_t from, int64_t target)
{
	size_t low = 0, high = count;
	while (low < high) {
		size_t middle = (low + high) / 2;
		if (pieces[middle].first <= target) low = middle + 1;
		else high = middle;
	}
	if (!low || target > pieces[low - 1].last) return;
	if (from < pieces[low - 1].start || from >= pieces[low - 1].end) found[low - 1] = 1;
}

/* Whether a byte that stands before a distance of 32 bits, and the one before it, make a call, jmp, jcc or xbegin. */
static int is_near_branch(unsigned char before, unsigned char opcode)
{
	return (opcode & 0xfe) == 0xe8 || (before == 0x0f && (opcode & 0xf0) == 0x80) || (before == 0xc7 && opcode == 0xf8);
}

/* reached(data, start, end, vaddr, pieces, branches) -> a byte for each piece: whether anything in the data from `start`,
 * where the virtual address is `vaddr`, to `end` would lead to it from outside of its function.  Either whatever looks like a
 * branch, also within another instruction, or its address.  pieces: struct piece, in ascending order. */
static PyObject *reached(PyObject *self, PyObject *args)
{
	Py_buffer data, pieces;
	Py_ssize_t start, end;
	long long vaddr;
	int branches;
	if (!PyArg_ParseTuple(args, "y*nnLy*p", &data, &start, &end, &vaddr, &pieces, &branches)) return NULL;
	const unsigned char *bytes = data.buf;
	const struct piece *every = pieces.buf;
	size_t count = (size_t)pieces.len / sizeof *every;
	PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)count);
	char *found = result ? PyBytes_AS_STRING(result) : NULL;
	if (found && count) {
		memset(found, 0, count);
		int64_t lowest = every[0].first, highest = every[count - 1].last;
		if (end > data.len) end = data.len;
		for (Py_ssize_t at = start < 1 ? 1 : start; at < end; at++) {
			int64_t here = vaddr + (at - start), target;
			unsigned char opcode = bytes[at - 1];
			int32_t distance;
			if (!branches) {
				if (at + 8 > end) break;
				memcpy(&target, bytes + at, sizeof target);
				if (target >= lowest && target <= highest) reach(every, count, found, -1, target);
			} else if ((opcode & 0xf0) == 0x70 || (opcode & 0xfc) == 0xe0 || opcode == 0xeb) {
				reach(every, count, found, here, here + 1 + (signed char)bytes[at]); /* jcc, loop, jmp */
			} else if (at + 4 <= end && is_near_branch(at > 1 ? bytes[at - 2] : 0, opcode)) {
				memcpy(&distance, bytes + at, sizeof distance);
				target = here + 4 + distance;
				if (target >= lowest && target <= highest) reach(every, count, found, here, target);
			}
		}
	}
	PyBuffer_Release(&data);
	PyBuffer_Release(&pieces);
	return result;
}
