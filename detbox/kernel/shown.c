/* stat(2) of files about which nothing is special, from the path in the guest's memory to the answer in it: the commonest
 * call of all.  What is special is left to handlers/stat.py, which tells the same of these files, too.
 */

enum {
	V_DEV, V_INO, V_FMT, V_UID, V_GID, V_BTIME, V_TIMES, V_MODE, V_SOURCE, V_LINKS, V_MISSING, V_NODE,
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
	NULL, {"dev", "ino", "fmt", "uid", "gid", "btime", "times", "mode", "source", "links", "missing", "node"}, {0}};
static struct class callers = {NULL, {"tid", "process", "text_at"}, {0}};
static struct class owners = {NULL, {"pid", "fs", "creds"}, {0}};
static struct class places = {NULL, {"special", "_cwd"}, {0}};
static struct class rights = {NULL, {"effective", "space"}, {0}};

static long long file_rights; /* as in machine/creds.py */
static PyObject *outermost;

#define SHOWN_BLOCK 4096
#define SHOWN_SECTORS (SHOWN_BLOCK / 512)

/* What is known of all files: InodeTable's attributes. */
struct known_files {
	PyObject *table, *odd_devs;
	long long epoch_ns;
};

enum { SHOWN, NOT_PLAIN };

/* Fills in what the guest is shown of a file; NOT_PLAIN if more has to be asked, -1 with an exception. */
static int show_status(const struct known_files *k, const struct stat *real, int is_source, struct stat *shown)
{
	long long dev, ino, fmt, uid, gid, btime, mode, links;
	PyObject *key, *v, *times;
	int odd, source;

	if (!(key = Py_BuildValue("(kk)", real->st_dev, real->st_ino))) return -1;
	odd = PySet_Contains(k->odd_devs, PyTuple_GET_ITEM(key, 0));
	v = odd ? NULL : PyDict_GetItemWithError(k->table, key);
	Py_DECREF(key);
	if (!v) return odd < 0 || PyErr_Occurred() ? -1 : NOT_PLAIN;
	if (!is_a(v, &inodes) || number(v, &inodes, V_FMT, &fmt) || number(v, &inodes, V_BTIME, &btime) || number(v, &inodes, V_MODE, &mode) ||
	    (source = is_true(v, &inodes, V_SOURCE)) < 0)
		return -1;
	if (fmt != (real->st_mode & S_IFMT) || btime != k->epoch_ns || mode || (is_source && !source) ||
	    SLOT(v, inodes, V_MISSING) != Py_None || SLOT(v, inodes, V_NODE) != Py_None)
		return NOT_PLAIN;
	if (number(v, &inodes, V_DEV, &dev) || number(v, &inodes, V_INO, &ino) || number(v, &inodes, V_UID, &uid) ||
	    number(v, &inodes, V_GID, &gid) || number(v, &inodes, V_LINKS, &links) || !(times = get(v, &inodes, V_TIMES)))
		return -1;
	if (!PyBytes_Check(times) || PyBytes_GET_SIZE(times) != 3 * (Py_ssize_t)sizeof(struct timespec)) {
		PyErr_SetString(PyExc_TypeError, "times that are none");
		return -1;
	}
	*shown = (struct stat){
		.st_dev = (dev_t)dev, .st_ino = (ino_t)ino, .st_nlink = real->st_nlink, .st_mode = real->st_mode, .st_uid = (uid_t)uid,
		.st_gid = (gid_t)gid, .st_rdev = real->st_rdev, .st_blksize = SHOWN_BLOCK};
	if (S_ISREG(real->st_mode)) {
		if (real->st_size >= 1 << 30) return NOT_PLAIN; /* one that may have holes */
		shown->st_size = real->st_size;
		shown->st_blocks = (real->st_size + SHOWN_BLOCK - 1) / SHOWN_BLOCK * SHOWN_SECTORS;
	} else if (S_ISDIR(real->st_mode)) {
		shown->st_nlink = links ? (nlink_t)links : 1; /* "not counted" */
		shown->st_size = SHOWN_BLOCK;
		shown->st_blocks = SHOWN_SECTORS;
	} else {
		return NOT_PLAIN;
	}
	memcpy(&shown->st_atim, PyBytes_AS_STRING(times), 3 * sizeof(struct timespec));
	return SHOWN;
}

static PyObject *not_plain(void) { return PyErr_Occurred() ? NULL : Py_NewRef(Py_None); }

/* What show_status() says, into the guest's memory; None if it is left to others. */
static PyObject *tell_status(const struct known_files *k, const struct stat *real, int is_source, pid_t tid, unsigned long to)
{
	struct stat shown;
	struct iovec l = {&shown, sizeof shown}, r = {(void *)to, sizeof shown};
	if (show_status(k, real, is_source, &shown) != SHOWN) return not_plain();
	forget_cstr();
	return process_vm_writev(tid, &l, 1, &r, 1, 0) == sizeof shown ? PyLong_FromLong(0) : not_plain();
}

