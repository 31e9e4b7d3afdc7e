/* Files and directories, as the standard library does not tell of them. */

static PyObject *py_openat2(PyObject *self, PyObject *args)
{
	int dirfd;
	const char *path;
	unsigned long long how[3];
	if (!PyArg_ParseTuple(args, "iyKKK", &dirfd, &path, &how[0], &how[1], &how[2])) return NULL;
	long r = syscall(437, dirfd, path, how, sizeof how);
	return r < 0 ? fail() : PyLong_FromLong(r);
}

/* mount_id(dirfd, path) -> the number of the mount through which a file is reached; links are not followed, and an
 * empty path means the descriptor itself. */
static PyObject *mount_id(PyObject *self, PyObject *args)
{
	int dirfd;
	const char *path;
	struct statx s;
	if (!PyArg_ParseTuple(args, "iy", &dirfd, &path)) return NULL;
	if (syscall(SYS_statx, dirfd, path, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH, STATX_MNT_ID, &s)) return fail();
	return PyLong_FromUnsignedLongLong(s.stx_mnt_id);
}

/* read_directory(fd, look) -> [(name, inode, type, device)], sorted by name, without "." and "..".
 *
 * look: all but the name is what stat says, as where the type is unknown; otherwise it is what the
 * directory says, and the device is 0. */
static PyObject *read_directory(PyObject *self, PyObject *args)
{
	static char buffer[1 << 18];
	int fd, look;
	if (!PyArg_ParseTuple(args, "ip", &fd, &look)) return NULL;
	PyObject *found = PyList_New(0);
	long got;
	while (found && (got = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) != 0) {
		if (got < 0) { Py_DECREF(found); return fail(); }
		struct dirent64 *e;
		for (long at = 0; found && at < got; at += e->d_reclen) {
			e = (struct dirent64 *)(buffer + at);
			if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
			struct stat st = {.st_ino = e->d_ino, .st_mode = DTTOIF(e->d_type)};
			if ((look || e->d_type == DT_UNKNOWN) && fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW)) continue;
			PyObject *entry = Py_BuildValue("yKiK", e->d_name, (unsigned long long)st.st_ino,
							(int)IFTODT(st.st_mode), (unsigned long long)st.st_dev);
			if (!entry || PyList_Append(found, entry)) Py_CLEAR(found);
			Py_XDECREF(entry);
		}
	}
	if (found && PyList_Sort(found)) Py_CLEAR(found);
	return found;
}

/* pack_dirents(entries, position, room) -> (as many struct linux_dirent64 as fit, position after them)
 *
 * An entry is (inode, name, type); d_off is the position after it. */
static PyObject *pack_dirents(PyObject *self, PyObject *args)
{
	enum { HEAD = offsetof(struct dirent64, d_name) };
	PyObject *entries;
	Py_ssize_t position, room, used = 0;
	if (!PyArg_ParseTuple(args, "O!nn", &PyList_Type, &entries, &position, &room)) return NULL;
	PyObject *out = PyBytes_FromStringAndSize(NULL, room);
	if (!out) return NULL;
	for (; position < PyList_GET_SIZE(entries); position++) {
		unsigned long long inode;
		const char *name;
		Py_ssize_t length;
		int type;
		if (!PyArg_ParseTuple(PyList_GET_ITEM(entries, position), "Ky#i", &inode, &name, &length, &type)) {
			Py_DECREF(out);
			return NULL;
		}
		Py_ssize_t size = (HEAD + length + 1 + 7) & ~(Py_ssize_t)7;
		if (size > room - used) break;
		char *at = PyBytes_AS_STRING(out) + used;
		memset(at, 0, (size_t)size);
		struct dirent64 *e = (struct dirent64 *)at;
		e->d_ino = inode;
		e->d_off = position + 1;
		e->d_reclen = (unsigned short)size;
		e->d_type = (unsigned char)type;
		memcpy(at + HEAD, name, (size_t)length);
		used += size;
	}
	if (_PyBytes_Resize(&out, used)) return NULL;
	return Py_BuildValue("Nn", out, position);
}
