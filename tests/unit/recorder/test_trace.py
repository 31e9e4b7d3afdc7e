"""Traces: what is written is read, differences are found, bad files are refused."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from detbox.decision import CONTINUE, ContinueThen, Park
from detbox.errors import UserError
from detbox.kernel.numbers import NUMBERS
from detbox.recorder import decode, show
from detbox.recorder.compare import first_divergence
from detbox.recorder.format import HEAD, MAGIC, VERSION, Kind, Verdict
from detbox.recorder.log import Recorder
from detbox.recorder.read import Trace, events, joined


@dataclass
class FakeTask:
    """A thread whose memory is one text, the same at each address."""

    lineage: str
    nr: int = -1
    args: tuple[int, ...] = (0,) * 6
    tid: int = 2
    process: Any = field(default_factory=lambda: SimpleNamespace(
        pid=2, exe=b"/bin/x", lineage="1", namespaces=False, files=SimpleNamespace(known=lambda fd: None)
    ))  # fmt: skip
    memory: bytes = b"/some/path"

    def cstr(self, addr: int) -> bytes:
        if not addr:
            raise OSError(14, "EFAULT")
        return self.memory

    def read(self, addr: int, length: int) -> bytes:
        return self.memory[:length]


class Machine:
    """A clock, and a /proc with one command line."""

    def __init__(self, proc: Path) -> None:
        self.clock = SimpleNamespace(now=1_000_000_000)
        (proc / "2").mkdir(exist_ok=True)
        (proc / "2" / "cmdline").write_bytes(b"x\0an argument\0")
        self.proc_fd = os.open(proc, os.O_PATH)


def record(path: Path, calls: list[tuple[str, tuple[int, ...], Any]], *, close: bool = True) -> Path:
    recorder = Recorder(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), {"command": ["x"]}, results=True)
    machine: Any = Machine(path.parent)
    recorder.bind(machine)
    task: Any = FakeTask("1")
    recorder.on_exec(machine, task)
    for name, args, decision in calls:
        task.nr, task.args = NUMBERS[name], args + (0xABCD,) * (6 - len(args))
        machine.clock.now += 10
        recorder.on_call(task, decision)
    recorder.on_output(1, b"text")
    if close:
        recorder.close(ended=True)
    return path


CALLS: list[tuple[str, tuple[int, ...], Any]] = [
    ("openat", (0xFFFFFF9C, 0x1000, 0, 0), -2),
    ("getpid", (), 2),
    ("read", (0, 0x1000, 10), Park(lambda wake: 0)),
    ("read", (0, 0x1000, 10), CONTINUE),
    ("write", (1, 0x1000, 4), 4),
]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    trace = Trace(record(tmp_path / "t", CALLS))
    found = [event for event, _ in events(trace)]
    assert trace.complete
    assert trace.description == {"command": ["x"]}
    assert [event.kind for event in found] == [Kind.TASK, Kind.EXEC, *[Kind.CALL] * 5, Kind.OUTPUT]
    assert found[1].argv == (b"x", b"an argument")
    calls = found[2:7]
    assert calls[0].path == b"/some/path" and calls[0].result == -2
    assert [event.verdict for event in calls] == [
        Verdict.REPLY, Verdict.REPLY, Verdict.PARK, Verdict.WATCH, Verdict.REPLY,
    ]  # fmt: skip
    assert calls[4].digest == zlib.crc32(b"/som")
    assert found[-1].digest == zlib.crc32(b"text")


def test_registers_that_are_no_arguments_are_left_out(tmp_path: Path) -> None:
    found = [event for event, _ in events(Trace(record(tmp_path / "t", [("getpid", (), 2)])))]
    assert found[2].args == (0,) * 6


def test_lines_look_like_straces(tmp_path: Path) -> None:
    lines = [show.line(*pair) for pair in events(Trace(record(tmp_path / "t", CALLS)))]
    assert 'openat(AT_FDCWD, "/some/path", O_RDONLY) = -1 ENOENT' in lines[2]
    assert "executes x an argument" in lines[1]


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    assert record(tmp_path / "a", CALLS).read_bytes() == record(tmp_path / "b", CALLS).read_bytes()


def test_the_first_divergence_is_found_when_later_events_shift(tmp_path: Path) -> None:
    longer = [*CALLS[:1], ("getrandom", (0x1000, 8, 0), 8), *CALLS[1:]]
    found = first_divergence(Trace(record(tmp_path / "a", CALLS)), Trace(record(tmp_path / "b", longer)))
    assert found is not None
    assert found.index == 3
    assert "getpid" in found.texts[0] and "getrandom" in found.texts[1]
    assert found.stack == [("1", "x an argument")]
    assert len(found.before) == 3


def test_the_events_before_a_divergence_are_whole_calls(tmp_path: Path) -> None:
    task: Any = FakeTask("1")
    for place in range(2):
        recorder = Recorder(os.open(tmp_path / str(place), os.O_WRONLY | os.O_CREAT), {}, results=True)
        machine: Any = Machine(tmp_path)
        recorder.bind(machine)
        recorder.on_exec(machine, task)
        for result in (7, place):
            task.nr, task.args = NUMBERS["read"], (3, 0x1000, 100, 0, 0, 0)
            decision = recorder.on_call(task, CONTINUE)
            assert isinstance(decision, ContinueThen)
            decision.look(task, result)
        recorder.close(ended=True)
    found = first_divergence(Trace(tmp_path / "0"), Trace(tmp_path / "1"))
    assert found is not None and found.texts[0].endswith("= 0") and "= 1" in found.texts[1]
    assert [text.split(" = ")[-1][0] for text in found.before if "read(" in text] == ["7"]


def test_one_run_may_end_earlier(tmp_path: Path) -> None:
    short = record(tmp_path / "a", CALLS[:2], close=False)
    found = first_divergence(Trace(short), Trace(record(tmp_path / "b", CALLS)))
    assert found is not None and found.left is None
    assert "ended" in found.lines()[1]


def test_equal_traces(tmp_path: Path) -> None:
    path = record(tmp_path / "a", CALLS)
    assert first_divergence(Trace(path), Trace(path)) is None


def test_a_cut_trace_gives_what_it_has(tmp_path: Path) -> None:
    path = record(tmp_path / "a", CALLS * 2000)
    whole = len(list(Trace(path).records()))
    path.write_bytes(path.read_bytes()[:-200])
    trace = Trace(path)
    assert 0 < len(list(trace.records())) < whole
    assert not trace.complete


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a trace"),
        (b"\x7fELF" * 100, "not a trace"),
        (MAGIC + HEAD.pack(VERSION + 1, 2) + b"{}", "version"),
        (MAGIC + HEAD.pack(VERSION, 100) + b"{}", "cut off"),
        (MAGIC + HEAD.pack(VERSION, 2) + b"{}" + b"garbage" * 10, "damaged"),
        (MAGIC + HEAD.pack(VERSION, 2) + b"{}" + zlib.compress(b"\xee" * 10), "damaged"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(Trace(path).records())


def test_a_full_disk_ends_the_recording_alone(tmp_path: Path) -> None:
    recorder = Recorder(os.open("/dev/full", os.O_WRONLY), {}, results=False)
    recorder.bind(cast(Any, Machine(tmp_path)))
    assert recorder.on_call(cast(Any, FakeTask("1", NUMBERS["getpid"])), 2) == 2
    assert "No space left" in recorder.close(ended=True)


def test_the_end_of_a_call_is_joined_with_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "t"
    recorder = Recorder(os.open(path, os.O_WRONLY | os.O_CREAT), {}, results=True)
    machine: Any = Machine(tmp_path)
    recorder.bind(machine)
    task: Any = FakeTask("1")
    recorder.on_exec(machine, task)
    task.nr, task.args = NUMBERS["read"], (0, 0x1000, 100, 0, 0, 0)
    recorder.on_call(task, Park(lambda wake: 0))
    decision = recorder.on_call(task, CONTINUE)
    assert isinstance(decision, ContinueThen)
    assert decision.look(task, 4) is None
    task.nr, task.args = NUMBERS["pipe2"], (0x1000, 0, 0, 0, 0, 0)
    task.memory = b"\3\0\0\0\7\0\0\0"
    inner = recorder.on_call(task, ContinueThen(lambda task, result: result + 1))
    assert isinstance(inner, ContinueThen) and inner.look(task, -1) == 0
    recorder.close(ended=True)
    calls = [event for event, _ in joined(Trace(path)) if event.kind is Kind.CALL]
    assert [(event.known, event.result, event.waited) for event in calls] == [(True, 4, True), (True, 0, False)]
    assert calls[0].digest == zlib.crc32(b"/som")
    assert decode.data(calls[1]) == " [3, 7]"


@pytest.mark.parametrize(
    "name, values, text",
    [
        ("openat", (0xFFFFFF9C, 1, 0o1102, 0o644), "AT_FDCWD, 0x1, O_RDWR|O_CREAT|O_TRUNC, 0644"),
        ("mmap", (0, 4096, 3, 0x22, (1 << 64) - 1, 0), "0, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1"),
        ("kill", (5, 9), "5, SIGKILL"),
        ("access", (0, 5), "NULL, X_OK|R_OK"),
        ("socket", (1, 1, 0), "AF_FILE, SOCK_STREAM, "),
        ("ioctl", (0, 0x5401, 0), "0, TCGETS, "),
        ("futex", (1, 0x189, 0), "0x1, FUTEX_WAIT_BITSET|FUTEX_PRIVATE_FLAG|FUTEX_CLOCK_REALTIME, 0"),
        ("newfstatat", (3, 0x1000, 0x2000, 0x1000), '3, "", 0x2000, AT_EMPTY_PATH'),
    ],
)
def test_arguments_are_decoded(name: str, values: tuple[int, ...], text: str) -> None:
    assert decode.arguments(NUMBERS[name], values + (0,) * (6 - len(values))).startswith(text)
