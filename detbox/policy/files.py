"""Policy rows: names, metadata and directories."""

from __future__ import annotations

from errno import ENOSYS, EOPNOTSUPP, EPERM

from detbox.policy.find import h
from detbox.policy.row import Row, allow, any_bits, emulate, less, let_through, no_bits, refuse, watch

PATHS = "files"
META = "metadata"
DIRS = "directories"
MOUNTS = "mounts"
SYNC = "storage"

MAP_SHARED_BIT = 0x01  # MAP_SHARED and MAP_SHARED_VALIDATE have it, MAP_PRIVATE has not
MAP_ANONYMOUS = 0x20
PROT_EXEC = 0x4

_VIRTUAL_STAT = "inode, device, owner, times, block counts and directory sizes are virtual"
_VIRTUAL_OWNER = "owners are virtual where the host cannot map them; the change time is virtual"
_STAMPS = "the file times that it changes are virtual"
_XATTR = "only the user's own attributes exist; the order of a list is fixed"

ROWS: tuple[Row, ...] = (
    *(emulate(name, h(name), PATHS,
              "synthetic files of /proc, /sys and /dev are recognised by what is opened; "
              "creation is stamped in virtual time")
      for name in ("open", "openat", "openat2", "creat")),
    *(emulate(name, h(name), META, _VIRTUAL_STAT)
      for name in ("stat", "lstat", "fstat", "newfstatat", "statx")),
    *(emulate(name, h(name), META, "permissions are those of the virtual user, not of the host's")
      for name in ("access", "faccessat", "faccessat2")),
    *(emulate(name, h(name), META, "links of /proc show virtual names")
      for name in ("readlink", "readlinkat")),
    *(emulate(name, h(name), META, "sizes and free space of file systems are fixed")
      for name in ("statfs", "fstatfs")),
    *(emulate(name, h(name), DIRS, "the whole directory is sorted by name; inodes and offsets are virtual")
      for name in ("getdents", "getdents64")),
    *(emulate(name, h(name), META, _XATTR)
      for name in ("setxattr", "lsetxattr", "fsetxattr", "getxattr", "lgetxattr", "fgetxattr", "listxattr",
                   "llistxattr", "flistxattr", "removexattr", "lremovexattr", "fremovexattr")),
    *(refuse(name, ENOSYS, META, "newer than Linux 6.1, which the guest sees; programs use the older calls")
      for name in ("setxattrat", "getxattrat", "listxattrat", "removexattrat", "file_getattr", "file_setattr",
                   "cachestat")),
    *(emulate(name, h(name), DIRS, _STAMPS)
      for name in ("mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "rename", "renameat", "renameat2",
                   "link", "linkat", "symlink", "symlinkat", "mknod", "mknodat")),
    *(emulate(name, h(name), META, _STAMPS)
      for name in ("chmod", "fchmod", "fchmodat", "fchmodat2")),
    *(emulate(name, h(name), META, _VIRTUAL_OWNER)
      for name in ("chown", "fchown", "lchown", "fchownat")),
    *(emulate(name, h(name), META, "file times are virtual; the guest's own values are kept")
      for name in ("utime", "utimes", "futimesat", "utimensat")),
    *(emulate(name, h(name), PATHS, _STAMPS)
      for name in ("truncate", "ftruncate", "fallocate")),
    watch("umask", h("umask"), PATHS, "the supervisor creates files for the guest and has to know the mask"),
    *(watch(name, h(name), DIRS, "the supervisor resolves relative paths and has to know the directory")
      for name in ("chdir", "fchdir")),
    watch("chroot", h("chroot"), DIRS, "the supervisor resolves absolute paths and has to know the root"),
    emulate("getcwd", h("getcwd"), DIRS, "a path that depends on the container's mounts is not shown"),
    emulate("lseek", h("lseek"), PATHS, "only SEEK_DATA and SEEK_HOLE: holes depend on the host",
            args=(let_through(less(2, 3), why="SEEK_SET, SEEK_CUR and SEEK_END touch only the descriptor"),)),
    watch("mmap", h("mmap"), PATHS, "code is searched for instructions that leak the CPU; "
          "files that change through a shared mapping get virtual times",
          args=(let_through(any_bits(3, MAP_ANONYMOUS), why="memory without a file"),
                let_through(no_bits(2, PROT_EXEC), no_bits(3, MAP_SHARED_BIT), why="private data"))),
    refuse("name_to_handle_at", EOPNOTSUPP, PATHS, "a handle holds the host's inode number"),
    refuse("open_by_handle_at", EPERM, PATHS, "a handle would reach outside of the container"),
    *(emulate(name, h(name), SYNC, "nothing outlives the run by itself, so nothing is flushed to a disk")
      for name in ("fsync", "fdatasync", "syncfs", "sync_file_range")),
    refuse("sync", 0, SYNC, "nothing outlives the run by itself, so nothing is flushed to a disk"),
    allow("msync", SYNC, "affects the caller's own mappings only"),
    allow("fadvise64", SYNC, "a hint to the page cache"),
    refuse("readahead", 0, SYNC, "a hint; its errors depend on the host's file system"),
    *(watch(name, h(name), MOUNTS, "the guest has no power over the container's mounts; "
            "in a mount namespace of its own it may mount what it likes",
            missing="file systems that the guest mounts itself are not determinised")
      for name in ("mount", "umount2", "pivot_root", "open_tree", "move_mount", "fsopen", "fsconfig",
                   "fsmount", "fspick", "mount_setattr")),
    *(refuse(name, ENOSYS, MOUNTS, "newer than Linux 6.1; programs read /proc/self/mountinfo")
      for name in ("statmount", "listmount", "open_tree_attr")),
    *(refuse(name, ENOSYS, MOUNTS, "no quotas are configured") for name in ("quotactl", "quotactl_fd")),
    *(refuse(name, EPERM, MOUNTS, "changes the whole machine") for name in ("swapon", "swapoff")),
    *(refuse(name, ENOSYS, MOUNTS, "obsolete; modern kernels are configured without it")
      for name in ("uselib", "ustat", "sysfs", "_sysctl", "lookup_dcookie", "nfsservctl")),
)
