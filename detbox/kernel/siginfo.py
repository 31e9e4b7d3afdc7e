"""Layout of ``siginfo_t`` on x86-64 (include/uapi/asm-generic/siginfo.h)."""

from __future__ import annotations

import os
import signal
import struct

SIZE = 128
SI_USER, SI_KERNEL, SI_QUEUE, SI_TIMER, SI_TKILL = 0, 0x80, -1, -2, -6
SEGV_MAPERR = 1
CLD_EXITED, CLD_KILLED, CLD_DUMPED, CLD_TRAPPED, CLD_STOPPED = 1, 2, 3, 4, 5
CODE, UID = 8, 20  # offsets of si_code and si_uid

_HEAD = struct.Struct("<iiii")  # signo, errno, code, padding
_CHILD = struct.Struct("<iIi4xqq")  # pid, uid, status, utime, stime
_USER = struct.Struct("<iIQ")  # pid, uid, value
_TIMER = struct.Struct("<iiQ")  # timer id, overrun, value


#: struct signalfd_siginfo (signalfd(2)): its size, and signo, errno, code, pid, uid, fd, timer, band, overrun, trap,
#: status, integer, pointer, user and system time.
RECORD = 128
_SIGNALFD = struct.Struct("<IiiiIiiIiIiiQQQ")


def signo_of(info: bytes) -> int:
    """``si_signo``."""
    return int(_HEAD.unpack_from(info)[0])


def code_of(info: bytes) -> int:
    """``si_code``."""
    return int(_HEAD.unpack_from(info)[2])


def errno_of(info: bytes) -> int:
    """``si_errno``."""
    return int(_HEAD.unpack_from(info)[1])


def without_errno(info: bytes) -> bytes:
    """The same with ``si_errno`` 0."""
    return info[:4] + bytes(4) + info[8:]


def _info(signo: int, code: int, fields: bytes) -> bytes:
    return (_HEAD.pack(signo, 0, code, 0) + fields).ljust(SIZE, b"\0")


def fault_address(info: bytes) -> int:
    """``si_addr`` of a fault."""
    return int.from_bytes(info[16:24], "little")


def with_address(info: bytes, address: int) -> bytes:
    """The same with another ``si_addr`` (of SIGSYS: ``si_call_addr``)."""
    return info[:16] + address.to_bytes(8, "little") + info[24:]


def fault(signo: int, code: int, address: int) -> bytes:
    """The siginfo of a signal that an instruction has raised."""
    return _info(signo, code, address.to_bytes(8, "little"))


def child(info: bytes, uid: int, code: int | None = None) -> bytes:
    """A SIGCHLD siginfo of a child that is this user's, maybe with another ``si_code``; its CPU times are zero."""
    pid, _, status, _, _ = _CHILD.unpack_from(info, _HEAD.size)
    fields = _CHILD.pack(pid, uid, status, 0, 0)
    return _info(_HEAD.unpack_from(info)[0], code_of(info) if code is None else code, fields)


def of_child(code: int, pid: int, uid: int, status: int) -> bytes:
    """The siginfo of a change of a child, or of a traced thread."""
    return _info(signal.SIGCHLD, code, _CHILD.pack(pid, uid, status, 0, 0))


def how_it_ended(status: int) -> tuple[int, int]:
    """``si_code`` and ``si_status`` for the wait status of who has ended."""
    if os.WIFEXITED(status):
        return CLD_EXITED, os.WEXITSTATUS(status)
    return CLD_DUMPED if os.WCOREDUMP(status) else CLD_KILLED, os.WTERMSIG(status)


def timer(signo: int, code: int, timerid: int, overrun: int, value: int) -> bytes:
    """The siginfo of a timer's expiration."""
    return _info(signo, code, _TIMER.pack(timerid, overrun, value))


def user(signo: int, code: int, pid: int, uid: int, value: int) -> bytes:
    """The siginfo of a signal that a process sent."""
    return _info(signo, code, _USER.pack(pid, uid, value))


def sender_of(info: bytes) -> tuple[int, int]:
    """``si_pid`` and ``si_uid``."""
    pid, uid, _ = _USER.unpack_from(info, _HEAD.size)
    return pid, uid


def value_of(info: bytes) -> int:
    """``si_value`` of a signal that a process sent."""
    return int(_USER.unpack_from(info, _HEAD.size)[2])


def timer_of(info: bytes) -> tuple[int, int, int]:
    """``si_timerid``, ``si_overrun`` and ``si_value`` of a timer's signal."""
    ident, overrun, value = _TIMER.unpack_from(info, _HEAD.size)
    return ident, overrun, value


def of_record(record: bytes) -> bytes:
    """The siginfo of what a signal descriptor tells, as far as there are other fields than those of a fault."""
    signo, _, code, pid, uid, _, ident, _, overrun, _, status, _, pointer, _, _ = _SIGNALFD.unpack_from(record)
    if code == SI_TIMER:
        return timer(signo, code, ident, overrun, pointer)
    if code > 0:
        return _info(signo, code, _CHILD.pack(pid, uid, status, 0, 0))
    return user(signo, code, pid, uid, pointer)


def record_of(info: bytes) -> bytes:
    """The other way round."""
    signo, _, code, _ = _HEAD.unpack_from(info)
    pid, uid, ident, overrun, status, pointer = 0, 0, 0, 0, 0, 0
    if code == SI_TIMER:
        ident, overrun, pointer = timer_of(info)
    elif code > 0:
        pid, uid, status, _, _ = _CHILD.unpack_from(info, _HEAD.size)
    else:
        pid, uid, pointer = _USER.unpack_from(info, _HEAD.size)
    low = pointer & 0xFFFFFFFF
    number = low - (1 << 32) if low >> 31 else low
    fields = signo, 0, code, pid, uid, 0, ident, 0, overrun, 0, status, number, pointer, 0, 0
    return _SIGNALFD.pack(*fields).ljust(RECORD, b"\0")
