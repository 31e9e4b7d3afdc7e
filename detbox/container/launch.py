"""Starts a run: namespaces, the supervisor as PID 1, the guest's first process as PID 2.

Three processes take part.  The caller forks a *keeper*, which makes the
namespaces, assembles the container's file system and stays outside of it (it
brings up the loopback device when the guest first wants a socket).  The keeper
forks the *supervisor*, PID 1 of the new PID namespace: when it ends, for whatever
reason, the kernel kills every guest process, and all mounts and temporaries vanish
with the namespaces.  Each dies with its parent (PR_SET_PDEATHSIG).

The supervisor's modules are imported in the supervisor: it does so while the keeper
assembles the file system, and no other process has copies of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import time
from typing import Any

from detbox import errors
from detbox.container import ahead, building, placement, storeimage, usage
from detbox.container.ahead import PR_SET_PDEATHSIG
from detbox.container.building import CLONE_NEWNS
from detbox.container.outcome import Outcome
from detbox.cpu import service
from detbox.cpu.sitecache import SiteCache
from detbox.cpu.siteindex import SiteIndex
from detbox.errors import DetboxError, GuestError, HostError, Interrupted, TimedOut
from detbox.kernel import _native, userns
from detbox.machine import constants, limits
from detbox.spec import RunSpec

CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
NAMESPACES = (
    CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
)


#: Real seconds that a run gets for its end: thousands of processes may have to be killed.
END_S = 10.0


def run(spec: RunSpec) -> Outcome:
    """Run the command to its end.  Raises DetboxError."""
    with storeimage.held(spec.image):
        return _run(spec)


def _run(spec: RunSpec) -> Outcome:
    life_read, life_write = os.pipe2(os.O_CLOEXEC)
    result_read, result_write = os.pipe2(os.O_CLOEXEC)
    mapped_read, mapped_write = os.pipe2(os.O_CLOEXEC)
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    if spec.record is not None:
        from detbox.supervisor.setup import before_record

        before_record()
    keeper = os.fork()
    if keeper == 0:
        for fd in (life_write, result_read, mapped_write, ready_read):
            os.close(fd)
        _child(lambda: _keep(spec, (life_read, result_write, mapped_read, ready_write)), result_write)
    for fd in (life_read, result_write, mapped_read, ready_write):
        os.close(fd)
    life = os.fdopen(life_write, "wb")  # its end tells the supervisor to end the run
    try:
        if os.read(ready_read, 1):
            _map_ids(keeper)
            os.write(mapped_write, b"m")
        text = _await_result(spec, result_read, keeper)
    except (Interrupted, GuestError) as ended:
        life.close()
        ended.stats = _last_stats(result_read)
        raise
    finally:
        life.close()
        for fd in (result_read, mapped_write, ready_read):
            os.close(fd)
        _end(keeper)
        if (looking := ahead.begun()) is not None:
            looking.end()
    return _outcome(text)


def _await_result(spec: RunSpec, result: int, keeper: int) -> bytes:
    """Collect the supervisor's report; a signal, the time limit or the memory limit ends the run."""
    parts: list[bytes] = []
    wakeup_read, wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    old = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    old_wakeup = signal.set_wakeup_fd(wakeup_write)
    try:
        watches = (usage.Watch(keeper, spec.memory_bytes), placement.Placement(keeper))
        end = None if spec.timeout_s is None else time.monotonic() + spec.timeout_s
        while True:
            limits = [*[watch.left() for watch in watches], None if end is None else max(0.0, end - time.monotonic())]
            left = min((limit for limit in limits if limit is not None), default=None)
            ready, _, _ = select.select([result, wakeup_read], [], [], left)
            if wakeup_read in ready:
                number = os.read(wakeup_read, 1)[0]
                if number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    raise Interrupted(f"ended by {signal.Signals(number).name}")
            if result in ready:
                data = os.read(result, 65536)
                if not data:
                    return b"".join(parts)
                parts.append(data)
            elif end is not None and time.monotonic() >= end:
                raise TimedOut(f"the run took longer than {spec.timeout_s:g} seconds", "raise --timeout")
            for watch in watches:
                watch.look()
    finally:
        signal.set_wakeup_fd(old_wakeup)
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(wakeup_read)
        os.close(wakeup_write)


def _last_stats(result: int) -> dict[str, Any]:
    """What the supervisor says of a run that it has been told to end; empty if it does not say it in time."""
    text, end = b"", time.monotonic() + END_S
    while select.select([result], [], [], max(0.0, end - time.monotonic()))[0]:
        data = os.read(result, 65536)
        if not data:
            error = _error(_parsed(text)) if text else None
            return error.stats if error is not None else {}
        text += data
    return {}


def _end(keeper: int) -> None:
    """Make sure that nothing of the run is left.

    The supervisor has been told to end, and the keeper waits until the kernel has killed the supervisor's
    whole PID namespace.  After ``END_S`` seconds the keeper is killed, which takes the rest along.
    """
    gone = os.pidfd_open(keeper)
    try:
        if not select.select([gone], [], [], END_S)[0]:
            os.kill(keeper, signal.SIGKILL)
    finally:
        os.close(gone)
    os.waitpid(keeper, 0)


