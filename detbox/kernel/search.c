/* Which directories a path leads through: asked for every call with a path that an ordinary user makes, and
 * dearer in Python than the call itself.
 */

enum { MOST_LINKS = 40 }; /* MAXSYMLINKS of include/linux/namei.h */

/* Links of procfs lead to objects, whatever their texts say.  These have no size (exe, cwd, self), or their permissions
 * tell how a descriptor may be used (proc_pid_instantiate() and proc_fd_instantiate() in fs/proc). */
static int is_magic(const struct stat *st)
{
	return !st->st_size || (st->st_mode & 0777) != 0777;
}

/* Puts the text of the link path[:end] in the place of its name, which begins at `name`, or of the whole path
 * before, if it is absolute.  Where it was put; -1 if it does not fit or is magic. */
static ssize_t put_link(int dir_fd, char *path, size_t name, size_t end, const struct stat *st)
{
	char text[PATH_LIMIT], rest[PATH_LIMIT];

	if (is_magic(st)) return -1;
	strcpy(rest, path + end);
	path[end] = 0;
	ssize_t size = readlinkat(dir_fd, path, text, sizeof text);
	if (size <= 0) return -1;
	if (text[0] == '/') name = 0;
	if (name + (size_t)size + strlen(rest) >= PATH_LIMIT) return -1;
	memcpy(path + name, text, (size_t)size);
	strcpy(path + name + size, rest);
	return (ssize_t)name;
}

/* Directories that everybody has been found able to reach and to search, by their absolute paths, each at the place
 * of its hash.  True until a directory that not everybody may search is made, moved or changed, or a link made:
 * whoever does that calls forget_ways(). */
enum { WAYS = 1024 };
static char *ways[WAYS];

static char **place_of(const char *path, size_t size)
{
	size_t hash = 5381;
	for (size_t i = 0; i < size; i++) hash = hash * 33 + (unsigned char)path[i];
	return &ways[hash % WAYS];
}

static int is_known(const char *path, size_t size)
{
	const char *known = *place_of(path, size);
	return known && !strncmp(known, path, size) && !known[size];
}

static void remember(const char *path, size_t size)
{
	char **place = place_of(path, size);
	free(*place);
	*place = strndup(path, size);
}

/* forget_ways() -> None: other directories may be on the way, or other people may search them. */
static PyObject *forget_ways(PyObject *self, PyObject *unused)
{
	for (int i = 0; i < WAYS; i++) {
		free(ways[i]);
		ways[i] = NULL;
	}
	Py_RETURN_NONE;
}

/* Where the directory of the last name before path[size] ends: 0 for the root, and where there is none. */
static size_t directory_of(const char *path, size_t size)
{
	while (size && path[size - 1] == '/') size--;
	while (size && path[size - 1] != '/') size--;
	while (size && path[size - 1] == '/') size--;
	return size;
}

/* Whether the directory path[:end] may be searched by everybody; -1: it cannot be looked at. */
static int everybodys(int dir_fd, char *path, size_t end)
{
	struct stat st;
	char next = path[end];
	path[end] = 0;
	int found = fstatat(dir_fd, end ? path : next == '/' ? "/" : ".", &st, 0);
	path[end] = next;
	return found ? -1 : !S_ISDIR(st.st_mode) || (st.st_mode & 0111) == 0111;
}

/* restricted(dir_fd, path, end, known, follow) -> None, or (path, end, magic): the way of a path leads through the
 * directory path[:end], which not everybody may search: the caller has to look who may.  magic: path[:end] is a link
 * of procfs to an object, which not everybody may follow, and nothing behind it is looked at.  False: everybody may
 * find out that a name on the way, not the last one, does not exist (ENOENT).
 * Names up to `end` are passed over, and with `known` the directory that they lead to as well: this goes on
 * after an answer.  The path in an answer has the texts of links in the place of their names.  dir_fd: None
 * for an absolute path.  None also where the kernel has an error of its own for the path. */
static PyObject *restricted(PyObject *self, PyObject *const *a, Py_ssize_t n)
{
	char path[PATH_LIMIT], *text;
	Py_ssize_t size;
	struct stat st;

	if (n != 5) { PyErr_SetString(PyExc_TypeError, "restricted(dir_fd, path, end, known, follow)"); return NULL; }
	int dir_fd = a[0] == Py_None ? AT_FDCWD : (int)PyLong_AsLong(a[0]);
	size_t end = PyLong_AsSize_t(a[2]);
	int known = PyObject_IsTrue(a[3]), follow = PyObject_IsTrue(a[4]), links = 0;
	if (PyErr_Occurred() || PyBytes_AsStringAndSize(a[1], &text, &size)) return NULL;
	if ((size_t)size >= sizeof path || end > (size_t)size || strlen(text) != (size_t)size) Py_RETURN_NONE;
	memcpy(path, text, (size_t)size + 1);
	int whole = path[0] == '/' && !end; /* from the root on, so that the directories can be remembered */
	if (whole) {
		end = directory_of(path, (size_t)size);
		while (end && !is_known(path, end)) end = directory_of(path, end);
		known |= end > 0;
	}
	int open = known ? 1 : everybodys(dir_fd, path, end);
	while (open >= 0) {
		/* What is left of the path, behind a link's text too, tells how far the way as it was given has come. */
		size_t left = strlen(path + end), passed = left < (size_t)size ? (size_t)size - left : 0;
		if (whole && open && passed && text[passed] == '/' && !is_known(text, passed)) remember(text, passed);
		size_t name = end + strspn(path + end, "/");
		size_t after = name + strcspn(path + name, "/");
		if (after == name) break;
		if (!open) return Py_BuildValue("y#nO", path, (Py_ssize_t)strlen(path), (Py_ssize_t)end, Py_False);
		if (!path[after] && !follow) break;
		char next = path[after];
		path[after] = 0;
		int failed = fstatat(dir_fd, path, &st, AT_SYMLINK_NOFOLLOW);
		path[after] = next;
		if (failed && errno == ENOENT && path[after + strspn(path + after, "/")]) Py_RETURN_FALSE;
		if (failed) break;
		if (S_ISLNK(st.st_mode)) {
			ssize_t at = ++links > MOST_LINKS ? -1 : put_link(dir_fd, path, name, after, &st);
			if (at < 0 && is_magic(&st))
				return Py_BuildValue("y#nO", path, (Py_ssize_t)strlen(path), (Py_ssize_t)after, Py_True);
			if (at < 0) break;
			if (!at) {
				end = 0;
				open = everybodys(dir_fd, path, end);
			}
			continue;
		}
		if (!S_ISDIR(st.st_mode)) break;
		end = after;
		open = (st.st_mode & 0111) == 0111;
	}
	Py_RETURN_NONE;
}
