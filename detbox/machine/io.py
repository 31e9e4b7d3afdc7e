"""What the I/O handlers remember for a whole run: ports, timer descriptors, cookies, waits for locks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detbox.records import field, record

if TYPE_CHECKING:
    from socket import socket

    from detbox.handlers.timerfd import TimerFd
    from detbox.machine.networks import Network
    from detbox.supervisor.machine import Machine

#: The range of automatically chosen ports, the kernel's default (net.ipv4.ip_local_port_range).
FIRST_PORT = 32768
LAST_PORT = 60999
#: Key of ``Machine.data``: the kernel may send signals that no call of a guest names.
KERNEL_SIGNALS = "kernel_signals"
#: The same, also to single threads.
THREAD_SIGNALS = "thread_signals"
#: Key of ``Process.data``: what was pending when signals of the kernel's own were looked for.
SIGNALS_SEEN = "signals_seen"


@record
class Member:
    """A socket that shares its name with others: its host inode number, and a process and descriptor that had it."""

    inode: int
    pid: int
    fd: int


@record
class Sharing:
    """The sockets of one name, and how many there are of them for the program that chooses (0: for none)."""

    members: list[Member] = field(default_factory=list)
    told: int = 0


@record
class IoState:
    """Counters and registries of one run.

    ``timers`` maps the ``eventfd-id`` of the eventfd behind an emulated timer descriptor to its state:
    descriptors that the guest has duplicated, inherited or received are recognised by it.
    ``terminals``: a process and its descriptor of a side ("master", "slave") of each pseudo-terminal.
    ``crowded``: sides of pseudo-terminals that have been sent more than they took; whether nobody has read since.
    ``signal_watches``: how often an epoll set has been given a signal descriptor, or has lost one.
    ``signal_sets``: how often a signal descriptor was made or given another set.
    ``control``: whether a socket has been told to stamp what arrives, or to say who sends; sockets inherit that.
    ``linger``, ``congestion``: SO_LINGER's seconds and TCP_CONGESTION of a socket with this host inode number.
    ``netlink``: host inode numbers of the sockets of AF_NETLINK.
    ``stamping``: a socket that keeps the kernel stamping.
    ``senders``: the user and the group of who has sent last, by process.
    ``listeners``: who listens on which Unix name.
    ``bound``: virtual inode numbers of the names in the file system that the run has given to sockets.
    ``sharing``: what sockets share a name (SO_REUSEPORT).  ``choosers``: host inode numbers of those for which a
    program of the guest's own chooses.
    ``lock_waits`` maps a process that waits for a POSIX record lock to the processes that hold it.
    """

    next_port: int = FIRST_PORT
    next_unix_name: int = 0
    next_cookie: int = 1
    next_socket_cookie: int = 1
    cookies: dict[int, int] = field(default_factory=dict)
    socket_options: dict[tuple[int, int, int], int] = field(default_factory=dict)
    socket_cookies: dict[int, int] = field(default_factory=dict)
    timers: dict[int, TimerFd] = field(default_factory=dict)
    lock_waits: dict[int, frozenset[int]] = field(default_factory=dict)
    listeners: dict[tuple[bytes, Network | None], int] = field(default_factory=dict)
    bound: set[int] = field(default_factory=set)
    stdin_is_watched: bool = False
    control: bool = False
    netlink: set[int] = field(default_factory=set)
    linger: dict[int, int] = field(default_factory=dict)
    congestion: dict[int, bytes] = field(default_factory=dict)
    stamping: socket | None = None
    senders: dict[int, tuple[int, int]] = field(default_factory=dict)
    sharing: dict[tuple[object, ...], Sharing] = field(default_factory=dict)
    choosers: set[int] = field(default_factory=set)
    signal_watches: int = 0
    signal_sets: int = 0
    usual_buffers: bool | None = None
    terminals: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    crowded: dict[tuple[str, int], bool] = field(default_factory=dict)

    def port(self) -> int:
        """The next port number of the run; the range is used round and round."""
        chosen = self.next_port
        self.next_port = chosen + 1 if chosen < LAST_PORT else FIRST_PORT
        return chosen

    def unix_name(self) -> bytes:
        """The next automatic abstract address: five hexadecimal digits, as the kernel's."""
        chosen = self.next_unix_name
        self.next_unix_name = (chosen + 1) & 0xFFFFF
        return b"\0%05x" % chosen

    def inotify_cookie(self, native: int) -> int:
        """The run's number for the kernel's rename cookie ``native`` (0 stays 0)."""
        if native == 0:
            return 0
        if native not in self.cookies:
            if len(self.cookies) > 4096:  # the two halves of a rename arrive close together
                for old in list(self.cookies)[:2048]:
                    del self.cookies[old]
            self.cookies[native] = self.next_cookie
            self.next_cookie += 1
        return self.cookies[native]

    def socket_cookie(self, inode: int) -> int:
        """SO_COOKIE of the socket with this host inode number."""
        if inode not in self.socket_cookies:
            self.socket_cookies[inode] = self.next_socket_cookie
            self.next_socket_cookie += 1
        return self.socket_cookies[inode]


def io_state(m: Machine) -> IoState:
    """The I/O state of this run."""
    state: IoState | None = m.data.get("io")
    if state is None:
        state = m.data["io"] = IoState()
    return state