def _outcome(text: bytes) -> Outcome:
    if not text:
        raise errors.InternalError("the supervisor ended without a report")
    raw = _parsed(text)
    error = _error(raw)
    if error is not None:
        raise error
    return Outcome(**raw)


def _parsed(text: bytes) -> dict[str, Any]:
    raw: dict[str, Any]
    raw, _ = json.JSONDecoder().raw_decode(text.decode())  # both may fail, keeper and supervisor: the first one counts
    return raw


def _error(raw: dict[str, Any]) -> DetboxError | None:
    """The error that a report tells of, if it does."""
    if "error" not in raw:
        return None
    name, message, remedy, trace, stats = raw["error"]
    cls = errors.by_name(name)
    error = cls(message, remedy) if cls is not errors.InternalError else errors.InternalError(message)
    error.stats = stats
    if trace:
        error.add_note(trace)
    return error


def _child(body: Any, result: int) -> None:
    """Run a forked child's body; report what goes wrong; never return."""
    try:
        body()
    except DetboxError as error:
        report_error(result, error)
    except KeyboardInterrupt:
        pass
    except ImportError as error:
        lacking = errors.missing_module(error) or errors.InternalError(f"ImportError: {error}")
        report_error(result, lacking, "" if isinstance(lacking, HostError) else _trace())
    except BaseException as error:
        report_error(result, errors.InternalError(f"{type(error).__name__}: {error}"), _trace())
    finally:
        os._exit(0)


def _trace() -> str:
    import traceback

    return traceback.format_exc()


def report_error(result: int, error: DetboxError, trace: str = "") -> None:
    """Send an error to the caller."""
    text = json.dumps({"error": [type(error).__name__, error.message, error.remedy, trace, error.stats]})
    with contextlib.suppress(OSError):
        os.write(result, text.encode())


def _map_ids(pid: int) -> None:
    """Map user and group ids of the keeper's user namespace.

    Root maps all ids that there are, so that files of any owner can be used; an
    ordinary user maps only its own, and files of others keep the permissions that they have.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        maps = {name: userns.all_ids(name) for name in ("uid_map", "gid_map")}
    else:
        maps = {"setgroups": "deny", "uid_map": f"0 {uid} 1", "gid_map": f"0 {gid} 1"}
    for name, text in maps.items():
        try:
            with open(f"/proc/{pid}/{name}", "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            what = f"cannot map user ids in a user namespace: {error.strerror}"
            raise HostError(what, "run: detbox doctor") from error


def _keep(spec: RunSpec, fds: tuple[int, int, int, int]) -> None:
    """The keeper: make the namespaces, start the supervisor, serve its requests, wait for its end."""
    life, result, mapped, ready = fds
    _native.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(ValueError, OSError):  # only root may raise the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (constants.OPEN_FILES_MAX, constants.OPEN_FILES_MAX))
    limits.widen()
    _choose_memory_of_cores()
    try:
        _native.unshare(NAMESPACES)
    except OSError as error:
        raise HostError(f"cannot create namespaces: {error.strerror}", "run: detbox doctor") from error
    os.write(ready, b"r")
    if not os.read(mapped, 1):
        return
    # A process whose ids were not mapped when it was looked up has lost its rights: take them again.
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    requests, supervisor_side = _socketpair()
    supervisor = os.fork()
    if supervisor == 0:
        os.close(requests)
        _native.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _child(lambda: _supervise(spec, life, result, supervisor_side), result)
    os.close(supervisor_side)
    try:
        with socket.socket(fileno=requests) as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            building.build(spec).send(sock)
            os.close(result)
            _serve(spec, sock)
    except BaseException:
        os.kill(supervisor, signal.SIGKILL)
        raise
    finally:
        os.waitpid(supervisor, 0)


def _choose_memory_of_cores() -> None:
    """What goes into core files is inherited (core(5)); a kernel without them has no such file."""
    with contextlib.suppress(OSError), open("/proc/self/coredump_filter", "wb", buffering=0) as file:
        file.write(b"0x33")


def _supervise(spec: RunSpec, life: int, result: int, requests: int) -> None:
    """The supervisor; its modules are imported here."""
    started = time.perf_counter()
    from detbox.container import guest

    with contextlib.suppress(EOFError):  # the keeper has failed, and has said why
        guest.supervise(spec, started, life, result, requests)


def _serve(spec: RunSpec, sock: socket.socket) -> None:
    """Do what cannot be done from inside the container, until the supervisor ends."""
    cache, index = SiteCache(spec.site_cache), SiteIndex(spec.site_cache)
    while True:
        word, fds, _, _ = socket.recv_fds(sock, 1, 1)
        if not word:
            return
        if word == b"l":
            service.send(sock, _loopback_up())
            continue
        service.answer(sock, word, fds[0], cache, index)
        os.close(fds[0])


def _socketpair() -> tuple[int, int]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return one.detach(), other.detach()


def _loopback_up() -> list[str]:
    """Bring up the network namespace's only device; what could not be set."""
    from pyroute2.iproute import IPRoute

    from detbox.kernel import loopback

    with IPRoute() as route:
        route.link("set", index=1, state="up")
    return loopback.prepare()


