/* stat(2) and statx(2) of files about which nothing is special, from the path in the guest's memory to the answer in it: the
 * commonest calls of all.  What is special is left to handlers/stat.py, which tells the same of these files, too.
 */

enum {
	V_DEV, V_INO, V_FMT, V_UID, V_GID, V_BTIME, V_TIMES, V_MODE, V_SOURCE, V_LINKS, V_MISSING, V_NODE, V_RESERVED,
	V_LOOKED_AT,
};
enum {
	OWNER_TID, OWNER_PROCESS, OWNER_TEXT_AT,
};
enum {
	PROCESS_PID, PROCESS_FS, PROCESS_CREDS,
};
enum {
	FS_SPECIAL, FS_CWD,
};
enum {
	RIGHTS_EFFECTIVE, RIGHTS_SPACE,
};

static struct class inodes = {
	NULL, {"dev", "ino", "fmt", "uid", "gid", "btime", "times", "mode", "source", "links", "missing", "node", "reserved",
	       "looked_at"}, {0}};
static struct class callers = {NULL, {"tid", "process", "text_at"}, {0}};
static struct class owners = {NULL, {"pid", "fs", "creds"}, {0}};
static struct class places = {NULL, {"special", "_cwd"}, {0}};
static struct class rights = {NULL, {"effective", "space"}, {0}};

static long long file_rights; /* as in machine/creds.py */
static PyObject *outermost;

#define SHOWN_BLOCK 4096
#define SHOWN_SECTORS (SHOWN_BLOCK / 512)

/* What is known of all files: InodeTable.seen. */
struct known_files {
	PyObject *table, *nameless, *odd_devs, *enter;
	long long epoch_ns;
};

/* What stat and statx tell of a file. */
struct shown {
	struct stat st;
	long long btime; /* ns since 1970 */
};

enum { SHOWN, NOT_PLAIN };

static int known_files(PyObject *seen, struct known_files *k)
{
	if (!PyTuple_Check(seen) || PyTuple_GET_SIZE(seen) != 5) {
		PyErr_SetString(PyExc_TypeError, "not what an InodeTable has seen");
		return -1;
	}
	k->table = PyTuple_GET_ITEM(seen, 0), k->nameless = PyTuple_GET_ITEM(seen, 1), k->odd_devs = PyTuple_GET_ITEM(seen, 2);
	k->enter = PyTuple_GET_ITEM(seen, 3), k->epoch_ns = PyLong_AsLongLong(PyTuple_GET_ITEM(seen, 4));
	return PyErr_Occurred() ? -1 : 0;
}

/* The virtual inode of a file, as InodeTable.find() gives it; NULL, maybe with an exception, if there is more to it. */
static PyObject *inode_of(const struct known_files *k, const struct stat *real)
{
	PyObject *all[] = {k->table, k->nameless}, *found = NULL;
	PyObject *key = Py_BuildValue("(kk)", real->st_dev, real->st_ino);
	if (!key) return NULL;
	int odd = PySet_Contains(k->odd_devs, PyTuple_GET_ITEM(key, 0));
	for (int i = 0; !odd && !found && i < 2; i++) {
		long long fmt;
		PyObject *v = PyDict_GetItemWithError(all[i], key);
		if (v ? !is_a(v, &inodes) || number(v, &inodes, V_FMT, &fmt) : PyErr_Occurred() != NULL) odd = -1;
		else if (v && fmt == (real->st_mode & S_IFMT)) found = Py_NewRef(v);
	}
	if (!odd && !found) {
		found = PyObject_CallFunction(k->enter, "OI", key, real->st_mode & S_IFMT);
		if (found && !is_a(found, &inodes)) Py_CLEAR(found);
	}
	Py_DECREF(key);
	return found;
}