/* The arguments of both calls begin with (table, odd_devs, epoch_ns, task); whose thread it is, or NULL if it is not the
 * supervisor's own kind (or with an exception). */
static PyObject *caller_of(PyObject *const *a, struct known_files *k, long long *tid)
{
	PyObject *process;
	if (!callers.type || !PyObject_TypeCheck(a[3], callers.type)) return NULL;
	k->table = a[0], k->odd_devs = a[1], k->epoch_ns = PyLong_AsLongLong(a[2]);
	if (PyErr_Occurred() || number(a[3], &callers, OWNER_TID, tid)) return NULL;
	process = get(a[3], &callers, OWNER_PROCESS);
	return process && is_a(process, &owners) ? process : NULL;
}

/* Whether somebody's rights to files need not be looked at, as Creds.checked says it; -1 with an exception. */
static int has_all_rights(PyObject *process)
{
	long long effective;
	PyObject *creds = get(process, &owners, PROCESS_CREDS);
	if (!creds || !is_a(creds, &rights) || number(creds, &rights, RIGHTS_EFFECTIVE, &effective)) return -1;
	return !(file_rights & ~effective) && SLOT(creds, rights, RIGHTS_SPACE) == outermost;
}

/* tell_path(table, odd_devs, epoch_ns, task, dirfd, path, buf, flags) -> what newfstatat gives, or None if that is not so simple.
 * `path` and `buf` are addresses in the guest. */
static PyObject *tell_path(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	struct known_files k;
	struct stat real;
	long long tid, text_at, cwd = AT_FDCWD;
	char path[256], *end;
	if (n != 8) { PyErr_SetString(PyExc_TypeError, "tell_path(table, odd_devs, epoch_ns, task, dirfd, path, buf, flags)"); return NULL; }
	unsigned long at = PyLong_AsUnsignedLongMask(a[5]), to = PyLong_AsUnsignedLongMask(a[6]);
	unsigned int flags = (unsigned int)PyLong_AsUnsignedLongMask(a[7]);
	if (flags & ~(unsigned int)AT_SYMLINK_NOFOLLOW) return not_plain();
	PyObject *process = caller_of(a, &k, &tid), *fs = process && has_all_rights(process) > 0 ? get(process, &owners, PROCESS_FS) : NULL;
	int special = fs && is_a(fs, &places) ? is_true(fs, &places, FS_SPECIAL) : -1;
	if (special || PyErr_Occurred() || number(a[3], &callers, OWNER_TEXT_AT, &text_at)) return not_plain();
	if (text_at == (long long)at) return not_plain(); /* it is another string for the supervisor */
	size_t chunk = PAGE - at % PAGE < sizeof path ? PAGE - at % PAGE : sizeof path;
	struct iovec l = {path, chunk}, r = {(void *)at, chunk};
	ssize_t got = process_vm_readv((pid_t)tid, &l, 1, &r, 1, 0);
	if (got < 2 || !(end = memchr(path, 0, (size_t)got)) || end == path) return not_plain();
	if (path[0] != '/') {
		if ((int)PyLong_AsUnsignedLongMask(a[4]) != AT_FDCWD || number(fs, &places, FS_CWD, &cwd) || cwd < 0) return not_plain();
	}
	if (fstatat((int)cwd, path, &real, (int)flags)) return errno == ENOENT ? PyLong_FromLong(-ENOENT) : not_plain();
	return tell_status(&k, &real, end - path > 3 && !memcmp(end - 3, ".py", 3), (pid_t)tid, to);
}

/* tell_fd(table, odd_devs, epoch_ns, task, fd, buf): the same of a descriptor */
static PyObject *tell_fd(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	struct known_files k;
	struct stat real;
	long long tid, pid;
	if (n != 6) { PyErr_SetString(PyExc_TypeError, "tell_fd(table, odd_devs, epoch_ns, task, fd, buf)"); return NULL; }
	PyObject *process = caller_of(a, &k, &tid);
	int fd = (int)PyLong_AsUnsignedLongMask(a[4]);
	/* A thread but the first may have descriptors of its own. */
	if (!process || has_all_rights(process) <= 0 || number(process, &owners, PROCESS_PID, &pid) || tid != pid || fd < 0) return not_plain();
	int mine = borrow((pid_t)tid, fd);
	if (mine < 0) return not_plain();
	int failed = fstat(mine, &real);
	close(mine);
	return failed ? not_plain() : tell_status(&k, &real, 0, (pid_t)tid, PyLong_AsUnsignedLongMask(a[5]));
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
