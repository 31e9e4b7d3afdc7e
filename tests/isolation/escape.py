"""Attempts to see or change what lies outside the container; prints one line for each.

The argument is a JSON file with what the test placed on the host: a process, a port, names of sockets and
shared memory.  A line that begins with LEAK means that the attempt worked.  None does lasting harm if it
works, and nothing is tried unless this is a container's first process.
"""

import contextlib
import ctypes
import errno
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable

INHERITED = os.listdir("/proc/self/fd")  # before anything else is opened
with open(sys.argv[1]) as description:
    HOST = json.load(description)
LIBC = ctypes.CDLL(None, use_errno=True)
ATTEMPTS: list[Callable[[], object]] = []


def attempt(function: Callable[[], object]) -> Callable[[], object]:
    """The function returns something true, or raises nothing and returns None, where the escape worked."""
    ATTEMPTS.append(function)
    return function


def call(name: str, *arguments: object) -> int:
    """A libc function; OSError where it returns -1."""
    result = getattr(LIBC, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return int(result)


def syscall(number: int, *arguments: object) -> int:
    return call("syscall", ctypes.c_long(number), *arguments)


@attempt
def kill_a_host_process() -> None:
    os.kill(HOST["pid"], 0)


@attempt
def see_a_host_process() -> bool:
    names = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with open(f"/proc/{name}/cmdline", "rb") as stream:
            names.add(stream.read())
    return any(HOST["mark"].encode() in name for name in names)


@attempt
def kill_the_supervisor() -> None:
    os.kill(1, signal.SIGKILL)
    os.kill(1, signal.SIGTERM)
    os.kill(1, signal.SIGSTOP)
    raise OSError(errno.EPERM, "it is still there")


@attempt
def look_into_the_supervisor() -> bool:
    found = False
    for name in ("mem", "environ", "root/etc/hostname", "cwd/.", "fd/3", "exe"):
        try:
            with open(f"/proc/1/{name}", "rb") as stream:
                found = found or HOST["secret"].encode() in stream.read(4096)
        except OSError:
            continue
    return found


@attempt
def list_descriptors_of_the_supervisor() -> bool:
    return any(os.readlink(f"/proc/1/fd/{n}") for n in os.listdir("/proc/1/fd"))


#: Where the supervisor's modules and the overlays' layers could be, below a root directory.
OWN_PLACES = ("", "/python/0", "/etc/upper", "/usr/work")


def found_own_places() -> list[str]:
    top = os.open("/", os.O_PATH)
    roots = ["", "/proc/1/root", "/proc/1/cwd", "/proc/self/root", f"/proc/self/fd/{top}", f"/dev/fd/{top}"]
    roots += [f"/proc/1/task/1/{name}" for name in ("root", "cwd")]
    found = [root + "/.detbox" + place for root in roots for place in OWN_PLACES]
    found += [f"/proc/1/{kind}/{number}" for kind in ("fd", "task/1/fd") for number in range(64)]
    found += ["/old_root/.detbox", "/mnt/self", "/scratch", "/root-of-image"]
    return [path for path in found if os.path.lexists(path)]


@attempt
def own_files_of_the_supervisor() -> list[str]:
    return found_own_places()


@attempt
def mounts_of_the_supervisor() -> bool:
    with open("/proc/self/mountinfo") as stream:
        return ".detbox" in stream.read()


@attempt
def own_files_from_a_nested_namespace() -> bool:
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            call("unshare", 0x10020000)  # CLONE_NEWUSER | CLONE_NEWNS
            for path in (b"/proc/1", b"/proc", b"/usr", b"/etc", b"/mnt", b"/tmp", b"/"):
                LIBC.umount2(path, 2)  # MNT_DETACH: what is below?
            LIBC.syscall(ctypes.c_long(428), -100, b"/", 0x8001)  # open_tree: OPEN_TREE_CLONE, AT_RECURSIVE
            os._exit(7 if found_own_places() else 0)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@attempt
def number_of_the_boot_elsewhere() -> bool:
    """What /proc shows is recognised wherever the guest has mounted a part of it."""
    pid = os.fork()
    if pid == 0:
        leak = False
        with contextlib.suppress(OSError):
            call("unshare", 0x10020000)  # CLONE_NEWUSER | CLONE_NEWNS
            for source, target, name in (
                (b"/proc/sys", b"/mnt", "/kernel/random/boot_id"), (b"/proc", b"/srv", "/keys"),
                (b"/proc/sys/kernel/random/boot_id", b"/proc/version", ""),
            ):  # fmt: skip
                call("mount", source, target, None, 4096, None)  # MS_BIND
                with contextlib.suppress(OSError), open(os.fsdecode(target) + name) as stream:
                    leak = leak or name == "/keys" or stream.read() == HOST["boot"]
        os._exit(7 if leak else 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@attempt
def names_in_the_supervisors_directory() -> bool:
    """Its cover is met by calls that do not follow the last name of /proc/self/…"""
    done = []
    for change in (
        lambda: os.unlink("/proc/self/fd"), lambda: os.unlink("/proc/1/exe"), lambda: os.mkdir("/proc/1/made"),
        lambda: os.symlink("/", "/proc/self/made"), lambda: os.rename("/proc/self/exe", "/proc/self/made"),
        lambda: os.rmdir("/proc/1/task"), lambda: os.utime("/proc/1/stat", (1, 1)), lambda: os.chmod("/proc/1/stat", 0),
    ):  # fmt: skip
        with contextlib.suppress(OSError):
            change()
            done.append(change)
    return bool(done)


@attempt
def mode_of_a_device() -> None:
    os.utime("/dev/full", (1, 1))
    os.chown("/dev/full", 1, 1)
    os.chmod("/dev/full", 0o600)


@attempt
def trace_the_supervisor() -> None:
    syscall(101, 16, 1, 0, 0)  # PTRACE_ATTACH


@attempt
def read_memory_of_the_supervisor() -> None:
    block = ctypes.create_string_buffer(8)
    vector = struct.pack("QQ", ctypes.addressof(block), 8)
    syscall(310, 1, vector, 1, struct.pack("QQ", 0x400000, 8), 1, 0)


@attempt
def descriptor_of_the_supervisor() -> None:
    pidfd = syscall(434, 1, 0)
    syscall(438, pidfd, 0, 0)


@attempt
def connect_to_the_host() -> None:
    with socket.create_connection(("127.0.0.1", HOST["port"]), timeout=2):
        pass


@attempt
def connect_to_a_neighbour() -> None:
    with socket.create_connection((HOST["address"], HOST["port"]), timeout=2):
        pass


@attempt
def other_interfaces() -> bool:
    return {name for _, name in socket.if_nameindex()} != {"lo"}


@attempt
def packet_socket() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW):
        pass


@attempt
def abstract_socket_of_the_host() -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + HOST["mark"])


