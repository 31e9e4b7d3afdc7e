"""The guest's vDSO: an object that the C library understands, and looks that keep to their limit."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from detbox.guest import vdso
from detbox.guest.vdso import (
    COST,
    DAY,
    DULL,
    ENOUGH,
    LIMIT,
    NOW,
    OTHER,
    PAGE,
    PLACE,
    PROCESS,
    THREAD,
    TURNED,
    WALL,
    WORK,
)
from detbox.kernel import _native
from detbox.machine.clock import NOWHERE, TURNS, CpuTime

REALTIME, MONOTONIC, PROCESS_CPU, THREAD_CPU, RAW = range(5)
NAMES = ("__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_time")


class Pair(ctypes.Structure):
    """struct timespec, and struct timeval."""

    _fields_ = (("seconds", ctypes.c_long), ("rest", ctypes.c_long))


class Mapped:
    """Both pages in this process, and the functions as a program calls them."""

    def __init__(self) -> None:
        code, functions, _ = _native.guest_code()
        image = vdso.image(code, functions)
        self.memory = mmap.mmap(-1, 2 * PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.memory[PAGE:] = image
        self.page = memoryview(self.memory)[:PAGE].cast("q")
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + PAGE
        start = image.index(code[:64])
        self.addresses = {name: base + start + offset for name, offset in functions.items()}

    def clock(self, number: int, pair: Pair | None = None) -> tuple[int, int, int]:
        """clock_gettime: result, seconds, nanoseconds."""
        pair = pair if pair is not None else Pair(-1, -1)
        function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(Pair))
        result = function(self.addresses[NAMES[0]])(number, ctypes.byref(pair))
        return result, pair.seconds, pair.rest


@pytest.fixture
def mapped() -> Iterator[Mapped]:
    here = Mapped()
    here.page[NOW], here.page[LIMIT], here.page[COST] = 5_000_000_000, 5_000_000_033, 11
    here.page[WALL] = 1_000_000_000_000
    here.page[ENOUGH], here.page[DULL] = TURNS, NOWHERE
    yield here
    here.page.release()


def test_looks_cost_and_end_at_the_limit(mapped: Mapped) -> None:
    assert [mapped.clock(MONOTONIC) for _ in range(3)] == [(0, 5, 11), (0, 5, 22), (0, 5, 33)]
    result, seconds, _ = mapped.clock(MONOTONIC)
    assert result == 0 and abs(seconds - time.clock_gettime(time.CLOCK_MONOTONIC)) < 10  # the kernel was asked
    assert mapped.page[NOW] == 5_000_000_033


def test_clocks(mapped: Mapped) -> None:
    assert mapped.clock(REALTIME) == (0, 1005, 11)
    assert mapped.clock(11) == (0, 1005, 22)  # TAI
    now = mapped.page[NOW]
    assert mapped.clock(77)[0] == -22
    assert mapped.page[NOW] == now


def test_cpu_time(mapped: Mapped) -> None:
    start = mapped.page[NOW]
    # As much as no process of tests has used.
    mapped.page[PROCESS], mapped.page[THREAD] = 800_000_000_000_000, -4_000_000_000
    mapped.page[WORK] = start + 1
    for number in (PROCESS_CPU, THREAD_CPU):  # not yet
        used = time.clock_gettime_ns(number)
        result, seconds, rest = mapped.clock(number)
        assert result == 0 and used < seconds * 10**9 + rest < used + 10**9  # the kernel was asked
    assert mapped.page[NOW] == start
    mapped.page[WORK] = start
    assert mapped.clock(PROCESS_CPU) == (0, 800_005, 11)
    assert mapped.clock(THREAD_CPU) == (0, 1, 22)
    mapped.page[LIMIT] = mapped.page[NOW]
    assert mapped.clock(PROCESS_CPU)[1] < 800_005


def test_time_of_day(mapped: Mapped) -> None:
    pair, zone = Pair(-1, -1), (ctypes.c_int * 2)(7, 7)
    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(mapped.addresses[NAMES[1]])
    mapped.page[NOW] = mapped.page[LIMIT] - 22
    mapped.page[WALL] += 2000
    assert function(ctypes.addressof(pair), ctypes.addressof(zone)) == 0
    assert (pair.seconds, pair.rest, list(zone)) == (1005, 2, [0, 0])
    assert function(None, None) == 0
    assert function(ctypes.addressof(pair), None) == 0 and abs(pair.seconds - time.time()) < 10


def test_clocks_of_stopwatches_may_be_left_to_the_supervisor(mapped: Mapped) -> None:
    now = mapped.page[NOW]
    mapped.page[DAY] = 1 << 62
    day = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(mapped.addresses[NAMES[1]])
    pair = Pair(-1, -1)
    assert day(ctypes.addressof(pair), None) == 0 and abs(pair.seconds - time.time()) < 10  # the kernel was asked
    for number in (REALTIME, RAW):
        assert mapped.clock(number)[1] != (1005 if number == REALTIME else 5)
    assert mapped.page[NOW] == now
    assert mapped.clock(MONOTONIC) == (0, 5, 11)
    mapped.page[DAY] = 0
    assert mapped.clock(RAW) == (0, 5, 22)


@pytest.mark.parametrize("dull", [NOWHERE, "0 + 0", "0 + 1"])
def test_looks_from_two_places_are_left_to_the_supervisor(mapped: Mapped, dull: int | str) -> None:
    pairs = [Pair(), Pair(), Pair()]
    at = [ctypes.addressof(pair) for pair in pairs]
    if isinstance(dull, str):
        dull = sum(at[int(place)] for place in dull.split(" + "))
    mapped.page[DULL] = dull
    mapped.page[LIMIT] = 1 << 62
    cpu, asked = CpuTime(dull=dull), 0
    for place in map(int, "00010000022220101010120120120001101010111111111"):
        before = mapped.page[NOW]
        rises = cpu.turn(at[place])
        mapped.clock(MONOTONIC, pairs[place])
        assert rises == (mapped.page[NOW] == before), "the kernel was asked"
        asked += rises
        if rises:  # the supervisor does the same
            mapped.page[PLACE], mapped.page[OTHER], mapped.page[TURNED] = cpu.place, cpu.other, cpu.turns
        assert (mapped.page[PLACE], mapped.page[OTHER], mapped.page[TURNED]) == (cpu.place, cpu.other, cpu.turns)
    assert asked >= 5
    mapped.page[TURNED] = -1  # it does not matter
    before = mapped.page[NOW]
    for _ in range(9):
        mapped.clock(MONOTONIC, pairs[0])
    assert mapped.page[NOW] == before + 9 * 11 and mapped.page[TURNED] == -1


def test_time(mapped: Mapped) -> None:
    function = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(mapped.addresses[NAMES[2]])
    place = ctypes.c_long()
    assert function(ctypes.addressof(place)) == 1005 == place.value
    assert function(None) == 1005
    mapped.page[LIMIT] = -1
    assert abs(function(None) - time.time()) < 10


def test_the_dynamic_loader_finds_the_symbols(tmp_path: Path) -> None:
    file = tmp_path / "vdso.so"
    file.write_bytes(vdso.image(*_native.guest_code()[:2]))
    library = ctypes.CDLL(str(file))
    find = ctypes.CDLL(None).dlvsym
    find.restype, find.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)
    for name in NAMES:
        assert find(library._handle, name.encode(), b"LINUX_2.6")
        assert not find(library._handle, name.encode(), b"LINUX_2.7")
    assert not find(library._handle, b"__vdso_getcpu", b"LINUX_2.6")


def test_too_much_code() -> None:
    with pytest.raises(ValueError, match="one page"):
        vdso.image(bytes(4000), {"f": 0})
