"""Inside the namespaces: enters the file system, starts the first guest process, and supervises it."""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import resource
import select
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from detbox.container import ahead, building, modules, operations, placement, plan, skeleton
from detbox.cpu import model
from detbox.cpu.siteindex import SiteIndex
from detbox.errors import CommandNotFound, CommandNotInvocable, DetboxError, HostError, InternalError, Interrupted
from detbox.handlers.cover import cover
from detbox.kernel import _native, userns
from detbox.kernel.numbers import NAMES, NUMBERS
from detbox.machine import constants, limits
from detbox.machine.layers import Layers
from detbox.policy import LOOKING, TABLE, later
from detbox.spec import RunSpec
from detbox.supervisor import filter as bpf
from detbox.supervisor.console import Console
from detbox.supervisor.image import ARCH_SET_CPUID
from detbox.supervisor.loop import PTRACE_CONT, TRACE_OPTIONS, Supervisor
from detbox.supervisor.machine import Machine
from detbox.supervisor.setup import Observation, first_process, install_hooks, user_ids

if TYPE_CHECKING:
    from detbox.cache.observed import Observed
    from detbox.cache.store import Store

MAIN_PID = 2
PR_SET_TSC, PR_TSC_SIGSEGV = 26, 2
ADDR_NO_RANDOMIZE = 0x0040000
CLONE_NEWUSER = 0x10000000
WALL = 0x40000000  # __WALL of wait4(2)
LAUNCH_TIMEOUT_S = 20.0


def supervise(spec: RunSpec, started: float, life: int, result: int, requests: int) -> None:
    """The supervisor process, from its modules to the report; ``started``: its first moment, as time.perf_counter()."""
    if spec.observe_fd >= 0:
        # Only runs that are observed need it.
        from detbox.cache.observed import Observed
    gc.freeze()  # what is here now stays
    host = _host_streams(spec)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.setsid()
    os.umask(0)
    host_features = model.host_features()
    observation = Observation(spec)
    # Opened before the root changes: afterwards there is no path to it.
    store = _store(spec)
    index = SiteIndex(spec.site_cache)
    program = bpf.build(TABLE)
    later.load_ahead(lambda: len(os.sched_getaffinity(0)) > 1 and not select.select([requests], [], [], 0)[0])
    proc_fd, layers = enter(spec, requests)
    raise_limits()
    console = Console(host, spec.stdin_head)
    machine = Machine(spec, console, proc_fd, model.MODELS[spec.cpu_model])
    machine.requests = requests
    machine.layers = layers
    observed = None
    if spec.observe_fd >= 0:
        observed = Observed(machine, store)
    sup = _supervisor(spec, machine, life, observation, observed)
    sup.image.start(spec.cpuid_backend == "auto" and _cpuid_faulting(), host_features, index)
    install_hooks(sup)
    observation.connect(sup)
    if observed is not None:
        observed.connect(sup)
    path = find_command(spec)
    placement.stay_here()
    cell = mmap.mmap(-1, 4096)
    launcher = _start_first_process(spec, console, path, cell, program)
    machine.listener = _take_listener(launcher, cell)
    _native.sync_wake_up(machine.listener)
    first_process(sup, launcher)
    _native.trap_like_guest(sup.image.cpuid_faulting)
    ready = time.perf_counter()
    try:
        status = sup.run()
        console.drain()
    except BaseException as ended:
        error = Interrupted("ended by the caller") if isinstance(ended, KeyboardInterrupt) else ended
        end_early(machine, spec)
        if isinstance(error, DetboxError):
            error.stats = statistics(sup, started, ready)
        raise error from None
    finally:
        trouble = observation.end(sup.outcome is not None)
    failed = struct.unpack_from("i", cell, 4)[0]
    if failed:
        raise CommandNotInvocable(f"cannot execute {os.fsdecode(path)}: {os.strerror(failed)}")
    _write_times(machine, spec)
    if observed is not None:
        observed.tell(spec.observe_fd, plan.kept(spec))
    report = _report(sup, observation, status) | {"stats": statistics(sup, started, ready), "trouble": trouble}
    os.write(result, json.dumps(report).encode())


def _report(sup: Supervisor, observation: Observation, status: int) -> dict[str, Any]:
    """What the caller learns about the run; ``status``: the first process's, as wait(2) gives it."""
    return {
        "status": os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status),
        "doubts": list(sup.m.doubts),
        "unknown_calls": sup.m.unknown_calls,
        "interleaving": observation.interleaving.summary(),
    }


def _supervisor(
    spec: RunSpec, machine: Machine, life: int, observation: Observation, observed: Observed | None
) -> Supervisor:
    """The supervisor of a machine that knows its files."""
    handlers = observation.handlers({row.number: row.handler for row in TABLE if row.handler is not None})
    if observed is not None:
        handlers = observed.wrap(handlers)
    sup = Supervisor(machine, handlers, LOOKING, life)
    machine.inodes.learn_devices(plan.declared(spec))
    own_image_files(machine)
    uid, gid = user_ids(spec.user)
    if uid:
        for top in plan.kept(spec):
            machine.inodes.own_tree(os.fsencode(top), uid, gid)
    return sup


