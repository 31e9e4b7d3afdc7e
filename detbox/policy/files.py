"""Policy rows: names, metadata and directories."""

from __future__ import annotations

from errno import ENOSYS, EOPNOTSUPP, EPERM

from detbox.handlers import hugepages, mapping
from detbox.kernel import own
from detbox.policy.later import (
    access,
    content,
    dirs,
    metadata,
    mounts,
    namespace_ops,
    openat2,
    opening,
    stat,
    statfs,
    storage,
    xattr,
)
from detbox.policy.row import (
    Row,
    allow,
    any_bits,
    emulate,
    emulated,
    less,
    let_through,
    no_bits,
    refuse,
    watch,
    watched,
)

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
    *emulated(
        PATHS, "synthetic files of /proc, /sys and /dev are recognised by what is opened; "
        "creation is stamped in virtual time",
        open=opening.open_, openat=opening.openat, openat2=openat2.openat2, creat=opening.creat,
    ),
    *emulated(
        META, _VIRTUAL_STAT,
        stat=stat.stat, lstat=stat.lstat, fstat=stat.fstat, newfstatat=stat.newfstatat, statx=stat.statx,
    ),
    *emulated(
        META, "permissions are those of the virtual user, not of the host's",
        access=access.access, faccessat=access.faccessat, faccessat2=access.faccessat2,
    ),
    *emulated(
        META, "links of /proc show virtual names",
        readlink=access.readlink, readlinkat=access.readlinkat,
    ),
    *emulated(
        META, "sizes and free space of file systems are fixed",
        statfs=statfs.statfs, fstatfs=statfs.fstatfs,
    ),
    *emulated(
        DIRS, "the whole directory is sorted by name; inodes and offsets are virtual",
        getdents=dirs.getdents, getdents64=dirs.getdents64,
    ),
    *emulated(
        META, _XATTR,
        setxattr=xattr.setxattr, lsetxattr=xattr.lsetxattr, fsetxattr=xattr.fsetxattr,
        getxattr=xattr.getxattr, lgetxattr=xattr.lgetxattr, fgetxattr=xattr.fgetxattr,
        listxattr=xattr.listxattr, llistxattr=xattr.llistxattr, flistxattr=xattr.flistxattr,
        removexattr=xattr.removexattr, lremovexattr=xattr.lremovexattr, fremovexattr=xattr.fremovexattr,
    ),
    *(refuse(name, ENOSYS, META, "newer than Linux 6.1, which the guest sees; programs use the older calls")
      for name in ("setxattrat", "getxattrat", "listxattrat", "removexattrat", "file_getattr", "file_setattr",
                   "cachestat")),
    *emulated(
        DIRS, _STAMPS,
        mkdir=namespace_ops.mkdir, mkdirat=namespace_ops.mkdirat, rmdir=namespace_ops.rmdir,
        unlink=namespace_ops.unlink, unlinkat=namespace_ops.unlinkat, rename=namespace_ops.rename,
        renameat=namespace_ops.renameat, renameat2=namespace_ops.renameat2, link=namespace_ops.link,
        linkat=namespace_ops.linkat, symlink=namespace_ops.symlink, symlinkat=namespace_ops.symlinkat,
        mknod=namespace_ops.mknod, mknodat=namespace_ops.mknodat,
    ),
    *emulated(
        META, _STAMPS,
        chmod=metadata.chmod, fchmod=metadata.fchmod, fchmodat=metadata.fchmodat,
        fchmodat2=metadata.fchmodat2,
    ),
    *emulated(
        META, _VIRTUAL_OWNER,
        chown=metadata.chown, fchown=metadata.fchown, lchown=metadata.lchown, fchownat=metadata.fchownat,
    ),
    *emulated(
        META, "file times are virtual; the guest's own values are kept",
        utime=metadata.utime, utimes=metadata.utimes, futimesat=metadata.futimesat,
        utimensat=metadata.utimensat,
    ),
    *emulated(
        PATHS, _STAMPS,
        truncate=content.truncate, ftruncate=content.ftruncate, fallocate=content.fallocate,
    ),
    watch("umask", dirs.umask, PATHS, "the supervisor creates files for the guest and has to know the mask"),
    *watched(
        DIRS, "the supervisor resolves relative paths and has to know the directory",
        chdir=dirs.chdir, fchdir=dirs.fchdir,
    ),
    watch("chroot", dirs.chroot, DIRS, "the supervisor resolves absolute paths and has to know the root"),
    emulate("getcwd", dirs.getcwd, DIRS, "a path that depends on the container's mounts is not shown"),
    emulate("lseek", content.lseek, PATHS, "only SEEK_DATA and SEEK_HOLE: holes depend on the host",
            args=(let_through(less(2, 3), why="SEEK_SET, SEEK_CUR and SEEK_END touch only the descriptor"),)),
    watch("mmap", mapping.mmap, PATHS, "code is searched for instructions that leak the CPU; "
          "files that change through a shared mapping get virtual times; "
          "where large ones come does not depend on the file system; there are no huge pages",
          args=(let_through(any_bits(3, MAP_ANONYMOUS), no_bits(3, MAP_SHARED_BIT | hugepages.MAP),
                            why="memory without a file"),
                let_through(any_bits(3, MAP_ANONYMOUS), no_bits(3, hugepages.MAP), less(1, mapping.ROUNDED_LARGE, 64),
                            why="memory"),
                let_through(any_bits(3, MAP_ANONYMOUS), no_bits(3, hugepages.MAP), any_bits(3, mapping.FIXED),
                            why="memory at a given place"),
                let_through(any_bits(4, own.OWN_MAPPING_BIT, 64), no_bits(4, own.OTHER_MAPPING_BIT, 64),
                            why="the supervisor's own"),
                let_through(no_bits(2, PROT_EXEC), no_bits(3, MAP_SHARED_BIT), any_bits(3, mapping.FIXED),
                            why="private data at a given place"),
                let_through(no_bits(2, PROT_EXEC), no_bits(3, MAP_SHARED_BIT), less(1, mapping.ROUNDED_LARGE, 64),
                            why="private data"))),
    refuse("name_to_handle_at", EOPNOTSUPP, PATHS, "a handle holds the host's inode number"),
    refuse("open_by_handle_at", EPERM, PATHS, "a handle would reach outside of the container"),
    *emulated(
        SYNC, "nothing outlives the run by itself, so nothing is flushed to a disk",
        fsync=storage.fsync, fdatasync=storage.fdatasync, syncfs=storage.syncfs,
        sync_file_range=storage.sync_file_range,
    ),
    refuse("sync", 0, SYNC, "nothing outlives the run by itself, so nothing is flushed to a disk"),
    watch("msync", mapping.msync, SYNC, "moves the modification time of a file mapped for writing"),
    allow("fadvise64", SYNC, "a hint to the page cache"),
    refuse("readahead", 0, SYNC, "a hint; its errors depend on the host's file system"),
    *watched(
        MOUNTS, "the guest has no power over the container's mounts; "
        "in a mount namespace of its own it may mount what shows nothing of the host",
        mount=mounts.mount, umount2=mounts.umount2, pivot_root=mounts.pivot_root,
    ),
    *(refuse(name, ENOSYS, MOUNTS, "as before Linux 5.2: mount(2) is used then, which can be looked at")
      for name in ("open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr")),
    *(refuse(name, ENOSYS, MOUNTS, "newer than Linux 6.1; programs read /proc/self/mountinfo")
      for name in ("statmount", "listmount", "open_tree_attr")),
    *(refuse(name, ENOSYS, MOUNTS, "no quotas are configured") for name in ("quotactl", "quotactl_fd")),
    *(refuse(name, EPERM, MOUNTS, "changes the whole machine") for name in ("swapon", "swapoff")),
    *(refuse(name, ENOSYS, MOUNTS, "obsolete; modern kernels are configured without it")
      for name in ("uselib", "ustat", "sysfs", "_sysctl", "lookup_dcookie", "nfsservctl")),
)
