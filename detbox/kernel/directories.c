/* A tree of directories made again elsewhere, for the upper layer of an overlay.
 *
 * An ordinary user's container needs some 20,000 of them before it can start, so
 * what counts is the number of system calls for each, and that several threads
 * share the work.  Threads touch nothing of Python's.
 */
#include <pthread.h>

#define MAKERS_MAX 4 /* threads; more wait for the same locks of the kernel */
#define SPLIT_LEVELS 2 /* directories above are given to whichever thread is free */

struct subtree {
	struct subtree *next;
	int depth;
	char path[]; /* relative, without a slash at its beginning */
};

struct making {
	int source, target;
	mode_t asked;
	dev_t dev;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct subtree *todo, *refused;
	int busy, failed, all;
};

struct linux_dirent64_head {
	uint64_t ino;
	int64_t off;
	unsigned short reclen;
	unsigned char type;
	char name[];
};

static struct subtree *subtree(const char *path, int depth, struct subtree *next)
{
	struct subtree *s = malloc(sizeof *s + strlen(path) + 1);
	if (!s) return NULL;
	s->next = next;
	s->depth = depth;
	strcpy(s->path, path);
	return s;
}

static void add_subtree(struct making *m, struct subtree **list, const char *path, int depth)
{
	pthread_mutex_lock(&m->lock);
	struct subtree *s = subtree(path, depth, *list);
	if (s) *list = s;
	else m->failed = 1;
	pthread_cond_signal(&m->changed);
	pthread_mutex_unlock(&m->lock);
}

/* Makes one directory and those above it, where only those that are to be shown empty are made. */
static void make_path(struct making *m, const char *path)
{
	char part[PATH_MAX];
	struct stat st;
	for (size_t n = 1; n <= strlen(path); n++) {
		if (path[n] && path[n] != '/') continue;
		memcpy(part, path, n);
		part[n] = 0;
		if (!fstatat(m->source, part, &st, AT_SYMLINK_NOFOLLOW) && !mkdirat(m->target, part, 0700))
			fchmodat(m->target, part, st.st_mode & 07777, 0);
	}
}

