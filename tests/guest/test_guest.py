"""Runs each guest program natively, where it must hold too, and twice on perturbed hosts under detbox."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from programs import FLAGS, compiled
from under_detbox import SUCCESS, demand_identical, demand_success, hosts, run_on, twice

from detbox.errors import NotDeterministic

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Guest:
    """One guest program.

    ``native``: its checks hold on a plain kernel too (they do not where detbox refuses something).
    """

    file: str
    native: bool = True
    quick: bool = False
    limit_s: int = 60
    flags: tuple[str, ...] = FLAGS


GUESTS = (
    Guest("ancillary.c"),
    Guest("asking.c", quick=True),
    Guest("async_io.c"),
    Guest("asyncio_tasks.py"),
    Guest("busy_waits.c", native=False),
    Guest("child_cpu_timer.c"),
    Guest("clock_looks.c", native=False, quick=True),
    Guest("clocks.c", quick=True),
    Guest("core_files.c"),
    Guest("core_status.c"),
    Guest("count_calls.c"),
    Guest("count_far.c", limit_s=120),
    Guest("count_faults.c"),
    Guest("count_for_others.c", limit_s=120),
    Guest("count_little_memory.c"),
    Guest("count_until_timer.c"),
    Guest("debugging.c"),
    Guest("device_nodes.sh"),
    Guest("directories.c"),
    Guest("dying_leaders.c"),
    Guest("exec_again.c", quick=True),
    Guest("file_calls.c"),
    Guest("file_locks.c"),
    Guest("file_times.c"),
    Guest("filtered.c"),
    Guest("fork_tree.c"),
    Guest("futex_basic.c", quick=True),
    Guest("futex_pi.c"),
    Guest("futex_robust.c"),
    Guest("generated_code.c"),
    Guest("giving_way.c", flags=(*FLAGS, "-lm")),
    Guest("giving_way.go"),
    Guest("giving_way.py"),
    Guest("giving_way_groups.sh"),
    Guest("giving_way_jobs.sh"),
    Guest("giving_way_large.c"),
    Guest("giving_way_pollers.c"),
    Guest("giving_way_processes.py"),
    Guest("giving_way_shared.c", flags=(*FLAGS, "-lm")),
    Guest("giving_way_signals.c"),
    Guest("giving_way_sleepers.c"),
    Guest("giving_way_spent.c", flags=(*FLAGS, "-lm")),
    Guest("giving_way_spins.c", flags=(*FLAGS, "-lm")),
    Guest("giving_way_timer.c", native=False),
    Guest("growing_generated.c"),
    Guest("growing_work.c", native=False, limit_s=120),
    Guest("guest_filter.c"),
    Guest("identity.c", quick=True),
    Guest("inet_sockets.c"),
    Guest("inodes.c"),
    Guest("job_control.c"),
    Guest("large_program.c", flags=(*FLAGS, "-static-pie")),
    Guest("leak_checks.c", flags=(*FLAGS, "-fsanitize=address")),
    # As root it becomes a user whom nobody else is: the kernel counts what waits for all processes of a user.
    Guest("limits.c", native=os.geteuid() == 0),
    Guest("many_processes.c"),
    Guest("many_threads.c"),
    Guest("mmap_shared.c"),
    Guest("nested_namespaces.sh"),
    Guest("networks.py"),
    Guest("open_limits.c"),
    Guest("other_processes.c"),
    Guest("pipes.c", quick=True),
    Guest("polling.c"),
    Guest("posix_ipc.c"),
    Guest("process_files.c"),
    Guest("process_shared.c"),
    Guest("processor.c"),
    Guest("program_names.sh", quick=True),
    Guest("pthread_sync.c", quick=True),
    Guest("randomness.c", quick=True),
    Guest("refused.c", native=False),
    Guest("rtnetlink.py", native=False),
    Guest("shared_ports.py"),
    Guest("shell_jobs.sh", quick=True),
    Guest("signal_queue.c"),
    Guest("signal_restart.c"),
    Guest("signal_threads.c", quick=True),
    Guest("socket_tables.py"),
    Guest("sparse_files.sh", quick=True),
    Guest("spawn_kinds.c"),
    Guest("spin_exchanges.c", limit_s=120),
    Guest("spin_masks.c", native=False, limit_s=120),
    Guest("spin_memory.c", native=False),  # as spin_turns.c
    Guest("spin_queues.c", native=False),  # as spin_turns.c
    Guest("spin_traps.c"),
    Guest("spin_turns.c", native=False),  # where threads outnumber processors a barrier takes a time slice
    Guest("spin_waits.c", limit_s=120),
    Guest("stopped_jobs.c"),
    Guest("stopwatch.c", limit_s=120),
    Guest("strict_mode.c"),
    Guest("system_files.sh", native=False, limit_s=100),
    Guest("sysv_ipc.c"),
    Guest("tcp_pieces.py"),
    Guest("tcp_windows.py", native=False),
    Guest("terminal.c"),
    Guest("terminal_amounts.c"),
    Guest("thread_cancel.c"),
    Guest("thread_race.py"),
    Guest("time_stamps.c", native=False, limit_s=120),
    Guest("timed_work.c", limit_s=120),
    Guest("timed_work.py"),
    Guest("timers.c"),
    Guest("tracing.c"),
    Guest("trapped_instructions.c"),
    Guest("unix_sockets.c"),
    Guest("wait_options.c"),
    Guest("watch_files.c"),
    Guest("worker_processes.py", limit_s=120),
)
MAY_BE_REFUSED = {"count_until_timer.c"}
NO_PROGRAMS = {"conftest.py", "test_guest.py", "test_relay.py"}
INTERPRETERS = {".py": "python3", ".sh": "bash"}


def command_for(guest: Guest, tmp_path: Path) -> tuple[list[str], Path]:
    """Command line, and a directory with what it needs."""
    source = HERE / guest.file
    if source.suffix == ".c":
        return ["./program"], compiled(source, [HERE / "guest.h"], guest.flags)
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    if source.suffix == ".go":
        return ["./program"], built_by_go(source, inputs)
    (inputs / guest.file).write_bytes(source.read_bytes())
    return [INTERPRETERS[source.suffix], guest.file], inputs


_NATIVE_RUNS = 3


def built_by_go(source: Path, inputs: Path) -> Path:
    """The directory with a program, as Go's own linker makes it."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("no Go is installed")
    environ = {**os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off", "GOTOOLCHAIN": "local"}
    environ.setdefault("HOME", str(inputs.parent))
    subprocess.run([go, "build", "-o", inputs / "program", source], env=environ, check=True)
    return inputs


def marks(guest: Guest) -> list[pytest.MarkDecorator]:
    """Two runs have to fit into the test's limit, or the native ones."""
    return [pytest.mark.limit(guest.limit_s * _NATIVE_RUNS + 60), *[pytest.mark.quick] * guest.quick]


def parameters(native: bool) -> list[object]:
    chosen = [g for g in GUESTS if g.native or not native]
    return [
        pytest.param(g, id=g.file, marks=marks(g))
        for g in chosen
    ]


def test_table_and_folder_agree() -> None:
    files = {p.name for p in HERE.iterdir() if p.suffix in {".c", ".go", ".py", ".sh"}} - NO_PROGRAMS
    assert sorted(files) == [g.file for g in GUESTS]


def run_natively(command: list[str], work: Path, limit_s: float) -> subprocess.CompletedProcess[bytes]:
    """Run a program without detbox; none of its session is left, whether it succeeds or not.

    A child that computes until its parent tells it to stop would do so for ever after a parent that has failed.
    Raises subprocess.TimeoutExpired.
    """
    with subprocess.Popen(
        command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=limit_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


@pytest.mark.parametrize("guest", parameters(native=True))
def test_natively(guest: Guest, tmp_path: Path) -> None:
    """The kernel itself passes, so what a program checks is the kernel's behaviour and not detbox's."""
    command, inputs = command_for(guest, tmp_path)
    if command[0] == "./program":
        command = [str(inputs / "program")]
    else:
        command = [f"/usr/bin/{command[0]}", str(inputs / command[1])]
    # Natively a program's timers go on while a busy host does something else: what fails by that passes another time.
    run = None
    for number in range(_NATIVE_RUNS):
        work = tmp_path / f"work{number}"
        work.mkdir()
        with contextlib.suppress(subprocess.TimeoutExpired):
            run = run_natively(command, work, guest.limit_s)
            if run.returncode == 0 and run.stdout.endswith(SUCCESS):
                return
    pytest.fail(f"status {run.returncode}: {run.stderr[-2000:]!r}" if run else f"more than {guest.limit_s} s each time")


@pytest.mark.parametrize("guest", parameters(native=False))
def test_under_detbox(guest: Guest, tmp_path: Path) -> None:
    command, inputs = command_for(guest, tmp_path)
    if guest.file in MAY_BE_REFUSED:
        observed = [run_on(host, command, inputs, limit_s=guest.limit_s) for host in hosts()]
        if all(run.status == NotDeterministic.status for run in observed):
            return
        demand_identical(*observed)
        run = observed[0]
    else:
        run = twice(command, inputs, limit_s=guest.limit_s)
    demand_success(run)


@pytest.mark.parametrize("file", ["processor.c", "trapped_instructions.c"])
def test_faulting_and_patched_instructions_agree(file: str) -> None:
    """What a processor without CPUID faulting gives is what one with it gives."""
    inputs = compiled(HERE / file, [HERE / "guest.h"])
    runs = [run_on(hosts()[0], ["./program"], inputs, options=[f"--cpuid-backend={backend}"])
            for backend in ("auto", "patch")]  # fmt: skip
    demand_identical(*runs)
    demand_success(runs[1])


@pytest.mark.limit(600)
def test_ten_thousand_processes() -> None:
    inputs = compiled(HERE / "many_processes.c", [HERE / "guest.h"])
    demand_success(twice(["./program", "10000"], inputs, limit_s=280))