@attempt
def socket_file_of_the_host() -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(HOST["socket"])


@attempt
def socket_in_the_work_directory() -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("socket")


@attempt
def socket_in_a_read_only_input() -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        client.connect(HOST["read_only"] + "/socket")


@attempt
def message_to_a_socket_in_the_work_directory() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", "datagrams")


@attempt
def second_message_to_a_socket_in_the_work_directory() -> bool:
    """Only the first of several messages goes to a socket of the run's own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
        own.bind("own")
        names = [ctypes.create_string_buffer(struct.pack("H", 1) + name + b"\0") for name in (b"own", b"datagrams")]
        data = ctypes.create_string_buffer(b"x")
        vector = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(data), 1))
        one = struct.Struct("QQQQQQQQ")  # struct mmsghdr
        parts = [(ctypes.addressof(n), len(n.raw) - 1, ctypes.addressof(vector), 1, 0, 0, 0, 0) for n in names]
        headers = b"".join(one.pack(*part) for part in parts)
        return call("sendmmsg", own.fileno(), ctypes.create_string_buffer(headers), 2, 0) > 1


@attempt
def shared_memory_of_the_host() -> bool:
    return os.path.exists(f"/dev/shm/{HOST['mark']}")


@attempt
def system_v_memory_of_the_host() -> None:
    call("shmget", HOST["key"], 0, 0)


@attempt
def undeclared_file() -> bool:
    with open(HOST["hidden"]) as stream:
        return HOST["secret"] in stream.read()


@attempt
def file_behind_a_symbolic_link() -> bool:
    with open("outside") as stream:
        return HOST["secret"] in stream.read()


@attempt
def file_above_the_work_directory() -> bool:
    with open(f"../{os.path.basename(HOST['hidden'])}") as stream:
        return HOST["secret"] in stream.read()


@attempt
def write_read_only_input() -> None:
    with open(HOST["read_only"] + "/file", "a") as stream:
        stream.write("changed")


@attempt
def create_in_read_only_input() -> None:
    with open(HOST["read_only"] + "/new", "w"):
        pass


@attempt
def remount_read_only_input() -> None:
    call("mount", None, HOST["read_only"].encode(), None, 32 | 4096, None)  # MS_REMOUNT | MS_BIND
    with open(HOST["read_only"] + "/file", "a") as stream:
        stream.write("changed")


@attempt
def unmount_work_directory() -> None:
    call("umount2", os.getcwdb(), 2)


@attempt
def unmount_read_only_input() -> None:
    call("umount2", HOST["read_only"].encode(), 2)


@attempt
def break_out_of_chroot() -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(7 if _outside_of_chroot() else 0)
        except OSError:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def _outside_of_chroot() -> bool:
    os.mkdir("jail")
    above = os.open("/", os.O_RDONLY)
    os.chroot("jail")
    os.fchdir(above)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    return os.path.exists(HOST["hidden"])


@attempt
def set_host_name() -> None:
    socket.sethostname("changed")


@attempt
def enter_namespace_of_init() -> None:
    fd = os.open("/proc/1/ns/mnt", os.O_RDONLY)
    call("setns", fd, 0)


@attempt
def set_the_clock() -> None:
    state = ctypes.create_string_buffer(208)  # struct timex
    syscall(159, state)
    struct.pack_into("I", state, 0, 0x4000)  # ADJ_TICK, with the tick it has
    syscall(159, state)


@attempt
def kernel_log() -> bool:
    return syscall(103, 3, ctypes.create_string_buffer(4096), 4096) > 0


@attempt
def kernel_messages() -> bytes:
    with open("/dev/kmsg", "rb", buffering=0) as stream:
        return stream.read(16)


@attempt
def kernel_addresses() -> bool:
    with open("/proc/kallsyms") as stream:
        return any(int(line.split()[0], 16) for line in stream)


@attempt
def kernel_memory() -> bytes:
    with open("/proc/kcore", "rb") as stream:
        return stream.read(16)


@attempt
def kernel_settings() -> None:
    with open("/proc/sys/kernel/core_pattern", "r+") as stream:
        same = stream.read()
        stream.write(same)


@attempt
def magic_keys() -> None:
    with open("/proc/sysrq-trigger", "w") as stream:
        stream.write("?")


@attempt
def keyring() -> None:
    syscall(248, b"user", b"detbox", b"x", 1, -4)


@attempt
def performance_events() -> None:
    syscall(298, struct.pack("IIQ", 1, 112, 0) + bytes(96), 0, -1, -1, 0)


@attempt
def kernel_programs() -> None:
    syscall(321, 0, struct.pack("IIII", 2, 4, 4, 1) + bytes(112), 128)


@attempt
def load_a_module() -> None:
    syscall(175, b"", 0, b"")


@attempt
def block_device() -> None:
    os.mknod("disk", 0o060600, os.makedev(*HOST["disk"]))
    with open("disk", "rb") as stream:
        stream.read(1)


@attempt
def host_devices() -> set[str]:
    harmless = {
        "null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd", "stdin", "stdout",
        "stderr", "mqueue", "console", "core",
    }  # fmt: skip
    return set(os.listdir("/dev")) - harmless


@attempt
def port_access() -> None:
    call("iopl", 3)


@attempt
def write_control_groups() -> bool:
    os.mkdir(f"/sys/fs/cgroup/{HOST['mark']}")  # harmless if it is not the host's: the test looks there
    return False


@attempt
def protect_the_supervisor() -> bool:
    with open("/proc/1/oom_score_adj", "r+") as stream:
        stream.write("-999")
    with open("/proc/1/oom_score_adj") as stream:
        return stream.read() == "-999\n"


@attempt
def restart_the_machine() -> None:
    syscall(169, 0xFEE1DEAD, 672274793, 0, 0)  # turns control-alt-delete off


@attempt
def handles_of_files() -> None:
    handle = struct.pack("IiQ", 8, 1, 2)
    syscall(304, os.open("/", os.O_RDONLY), handle, 0)


@attempt
def environment_of_the_host() -> bool:
    return any(HOST["secret"] in value for value in os.environ.values())


@attempt
def descriptors_of_the_host() -> bool:
    return any(int(n) > 3 for n in INHERITED)  # 3 is the listing itself


def main() -> None:
    if os.getpid() != 2:
        sys.exit("this program is for the inside of a container only")
    for function in ATTEMPTS:
        try:
            result = function()
        except (OSError, ValueError) as error:
            reason = errno.errorcode.get(getattr(error, "errno", 0) or 0, error)
            print(f"refused {function.__name__}: {reason}")
            continue
        if result is None or result:
            print(f"LEAK {function.__name__}: {result!r}")
        else:
            print(f"nothing {function.__name__}")
    print("EXIT-SUCCESS")


main()
