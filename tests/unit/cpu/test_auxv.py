"""The rewritten first stack is one that programs start from, and shows the virtual machine."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from detbox.cpu import auxv, model
from detbox.records import replace

from .tracer import Traced, Values

CPU = model.MODELS["x86-64-v3"]
VALUES = auxv.AuxValues(model.hwcap(CPU, 4), model.HWCAP2, bytes(range(16)), 1000, 1001, 1002, 1003)
TEXT = {"AT_PLATFORM": model.PLATFORM, "AT_EXECFN": "/bin/true"}


def kernel_stack(pairs: list[tuple[int, int]], arguments: int = 2) -> tuple[int, bytes]:
    """A stack as the kernel builds it, with the random bytes at RANDOM_AT."""
    words = [arguments, *range(0x7000F100, 0x7000F100 + arguments), 0, 0x7000F200, 0]
    block = struct.pack(f"<{len(words)}Q", *words)
    block += b"".join(struct.pack("<QQ", *pair) for pair in [*pairs, (0, 0)])
    rsp = (RANDOM_AT - len(block)) & ~15
    return rsp, block + bytes(RANDOM_AT - rsp - len(block)) + b"hostile entropy!" + b"x86_64\0strings"


RANDOM_AT = 0x7000F009
BASE = [
    (auxv.AT_PHDR, 0x40),
    (auxv.AT_ENTRY, 0x50),
    (auxv.AT_RANDOM, RANDOM_AT),
    (auxv.AT_PLATFORM, RANDOM_AT + 16),
]
HOST = [(auxv.AT_SYSINFO_EHDR, 0x7FFF), (auxv.AT_HWCAP, 0xFFFF), (auxv.AT_MINSIGSTKSZ, 11952)]
NEW = [*HOST, (27, 28), (28, 32), (77, 1)]


@pytest.mark.parametrize("extra", [[], NEW, NEW * 10])
def test_every_kernel_gives_the_same_stack(extra: list[tuple[int, int]]) -> None:
    rsp, stack = kernel_stack(BASE)
    expected = auxv.rewrite(stack, rsp, VALUES)
    rsp, stack = kernel_stack(BASE + extra)
    got = auxv.rewrite(stack, rsp, VALUES)
    assert (got.rsp, got.auxv) == (expected.rsp, expected.auxv)
    assert got.rsp % 16 == 0
    ((address, data),) = got.edits
    assert address == min(rsp, got.rsp)
    assert data[got.rsp - address :] == expected.edits[0][1][expected.rsp - expected.edits[0][0] :]
    assert not any(data[: got.rsp - address])
    assert address + len(data) == RANDOM_AT + 16
    kinds = {kind for kind, _ in auxv.parse_auxv(got.auxv)}
    assert not kinds & {auxv.AT_SYSINFO_EHDR, 27, 28, 77}


def test_the_vdso_is_the_guest_s_own() -> None:
    rsp, stack = kernel_stack(BASE + HOST)
    without, given = auxv.rewrite(stack, rsp, VALUES), auxv.rewrite(stack, rsp, replace(VALUES, vdso=0x5000))
    assert without.rsp == given.rsp
    assert (auxv.AT_SYSINFO_EHDR, 0x5000) in auxv.parse_auxv(given.auxv)


@pytest.mark.parametrize(
    "stack", [b"", b"\1" + bytes(7), struct.pack("<QQQ", 1, 2, 3), bytes(64), b"\xff" * 9]
)
def test_other_bytes_are_refused(stack: bytes) -> None:
    with pytest.raises(ValueError):
        auxv.rewrite(stack, 0x7000, VALUES)


def test_random_must_be_sixteen_bytes() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        auxv.AuxValues(0, 0, b"short", 0, 0, 0, 0)


@pytest.mark.parametrize("environ", [{}, {"A": "b" * 999, "C": ""}])
def test_a_real_program_starts_from_it(environ: dict[str, str]) -> None:
    program = Traced(["/bin/true", "an argument"], {"LD_SHOW_AUXV": "1", **environ})
    rsp, stack = program.stack()
    plan = auxv.rewrite(stack, rsp, VALUES)
    for address, data in plan.edits:
        program.write(address, data)
    program.set_rsp(plan.rsp)
    output, _ = program.run(Values())
    shown = dict(line.split(":", 1) for line in output.decode().splitlines())
    shown = {name: value.strip() for name, value in shown.items()}
    assert shown["AT_MINSIGSTKSZ"] == str(auxv.MINSIGSTKSZ)
    assert int(shown["AT_HWCAP"], 16) == VALUES.hwcap
    assert [shown[f"AT_{name}"] for name in "UID EUID GID EGID".split()] == ["1000", "1001", "1002", "1003"]
    assert {name: shown[name] for name in TEXT} == TEXT
    assert "AT_SYSINFO_EHDR" not in shown and not any("???" in name for name in shown)
    assert Path(TEXT["AT_EXECFN"]).exists()
