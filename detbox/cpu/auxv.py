"""Rewrites the initial stack of a freshly executed program: the same auxiliary vector on every host.

The kernel puts, from the stack pointer upwards: argc, the arguments' and the environment's pointers, the
auxiliary vector (pairs of type and value), 16 random bytes and the strings (fs/binfmt_elf.c,
create_elf_tables). How many pairs there are depends on the kernel, and so does the stack pointer below them:
the vector is therefore written anew, in one order and with one number of pairs, and the pointers are moved
with it.
"""

from __future__ import annotations

import struct
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING

from detbox.records import NamedTuple, record

if TYPE_CHECKING:
    from collections.abc import Iterable

# include/uapi/linux/auxvec.h and arch/x86/include/uapi/asm/auxvec.h
AT_NULL, AT_IGNORE, AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ = 0, 1, 3, 4, 5, 6
AT_BASE, AT_FLAGS, AT_ENTRY = 7, 8, 9
AT_UID, AT_EUID, AT_GID, AT_EGID, AT_PLATFORM, AT_HWCAP, AT_CLKTCK = 11, 12, 13, 14, 15, 16, 17
AT_SECURE, AT_RANDOM, AT_HWCAP2, AT_EXECFN, AT_SYSINFO_EHDR, AT_MINSIGSTKSZ = 23, 25, 26, 31, 33, 51

#: The signal frame that the kernel needs (bytes) on a host with AVX-512 and PKRU, the most that can be in
#: use: AMX needs an arch_prctl that the guest does not get, and MPX is gone.  Hosts with less need less, and
#: glibc derives SIGSTKSZ from this number, so one number serves all.
MINSIGSTKSZ = 3632

#: The order in which pairs are written; of these, the values come from the kernel unless AuxValues has them.
#: AT_SYSINFO_EHDR is never the kernel's own vDSO, which shows the host's clock.  Not listed, and so removed:
#: AT_RSEQ_* (rseq is refused) and whatever newer kernels add.
_ORDER = (
    AT_SYSINFO_EHDR, AT_MINSIGSTKSZ, AT_HWCAP, AT_PAGESZ, AT_CLKTCK, AT_PHDR, AT_PHENT, AT_PHNUM, AT_BASE, AT_FLAGS,
    AT_ENTRY, AT_UID, AT_EUID, AT_GID, AT_EGID, AT_SECURE, AT_RANDOM, AT_HWCAP2, AT_EXECFN, AT_PLATFORM,
)  # fmt: skip
_IN_ORDER = itemgetter(*_ORDER)
_VECTOR = struct.Struct(f"<{2 * len(_ORDER) + 2}Q")
_RANDOM_SIZE = 16
_CLOCK_TICKS = 100  # USER_HZ of x86
_PAGE_SIZE = 4096


@record(frozen=True)
class AuxValues:
    """What the virtual machine says about itself and about the process's credentials."""

    hwcap: int
    hwcap2: int
    random: bytes
    uid: int
    euid: int
    gid: int
    egid: int
    secure: bool = False
    vdso: int = 0  # address of the one that the guest is given; 0: none

    def __post_init__(self) -> None:
        if len(self.random) != _RANDOM_SIZE:
            raise ValueError(f"AT_RANDOM points to {_RANDOM_SIZE} bytes, not {len(self.random)}")


class Rewrite(NamedTuple):
    """The new stack pointer, the (address, bytes) to write, and the vector that /proc/PID/auxv should show.

    ``rsp`` may lie below the old one by less than a page; the kernel has mapped the stack further down.
    ``found``: the kernel's own pairs.
    """

    rsp: int
    edits: list[tuple[int, bytes]]
    auxv: bytes
    found: dict[int, int]


def rewrite(
    stack: bytes, rsp: int, values: AuxValues, parsed: tuple[int, dict[int, int]] | None = None
) -> Rewrite:
    """How to change the stack of a process that stopped right after execve.

    ``stack``: its bytes from ``rsp`` to the end of the stack's mapping.  Raises ValueError if these are no
    initial stack.  ``parsed``: what :func:`parse` gives, if the caller has it.
    """
    pointers_end, found = parsed or parse(stack)
    missing = {AT_RANDOM, AT_ENTRY, AT_PHDR} - found.keys()
    if missing:
        raise ValueError(f"auxiliary vector without {sorted(missing)}")
    vector = _vector(found, values)
    random_at = found[AT_RANDOM]
    # The kernel aligns to 16 bytes what ends below the random bytes, the lowest of the data that it stores.
    new_rsp = (random_at - pointers_end - len(vector)) & ~15
    block = stack[:pointers_end] + vector
    padding = bytes(random_at - new_rsp - len(block))
    # What is left of a longer old vector would show the host to a reader of uninitialised memory.
    rest = bytes(max(0, new_rsp - rsp))
    return Rewrite(new_rsp, [(new_rsp - len(rest), rest + block + padding + values.random)], vector, found)


def parse_auxv(raw: bytes) -> list[tuple[int, int]]:
    """The pairs of an auxiliary vector, up to AT_NULL."""
    words = memoryview(raw[: len(raw) - len(raw) % 16]).cast("Q").tolist()
    kinds = words[::2]
    count = kinds.index(AT_NULL) if AT_NULL in kinds else len(kinds)
    return list(zip(kinds[:count], words[1::2], strict=False))


def parse(stack: bytes) -> tuple[int, dict[int, int]]:
    """Of an initial stack: where the pointers end (an offset), and the auxiliary vector after them.

    Raises ValueError if it is none.
    """
    words = memoryview(stack[: len(stack) - len(stack) % 8]).cast("Q").tolist()
    try:
        end_of_arguments = 1 + words[0]
        if words[end_of_arguments] != 0:
            raise ValueError("no null pointer after the arguments")
        end = words.index(0, end_of_arguments + 1) + 1
    except IndexError:
        raise ValueError("not an initial stack") from None
    return 8 * end, dict(parse_auxv(stack[8 * end :]))


def _vector(found: dict[int, int], values: AuxValues) -> bytes:
    fixed = {
        AT_SYSINFO_EHDR: values.vdso,
        AT_MINSIGSTKSZ: MINSIGSTKSZ,
        AT_HWCAP: values.hwcap,
        AT_HWCAP2: values.hwcap2,
        AT_PAGESZ: _PAGE_SIZE,
        AT_CLKTCK: _CLOCK_TICKS,
        AT_UID: values.uid,
        AT_EUID: values.euid,
        AT_GID: values.gid,
        AT_EGID: values.egid,
        AT_SECURE: int(values.secure),
    }
    merged = found | fixed
    if not values.vdso:
        del merged[AT_SYSINFO_EHDR]
    try:
        pairs: Iterable[tuple[int, int]] = zip(_ORDER, _IN_ORDER(merged), strict=True)
    except KeyError:
        # A pair that there is not becomes AT_IGNORE, so that the number of pairs stays the same.
        pairs = [(kind, merged[kind]) if kind in merged else (AT_IGNORE, 0) for kind in _ORDER]
    return _VECTOR.pack(*chain.from_iterable(pairs), AT_NULL, 0)