def end_early(machine: Machine, spec: RunSpec) -> None:
    """What a run that is ended leaves behind has virtual times, too: of the host's clock nothing shows."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)  # all of the PID namespace but this process
    with contextlib.suppress(ChildProcessError):
        while True:
            tid, status = os.waitpid(-1, WALL)
            if os.WIFSTOPPED(status):
                _native.ptrace_request(PTRACE_CONT, tid, 0, 0)
    _write_times(machine, spec)


def _write_times(machine: Machine, spec: RunSpec) -> None:
    """Give the files that the run keeps the times that the guest has seen."""
    # An image's overlay has become the root.
    tops = machine.layers.uppers if machine.layers.host else ()
    own = {os.stat(path).st_dev for path in (b"/", *tops)}
    machine.inodes.finish([os.fsencode(top) for top in plan.kept(spec)], own)


def _store(spec: RunSpec) -> Store | None:
    if not spec.cache_base or spec.cache_dir is None:
        return None
    from detbox.cache.store import Store

    return Store(spec.cache_dir)


def _host_streams(spec: RunSpec) -> tuple[int, int, int]:
    """detbox's own standard streams, moved out of the way."""
    if spec.stdin is not None:
        stdin = os.open(spec.stdin, os.O_RDONLY | os.O_CLOEXEC)
    elif spec.stdin_closed:
        stdin = -1
    else:
        stdin = os.dup(0)
    return stdin, os.dup(1), os.dup(2)


def enter(spec: RunSpec, requests: int) -> tuple[int, Layers]:
    """Enter the file system that the keeper has assembled; a descriptor of a procfs mount of our own.

    Raises HostError; EOFError if the keeper has failed, and has said so.
    """
    limited = userns.limited()
    modules.follow(modules.open_host())
    with socket.socket(fileno=requests) as sock:
        try:
            built = building.Built.receive(sock)
        finally:
            sock.detach()
    building.enter(built.namespace)
    os.close(built.namespace)
    os.umask(0o022)
    building.execute(plan.PROCFS)
    proc_fd = own_proc()
    cover(os.fsencode(operations.staged("/proc/1")))
    operations.enter(operations.STAGE)
    socket.sethostname(spec.hostname)
    with contextlib.suppress(OSError):
        _native.raw_syscall(NUMBERS["setdomainname"], constants.DOMAINNAME.encode(), len(constants.DOMAINNAME))
    os.chdir(spec.guest_workdir)
    os.umask(0)  # the guest's own is applied by the handlers
    return proc_fd, _layers(spec, built, limited)


def _layers(spec: RunSpec, built: building.Built, limited: bool) -> Layers:
    looking = ahead.begun() if built.kept else None
    # An image's overlay has become the root by way of another mount.
    mounts = [_native.mount_id(-1, b"/")] if spec.image else built.mounts
    return Layers(
        mounts=frozenset(mounts),
        host=spec.image is None,
        limited=limited,
        scratch=built.scratch,
        uppers={os.fsencode(path): os.fsencode(upper) for path, upper in built.uppers.items()},
        emptied=frozenset(map(os.fsencode, built.emptied)),
        owners={os.fsencode(path): (uid, gid) for path, (uid, gid) in built.owners.items()},
        refused=None if looking is None else skeleton.Wholeness(looking.lock).demand,
    )


def own_image_files(machine: Machine) -> None:
    """Gives the image's files their owners, as far as nothing has been put in their places."""
    layers = machine.layers
    for path, (uid, gid) in sorted(layers.owners.items()):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if _native.mount_id(-1, path) in layers.mounts:
                vnode = machine.inodes.of(os.lstat(path))
                vnode.uid, vnode.gid = uid, gid


def own_proc() -> int:
    """A second procfs mount, reachable through the descriptor alone: the guest's has /proc/1 covered."""
    place = os.fsencode(operations.staged("/mnt"))
    os.makedirs(place, exist_ok=True)
    _native.mount("proc", place, "proc", operations.MS_NOSUID | operations.MS_NODEV | operations.MS_NOEXEC, None)
    return operations.detach(place)