/* How many blocks of a regular file are missing, as InodeTable.find_holes() found it; NOT_PLAIN if that has to look (again). */
static int missing_blocks_of(PyObject *v, const struct known_files *k, const struct stat *real, PyObject *times, long long *missing)
{
	long long btime, size;
	int reserved = is_true(v, &inodes, V_RESERVED);
	if (reserved < 0 || number(v, &inodes, V_BTIME, &btime)) return -1;
	if (btime != k->epoch_ns && !reserved) {
		PyObject *state = SLOT(v, inodes, V_LOOKED_AT);
		if (!state || !PyTuple_Check(state) || PyTuple_GET_SIZE(state) != 2) return NOT_PLAIN;
		if ((size = PyLong_AsLongLong(PyTuple_GET_ITEM(state, 0))) == -1 && PyErr_Occurred()) return -1;
		int same = size == real->st_size ? PyObject_RichCompareBool(PyTuple_GET_ITEM(state, 1), times, Py_EQ) : 0;
		if (same <= 0) return same ? -1 : NOT_PLAIN;
	}
	*missing = 0;
	return SLOT(v, inodes, V_MISSING) == Py_None ? SHOWN : number(v, &inodes, V_MISSING, missing) ? -1 : SHOWN;
}

/* Fills in what the guest is shown of a file with the virtual inode `v`; NOT_PLAIN if more has to be asked, -1 with an exception. */
static int show_inode(PyObject *v, const struct known_files *k, const struct stat *real, int is_source, struct shown *shown)
{
	long long dev, ino, uid, gid, mode, links, missing;
	struct stat *st = &shown->st;
	PyObject *times;
	int source;

	if (number(v, &inodes, V_MODE, &mode) || (source = is_true(v, &inodes, V_SOURCE)) < 0) return -1;
	if (mode || (is_source && !source) || SLOT(v, inodes, V_NODE) != Py_None) return NOT_PLAIN;
	if (number(v, &inodes, V_DEV, &dev) || number(v, &inodes, V_INO, &ino) || number(v, &inodes, V_UID, &uid) ||
	    number(v, &inodes, V_GID, &gid) || number(v, &inodes, V_LINKS, &links) || number(v, &inodes, V_BTIME, &shown->btime) ||
	    !(times = get(v, &inodes, V_TIMES)))
		return -1;
	if (!PyBytes_Check(times) || PyBytes_GET_SIZE(times) != 3 * (Py_ssize_t)sizeof(struct timespec)) {
		PyErr_SetString(PyExc_TypeError, "times that are none");
		return -1;
	}
	*st = (struct stat){
		.st_dev = (dev_t)dev, .st_ino = (ino_t)ino, .st_nlink = real->st_nlink, .st_mode = real->st_mode, .st_uid = (uid_t)uid,
		.st_gid = (gid_t)gid, .st_rdev = real->st_rdev, .st_blksize = SHOWN_BLOCK};
	if (S_ISREG(real->st_mode)) {
		if (real->st_size >= 1 << 30) return NOT_PLAIN; /* one that may have holes */
		int found = missing_blocks_of(v, k, real, times, &missing);
		if (found != SHOWN) return found;
		st->st_size = real->st_size;
		st->st_blocks = (real->st_size + SHOWN_BLOCK - 1) / SHOWN_BLOCK * SHOWN_SECTORS - missing;
	} else if (S_ISDIR(real->st_mode)) {
		st->st_nlink = links ? (nlink_t)links : 1; /* "not counted" */
		st->st_size = SHOWN_BLOCK;
		st->st_blocks = SHOWN_SECTORS;
	} else if (S_ISLNK(real->st_mode)) {
		st->st_size = real->st_size;
	}
	memcpy(&st->st_atim, PyBytes_AS_STRING(times), 3 * sizeof(struct timespec));
	return SHOWN;
}

static int show_status(const struct known_files *k, const struct stat *real, int is_source, struct shown *shown)
{
	PyObject *v = inode_of(k, real);
	if (!v) return PyErr_Occurred() ? -1 : NOT_PLAIN;
	int found = show_inode(v, k, real, is_source, shown);
	Py_DECREF(v);
	return found;
}