/* Not everybody may list and search it: what it holds is not looked at, and the overlay shows nothing of it. */
static void refuse(struct making *m, const char *path)
{
	if (!m->all) make_path(m, path);
	int to = openat(m->target, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	fsetxattr(to, "user.overlay.opaque", "y", 1, 0);
	close(to);
	add_subtree(m, &m->refused, path, 0);
}

static void make_below(struct making *m, int from, char *path, size_t length, int level, int depth, int inherits);

/* One directory: `name`, whose path ends at `length`, in the directory `from`. */
static void make_one(struct making *m, int from, const char *name, char *path, size_t length, int level, int depth, int inherits)
{
	struct stat st;
	if (fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISDIR(st.st_mode)) return;
	if (m->all) {
		if (mkdirat(m->target, path, st.st_mode & 01777)) return;
		if (inherits || st.st_mode & 06022) /* the group's bit goes to new directories; the umask takes bits away */
			fchmodat(m->target, path, st.st_mode & 07777, 0);
	}
	int shown = !(m->asked & ~st.st_mode);
	/* Two links are its own name and its ".": no subdirectories.  File systems that do not count say 1.
	 * With these bits whoever asks may list and search it. */
	if (shown && st.st_nlink == 2 && ((st.st_mode & 0555) == 0555 || !faccessat(from, name, R_OK | X_OK, AT_EACCESS)))
		return;
	int to = shown ? openat(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
	if (to < 0) {
		refuse(m, path);
	} else if (depth > 1 && st.st_dev == m->dev && level < SPLIT_LEVELS) {
		close(to);
		add_subtree(m, &m->todo, path, depth - 1);
	} else if (depth > 1 && st.st_dev == m->dev) {
		make_below(m, to, path, length, level + 1, depth - 1, st.st_mode & S_ISGID);
	} else {
		close(to);
	}
}

/* All directories below `from`, which is closed; `inherits`: its copy has the group's bit. */
static void make_below(struct making *m, int from, char *path, size_t length, int level, int depth, int inherits)
{
	enum { ROOM = 32768 };
	char *room = malloc(ROOM);
	long got = 0;
	if (!room) m->failed = 1;
	while (room && (got = syscall(SYS_getdents64, from, room, ROOM)) > 0) {
		for (long at = 0; at < got;) {
			struct linux_dirent64_head *e = (void *)(room + at);
			at += e->reclen;
			size_t n = strlen(e->name);
			if ((e->type != DT_DIR && e->type != DT_UNKNOWN) || !strcmp(e->name, ".") || !strcmp(e->name, "..")) continue;
			if (length + n + 2 > PATH_MAX) continue;
			if (length) path[length] = '/';
			memcpy(path + length + !!length, e->name, n + 1);
			make_one(m, from, e->name, path, length + !!length + n, level, depth, inherits);
		}
	}
	free(room);
	close(from);
}

static void *maker(void *arg)
{
	struct making *m = arg;
	char path[PATH_MAX];
	pthread_mutex_lock(&m->lock);
	for (;;) {
		struct subtree *s = m->todo;
		if (!s && !m->busy) break;
		if (!s) {
			pthread_cond_wait(&m->changed, &m->lock);
			continue;
		}
		m->todo = s->next;
		m->busy++;
		pthread_mutex_unlock(&m->lock);
		int level = 0;
		for (char *c = s->path; *c; c++) level += *c == '/';
		struct stat st = {0};
		int from = openat(m->source, *s->path ? s->path : ".", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (from >= 0 && (!m->all || !fstatat(m->target, s->path, &st, AT_EMPTY_PATH))) {
			strcpy(path, s->path);
			make_below(m, from, path, strlen(path), *path ? level + 1 : 0, s->depth, st.st_mode & S_ISGID);
		}
		free(s);
		pthread_mutex_lock(&m->lock);
		m->busy--;
		pthread_cond_broadcast(&m->changed);
	}
	pthread_mutex_unlock(&m->lock);
	return NULL;
}

/* make_directories(source, target, depth, asked, makers, all) -> paths of those that lack the bits `asked`, sorted
 *
 * As many threads as `makers` make the directories below one descriptor also below the other, for an overlay's upper layer:
 * `all` of them, or those only that lack the bits.
 * Other file systems that are mounted below the source are left out, as an overlay leaves them out.
 * The umask must be 0.  A directory that cannot be read counts as one that lacks them.  Those in the result are made opaque. */
static PyObject *make_directories(PyObject *self, PyObject *args)
{
	struct making m = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
	struct stat st;
	int depth, makers, started = 0;
	if (!PyArg_ParseTuple(args, "iiiIip", &m.source, &m.target, &depth, &m.asked, &makers, &m.all)) return NULL;
	if (fstat(m.source, &st)) return fail();
	m.dev = st.st_dev;
	m.todo = subtree("", depth, NULL);
	if (!m.todo) return PyErr_NoMemory();
	pthread_t others[MAKERS_MAX];
	Py_BEGIN_ALLOW_THREADS
	while (started + 1 < makers && started + 1 < MAKERS_MAX && !pthread_create(&others[started], NULL, maker, &m)) started++;
	maker(&m);
	while (started) pthread_join(others[--started], NULL);
	Py_END_ALLOW_THREADS
	PyObject *refused = PyList_New(0);
	for (struct subtree *s = m.refused, *next; s; s = next) {
		PyObject *name = refused ? PyBytes_FromFormat("/%s", s->path) : NULL;
		if (refused && (!name || PyList_Append(refused, name))) Py_CLEAR(refused);
		Py_XDECREF(name);
		next = s->next;
		free(s);
	}
	if (refused && (m.failed || PyList_Sort(refused))) {
		Py_CLEAR(refused);
		if (!PyErr_Occurred()) PyErr_NoMemory();
	}
	return refused;
}

/* What is known of a directory: a record of the list that container/skeleton.py writes. */
struct directory_record {
	uint64_t inode;
	int64_t changed; /* st_ctim in nanoseconds */
	uint32_t mode;
	uint16_t flags, length;
	char path[]; /* relative, ends with a 0; the next record is at a multiple of 8 */
};

struct checking {
	const struct directory_record **records;
	char *changed; /* one for each record */
	size_t first, last;
	int root, same;
};

static void *checker(void *arg)
{
	struct checking *c = arg;
	struct stat st;
	for (size_t i = c->first; i < c->last; i++) {
		const struct directory_record *r = c->records[i];
		c->changed[i] = fstatat(c->root, r->path, &st, AT_SYMLINK_NOFOLLOW) || !S_ISDIR(st.st_mode) ||
				(c->same && (st.st_ino != r->inode || st.st_ctim.tv_sec * 1000000000 + st.st_ctim.tv_nsec != r->changed));
	}
	return NULL;
}

static void check_all(const struct directory_record **records, char *changed, size_t n, int root, int checkers, int same)
{
	struct checking parts[MAKERS_MAX];
	pthread_t threads[MAKERS_MAX];
	int started[MAKERS_MAX] = {0};
	if (checkers > MAKERS_MAX) checkers = MAKERS_MAX;
	for (int i = checkers - 1; i >= 0; i--) {
		parts[i] = (struct checking){records, changed, n * i / checkers, n * (i + 1) / checkers, root, same};
		started[i] = i && !pthread_create(&threads[i], NULL, checker, &parts[i]);
		if (!started[i]) checker(&parts[i]);
	}
	for (int i = 1; i < checkers; i++)
		if (started[i]) pthread_join(threads[i], NULL);
}

/* The records from `at` on, in an array that becomes `*records`; their number, or -1 for a list that is damaged. */
static long find_records(const char *at, const char *end, const struct directory_record ***records)
{
	size_t n = 0, most = (end - at) / (sizeof(struct directory_record) + 8) + 1;
	*records = malloc(most * sizeof **records);
	while (*records && at < end) {
		const struct directory_record *r = (const void *)at;
		if (end - at < (long)sizeof *r || end - at - (long)sizeof *r <= r->length || r->path[r->length]) return -1;
		(*records)[n++] = r;
		at += (sizeof *r + r->length + 1 + 7) & ~7UL;
	}
	return n;
}

static int append_path(PyObject *list, const struct directory_record *r)
{
	PyObject *path = PyBytes_FromStringAndSize(r->path, r->length);
	int failed = !path || PyList_Append(list, path);
	Py_XDECREF(path);
	return failed;
}

/* check_directories(root, records, flags, checkers, same) -> (paths of those that have changed, paths of those with any of the flags)
 *
 * As many threads as `checkers` call fstatat once for each record, relative to the descriptor `root`.  Unless they must be the
 * `same` as the records say, it is enough that they are directories.
 * Raises ValueError for a list that is damaged. */
static PyObject *check_directories(PyObject *self, PyObject *args)
{
	int root, flags, checkers, same, failed = 0;
	Py_buffer list;
	if (!PyArg_ParseTuple(args, "iy*iip", &root, &list, &flags, &checkers, &same)) return NULL;
	PyObject *changed = PyList_New(0), *flagged = PyList_New(0);
	const struct directory_record **records;
	long n = find_records(list.buf, (const char *)list.buf + list.len, &records);
	char *differs = malloc(n > 0 ? n : 1);
	failed = !changed || !flagged || !records || !differs;
	if (failed) {
		PyErr_NoMemory();
	} else if (n < 0) {
		PyErr_SetString(PyExc_ValueError, "a damaged list of directories");
		failed = 1;
	} else {
		Py_BEGIN_ALLOW_THREADS
		check_all(records, differs, n, root, checkers > 0 ? checkers : 1, same);
		Py_END_ALLOW_THREADS
	}
	for (long i = 0; i < n && !failed; i++) {
		failed |= differs[i] && append_path(changed, records[i]);
		failed |= records[i]->flags & flags && append_path(flagged, records[i]);
	}
	free(records);
	free(differs);
	PyBuffer_Release(&list);
	if (!failed) return Py_BuildValue("NN", changed, flagged);
	Py_XDECREF(changed);
	Py_XDECREF(flagged);
	return NULL;
}

struct name {
	const char *path;
	size_t length;
};

static int is_one_of(const struct name *names, long count, const char *path, size_t length)
{
	for (long i = 0; i < count; i++)
		if (names[i].length == length && !memcmp(names[i].path, path, length)) return 1;
	return 0;
}

/* How much of a path is its parent's: none for the topmost ones. */
static size_t parent_length(const char *path, size_t length)
{
	while (length && path[length - 1] != '/') length--;
	return length ? length - 1 : 0;
}

/* related_directories(records, paths) -> the records of those directories, of their parents, and of what lies directly in them
 *
 * For a few paths: each record is compared with each.  Raises ValueError for a list that is damaged. */
static PyObject *related_directories(PyObject *self, PyObject *args)
{
	Py_buffer list;
	PyObject *paths, *found = NULL;
	if (!PyArg_ParseTuple(args, "y*O!", &list, &PyList_Type, &paths)) return NULL;
	const struct directory_record **records;
	long n = find_records(list.buf, (const char *)list.buf + list.len, &records), count = PyList_GET_SIZE(paths);
	struct name *names = malloc((2 * count + 1) * sizeof *names);
	char *kept = malloc(list.len + 1), *end = kept;
	if (!records || !names || !kept) PyErr_NoMemory();
	else if (n < 0) PyErr_SetString(PyExc_ValueError, "a damaged list of directories");
	for (long i = 0; i < count && !PyErr_Occurred(); i++) {
		Py_ssize_t length;
		if (PyBytes_AsStringAndSize(PyList_GET_ITEM(paths, i), (char **)&names[i].path, &length)) break;
		names[i].length = length;
		names[count + i] = (struct name){names[i].path, parent_length(names[i].path, length)};
	}
	if (!PyErr_Occurred()) {
		for (long i = 0; i < n; i++) {
			const struct directory_record *r = records[i];
			if (!is_one_of(names, 2 * count, r->path, r->length) &&
			    !is_one_of(names, count, r->path, parent_length(r->path, r->length)))
				continue;
			size_t size = (sizeof *r + r->length + 1 + 7) & ~7UL;
			memcpy(end, r, size);
			end += size;
		}
		found = PyBytes_FromStringAndSize(kept, end - kept);
	}
	free(records);
	free(names);
	free(kept);
	PyBuffer_Release(&list);
	return found;
}

static int make_entry(int top, const char *path, char kind, const char *content, size_t length, mode_t mode)
{
	if (kind == 'd') return mkdirat(top, path, 0777);
	if (kind == 'l') return symlinkat(content, top, path);
	int fd = openat(top, path, O_CREAT | O_WRONLY | O_EXCL | O_CLOEXEC, mode);
	if (fd < 0) return -1;
	ssize_t wrote = write(fd, content, length);
	close(fd);
	if (wrote >= 0 && (size_t)wrote != length) errno = ENOSPC;
	return (size_t)wrote == length ? 0 : -1;
}

/* The directories above what `path` names. */
static int make_parents(int top, const char *path)
{
	char part[PATH_MAX];
	for (const char *slash = path; (slash = strchr(slash, '/')); slash++) {
		if (slash - path >= PATH_MAX) {
			errno = ENAMETOOLONG;
			return -1;
		}
		memcpy(part, path, slash - path);
		part[slash - path] = 0;
		if (mkdirat(top, part, 0777) && errno != EEXIST) return -1;
	}
	return 0;
}

/* make_tree(top, entries, mode): a tree of small files below the directory `top`.
 *
 * An entry is (path, kind, content): "f", a file of that mode; "l", a symbolic link to the content; "d", a directory.  Paths are
 * relative.  Directories above an entry are made where they are missing.  Raises OSError with the entry's path. */
static PyObject *make_tree(PyObject *self, PyObject *args)
{
	int top;
	unsigned mode;
	PyObject *entries;
	if (!PyArg_ParseTuple(args, "iO!I", &top, &PyList_Type, &entries, &mode)) return NULL;
	for (Py_ssize_t i = 0; i < PyList_GET_SIZE(entries); i++) {
		const char *path, *kind, *content;
		Py_ssize_t length;
		if (!PyArg_ParseTuple(PyList_GET_ITEM(entries, i), "ssy#", &path, &kind, &content, &length)) return NULL;
		int failed = make_entry(top, path, *kind, content, length, mode);
		if (failed && errno == ENOENT && !(failed = make_parents(top, path))) failed = make_entry(top, path, *kind, content, length, mode);
		if (failed && (*kind != 'd' || errno != EEXIST)) return PyErr_SetFromErrnoWithFilename(PyExc_OSError, path);
	}
	Py_RETURN_NONE;
}
