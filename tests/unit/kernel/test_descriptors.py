"""All descriptors of a process, with what stands behind them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detbox.kernel import _native


def test_each_is_as_the_kernel_has_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    file = os.open(tmp_path / "f", os.O_RDWR | os.O_APPEND)
    os.lseek(file, 7, os.SEEK_SET)
    ends = os.pipe()
    os.set_blocking(ends[0], False)
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    try:
        found = {row[0]: row[1:] for row in _native.descriptors(proc, os.getpid())}
        for fd in (file, *ends, proc):
            st = os.fstat(fd)
            assert found[fd][:4] == (st.st_dev, st.st_ino, st.st_mode, st.st_rdev)
        assert found[file][4] & (os.O_ACCMODE | os.O_APPEND) == os.O_RDWR | os.O_APPEND
        assert found[file][5] == 7
        assert found[ends[0]][4] & os.O_NONBLOCK and not found[ends[1]][4] & os.O_NONBLOCK
        assert set(found) >= set(map(int, os.listdir("/proc/self/fd"))) & {0, 1, 2, file, *ends, proc}
        with pytest.raises(OSError, match="No such file"):
            _native.descriptors(proc, 1 << 22)
    finally:
        for fd in (file, *ends, proc):
            os.close(fd)