static struct statx_timestamp timestamp(const struct timespec *t)
{
	return (struct statx_timestamp){.tv_sec = t->tv_sec, .tv_nsec = (unsigned)t->tv_nsec};
}

/* The same as statx tells it: the basic fields and when the file was made (not the mount, as before Linux 5.8). */
static void extend(const struct shown *shown, struct statx *x)
{
	enum { NS = 1000000000 };
	const struct stat *st = &shown->st;
	long long ns = shown->btime % NS < 0 ? shown->btime % NS + NS : shown->btime % NS;
	struct timespec born = {.tv_sec = (shown->btime - ns) / NS, .tv_nsec = ns};
	*x = (struct statx){
		.stx_mask = STATX_BASIC_STATS | STATX_BTIME, .stx_blksize = SHOWN_BLOCK, .stx_nlink = (unsigned)st->st_nlink,
		.stx_uid = st->st_uid, .stx_gid = st->st_gid, .stx_mode = (unsigned short)st->st_mode, .stx_ino = st->st_ino,
		.stx_size = (unsigned long long)st->st_size, .stx_blocks = (unsigned long long)st->st_blocks,
		.stx_atime = timestamp(&st->st_atim), .stx_btime = timestamp(&born), .stx_ctime = timestamp(&st->st_ctim),
		.stx_mtime = timestamp(&st->st_mtim), .stx_rdev_major = major(st->st_rdev), .stx_rdev_minor = minor(st->st_rdev),
		.stx_dev_major = major(st->st_dev), .stx_dev_minor = minor(st->st_dev)};
}

static PyObject *not_plain(void) { return PyErr_Occurred() ? NULL : Py_NewRef(Py_None); }

/* Whether somebody's numbers of users are the container's own, and (with `all`) no rights to files need to be looked at, as
 * Creds.checked says it; -1 with an exception. */
static int sees_all(PyObject *process, int all)
{
	long long effective;
	PyObject *creds = get(process, &owners, PROCESS_CREDS);
	if (!creds || !is_a(creds, &rights) || number(creds, &rights, RIGHTS_EFFECTIVE, &effective)) return -1;
	return SLOT(creds, rights, RIGHTS_SPACE) == outermost && (!all || !(file_rights & ~effective));
}

/* Whether a path of the guest's is a plain string of less than `room` bytes within a page, which is read to `path`: its length, or -1. */
static ssize_t read_path(long long tid, unsigned long at, char *path, size_t room)
{
	size_t chunk = PAGE - at % PAGE < room ? PAGE - at % PAGE : room;
	struct iovec l = {path, chunk}, r = {(void *)at, chunk};
	ssize_t got = process_vm_readv((pid_t)tid, &l, 1, &r, 1, 0);
	char *end = got > 0 ? memchr(path, 0, (size_t)got) : NULL;
	return end ? end - path : -1;
}

/* What the kernel says of the file that a guest means by these arguments; `owner` is its process if the descriptors of that are the
 * thread's, or 0.  SHOWN, NOT_PLAIN, or a negative error that the guest gets. */
static int find_status(PyObject *fs, pid_t owner, int dirfd, const char *path, int flags, struct stat *real)
{
	long long cwd = AT_FDCWD;
	int borrowed = -1, failed;
	if (!*path && (!(flags & AT_EMPTY_PATH) || dirfd == AT_FDCWD)) return NOT_PLAIN;
	if (*path != '/') {
		if (dirfd == AT_FDCWD) {
			if (number(fs, &places, FS_CWD, &cwd) || cwd < 0) return NOT_PLAIN;
		} else if (!owner || dirfd < 0 || (borrowed = borrow(owner, dirfd)) < 0) {
			return NOT_PLAIN;
		}
	}
	if (*path) failed = fstatat(borrowed < 0 ? (int)cwd : borrowed, path, real, flags & AT_SYMLINK_NOFOLLOW) ? errno : 0;
	else failed = fstat(borrowed, real) ? errno : 0;
	if (borrowed >= 0) close(borrowed);
	return failed == ENOENT ? -ENOENT : failed ? NOT_PLAIN : SHOWN;
}

