"""Modules that are imported when the root directory has become another one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BODY = """
import os, sys
from detbox.container import modules
from detbox.kernel import _native

_native.unshare((0x10000000 if os.geteuid() else 0) | 0x20000)  # CLONE_NEWUSER, CLONE_NEWNS
modules.follow(modules.open_host())
os.chroot(os.environ["OTHER"])
os.chdir("/inside")
os.umask(0)

import capstone                # a package that loads a library by its own path
import _ctypes, _sqlite3       # extension modules that need libraries of the system's
import detbox.spin.decode      # a part of a package that has been imported before

for module in (capstone, _sqlite3, detbox.spin.decode):
    assert any(module.__file__.startswith(path + "/") for path in sys.path), module.__file__
assert capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm_lite
assert os.getcwd() == "/inside" and os.listdir("/inside") == ["here"] and os.umask(0) == 0
try:
    import planted
except ImportError:
    print("not found")
assert os.listdir(".") == ["here"]
"""


def test_they_are_the_hosts_wherever_the_root_is(tmp_path: Path) -> None:
    """Also where the new root has others, and libraries that are none, at the same places."""
    (tmp_path / "inside/here").mkdir(parents=True)
    for path in {os.path.abspath(path) for path in sys.path}:
        for name in ("capstone", "planted"):
            place = Path(f"{tmp_path}{path}/{name}")
            place.mkdir(parents=True)
            (place / "__init__.py").write_text("print('planted')")
    for place in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "libffi.so.8").write_text("no library")
    env = {"PYTHONPATH": ":".join(filter(None, sys.path)), "OTHER": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", BODY], env=env, cwd="/", capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("not found\n", "")