def raise_limits() -> None:
    """The supervisor holds descriptors for all guest processes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _cpuid_faulting() -> bool:
    """Whether the host can trap cpuid (arch_prctl(2); it is switched off again by the next exec)."""
    return _native.raw_syscall(NUMBERS["arch_prctl"], ARCH_SET_CPUID, 1) == 0


def find_command(spec: RunSpec) -> bytes:
    """The guest path of the program, as execvp(3) finds it.  Raises CommandNotFound, CommandNotInvocable."""
    name = spec.command[0]
    candidates = [name] if b"/" in name else [
        os.path.join(directory or b".", name) for directory in spec.env.get(b"PATH", b"/bin:/usr/bin").split(b":")
    ]  # fmt: skip
    refused = False
    for candidate in candidates:
        try:
            mode = os.stat(candidate).st_mode
        except OSError:
            continue
        if mode & 0o170000 == 0o100000 and mode & 0o111:
            return candidate
        refused = True
    if refused:
        raise CommandNotInvocable(f"{os.fsdecode(name)} is in the container but cannot be executed")
    raise CommandNotFound(f"{os.fsdecode(name)} is not in the container")


def _start_first_process(spec: RunSpec, console: Console, path: bytes, cell: mmap.mmap, program: bytes) -> int:
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            _first_process_body(spec, console, path, cell, program, go_read, ready_write)
        except BaseException as error:
            os.write(ready_write, f"{type(error).__name__}: {error}".encode())
        os._exit(126)
    if pid != MAIN_PID:
        raise InternalError(f"the first guest process has PID {pid}")
    os.close(go_read)
    os.close(ready_write)
    _expect(ready_read)
    # An ordinary user's is denied in any case, and it is inherited by the guest's own user namespaces, which see it.
    for name, text in (("uid_map", "0 0 1"), ("setgroups", "deny"), ("gid_map", "0 0 1")):
        with open(f"/proc/{pid}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    try:
        _native.seize(pid, TRACE_OPTIONS)
    except PermissionError:  # EPERM: it has a tracer already (ptrace(2)), which follows what its tracee forks
        raise HostError(
            "the guest's first process cannot be traced: something traces detbox itself and its children",
            "run detbox without strace -f or a debugger; `detbox trace` shows what a guest does",
        ) from None
    _native.prepare_events()
    os.write(go_write, b"g")
    os.close(go_write)
    os.set_blocking(ready_read, False)
    return pid


def _expect(ready: int) -> None:
    answer = os.read(ready, 4096)
    if answer != b"r":
        raise InternalError(f"the first process could not be prepared: {answer.decode(errors='replace')}")


def _first_process_body(
    spec: RunSpec, console: Console, path: bytes, cell: mmap.mmap, program: bytes, go: int, ready: int
) -> None:
    """In the first process, before the command: everything that a program inherits is made fixed."""
    os.setsid()
    for number in set(range(1, signal.NSIG)) - {signal.SIGKILL, signal.SIGSTOP}:
        _native.set_signal(number, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o022)
    _native.unshare(CLONE_NEWUSER)
    os.write(ready, b"r")
    if os.read(go, 1) != b"g":
        os._exit(126)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    for number, fd in enumerate(console.guest_fds()):
        os.dup2(fd, number)
    os.closerange(3, 1 << 20 if resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1 << 20 else 65536)
    _fix_limits(spec)
    _native.personality(ADDR_NO_RANDOMIZE)
    _native.prctl(PR_SET_TSC, PR_TSC_SIGSEGV)
    environment = [key + b"=" + value for key, value in spec.env.items()]
    _native.filter_and_exec(program, cell, path, list(spec.command), environment)


def _fix_limits(spec: RunSpec) -> None:
    """The limits that the guest is shown, and the memory limit: as the data segment's, which a process meets
    as ENOMEM at an allocation that depends on nothing but its own doing.
    """
    limits.apply_base()
    if spec.memory_bytes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        allowed = spec.memory_bytes if hard == resource.RLIM_INFINITY else min(spec.memory_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))


def _take_listener(pid: int, cell: mmap.mmap) -> int:
    """The listener that the first process has made; it cannot tell by a system call, only in memory."""
    end = time.monotonic() + LAUNCH_TIMEOUT_S
    pidfd = os.pidfd_open(pid)
    try:
        while True:
            number = struct.unpack_from("i", cell, 0)[0]
            if number:
                return _native.pidfd_getfd(pidfd, number - 1)
            if time.monotonic() > end:
                raise InternalError("the first process did not start")
            gone, status = _native.wait_tid(pid, os.WNOHANG)
            if gone and not os.WIFSTOPPED(status):
                raise InternalError(f"the first process ended before its command (status {status})")
            time.sleep(0.0002)
    finally:
        os.close(pidfd)


def statistics(sup: Supervisor, started: float, ready: float) -> dict[str, Any]:
    """What ``--stats`` prints."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    guests = resource.getrusage(resource.RUSAGE_CHILDREN)
    calls = {NAMES.get(nr, str(nr)): count for nr, count in enumerate(sup.calls) if count}
    return {
        "calls": dict(sorted(calls.items(), key=lambda item: (-item[1], item[0]))),
        "notifications": sup.notifications,
        "stops": sup.stops,
        "switches": sup.m.scheduler.turns,
        "looks_in_guest": sup.guest_clock.looks,
        "setup_s": round(ready - started, 6),
        "wall_s": round(time.perf_counter() - started, 6),
        "supervisor_cpu_s": round(usage.ru_utime + usage.ru_stime, 6),
        "guest_cpu_s": round(guests.ru_utime + guests.ru_stime, 6),
        "supervisor_rss_kib": usage.ru_maxrss,
    }