/* tell(seen, task, dirfd, path, buf, flags, extended) -> what newfstatat or (extended) statx gives, or None if that is not so simple.
 * `path` and `buf` are addresses in the guest; path 0: the descriptor is meant; buf None: nothing is told.  Flags:
 * AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH; others are not looked at. */
static PyObject *tell(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	struct known_files k;
	struct stat real;
	struct shown shown;
	struct statx extended;
	long long tid, pid, text_at;
	char path[256] = "";
	ssize_t length = 0;
	if (n != 7) { PyErr_SetString(PyExc_TypeError, "tell(seen, task, dirfd, path, buf, flags, extended)"); return NULL; }
	unsigned long at = PyLong_AsUnsignedLongMask(a[3]), to = a[4] == Py_None ? 0 : PyLong_AsUnsignedLongMask(a[4]);
	int dirfd = (int)PyLong_AsUnsignedLongMask(a[2]), flags = (int)PyLong_AsUnsignedLongMask(a[5]), wide = PyObject_IsTrue(a[6]);
	if (PyErr_Occurred() || known_files(a[0], &k) || !callers.type) return not_plain();
	if (!PyObject_TypeCheck(a[1], callers.type)) return not_plain(); /* not the supervisor's own kind of task */
	PyObject *process = get(a[1], &callers, OWNER_PROCESS);
	if (!process || !is_a(process, &owners)) return not_plain();
	PyObject *fs = get(process, &owners, PROCESS_FS);
	if (!fs || !is_a(fs, &places) || number(a[1], &callers, OWNER_TID, &tid) || number(process, &owners, PROCESS_PID, &pid)) return not_plain();
	/* What the supervisor has replaced is another string for it. */
	if (number(a[1], &callers, OWNER_TEXT_AT, &text_at) || (at && text_at == (long long)at)) return not_plain();
	if (at && (length = read_path(tid, at, path, sizeof path)) < 0) return not_plain();
	if (length && is_true(fs, &places, FS_SPECIAL)) return not_plain(); /* another root than the supervisor's */
	if (sees_all(process, length != 0) <= 0) return not_plain();
	/* A thread but the first may have descriptors of its own. */
	int found = find_status(fs, tid == pid ? (pid_t)pid : 0, dirfd, path, flags, &real);
	if (found < 0) return PyLong_FromLong(found);
	if (found == NOT_PLAIN || show_status(&k, &real, length > 3 && !memcmp(path + length - 3, ".py", 3), &shown) != SHOWN) return not_plain();
	if (a[4] == Py_None) return PyLong_FromLong(0);
	if (wide) extend(&shown, &extended);
	struct iovec l = {wide ? (void *)&extended : (void *)&shown.st, wide ? sizeof extended : sizeof shown.st};
	struct iovec r = {(void *)to, l.iov_len};
	forget_cstr();
	return process_vm_writev((pid_t)tid, &l, 1, &r, 1, 0) == (ssize_t)l.iov_len ? PyLong_FromLong(0) : not_plain();
}

/* know_files(VInode, Task, Process, FsContext, Creds, FS_CAPS, TOP) */
static PyObject *know_files(PyObject *self, PyObject *args)
{
	PyObject *inode, *task, *process, *fs, *creds, *top;
	if (!PyArg_ParseTuple(args, "OOOOOLO", &inode, &task, &process, &fs, &creds, &file_rights, &top)) return NULL;
	if (know(&inodes, inode) || know(&callers, task) || know(&owners, process) || know(&places, fs) || know(&rights, creds)) return NULL;
	Py_XSETREF(outermost, Py_NewRef(top));
	Py_RETURN_NONE;
}
