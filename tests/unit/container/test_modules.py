"""Modules that are imported when the root directory has become another one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BODY = """
import os, sys
from detbox.container import modules

trees = {path: os.open(path, os.O_PATH) for path in map(os.path.abspath, sys.path) if os.path.isdir(path)}
proc = os.open("/proc", os.O_PATH)
before = os.getcwd()
modules.follow(trees, proc)

import capstone                # a package that loads a library by its own path
import _ctypes, _sqlite3       # extension modules
import detbox.spin.decode      # a part of a package that has been imported before

assert os.getcwd() == before
for module in (capstone, _sqlite3, detbox.spin.decode):
    assert module.__file__.startswith("self/fd/"), module.__file__
assert capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm_lite
sys.path.append(os.environ["PLANTED"])
try:
    import planted
except ImportError:
    print("refused")
"""


def test_only_what_was_opened_before_is_imported(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text("print('planted')")
    env = {"PYTHONPATH": ":".join(filter(None, sys.path)), "PLANTED": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", BODY], env=env, cwd="/", capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("refused\n", "")
