"""All modules in one file: what is imported from it is what would be imported without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import detbox

SOURCE = Path(detbox.__file__).parent / "bundle.py"
#: Imports as the command does, tells where from, and makes the bundle where it is wanting.
BODY = """
import sys
from detbox import bundle
bundle.use()
import detbox.part.one, detbox.two
for module in (detbox.part, detbox.part.one, detbox.two):
    loader = type(module.__loader__).__module__
    print(module.__name__, module.SAID, "bundle" if loader == "detbox.bundle" else "file")
    assert module.__file__ == module.__spec__.origin and module.__spec__.parent == module.__package__
assert detbox.part.one.__package__ == "detbox.part" and len(detbox.part.__path__) == 1
bundle.renew()
"""
FROM_FILES = "detbox.part part file\ndetbox.part.one one file\ndetbox.two two file\n"
FROM_BUNDLE = FROM_FILES.replace("file", "bundle")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of the same name, with three modules beside the bundle's own."""
    made = tmp_path / "detbox"
    (made / "part").mkdir(parents=True)
    shutil.copy(SOURCE, made)
    (made / "__init__.py").write_text("")
    (made / "part/__init__.py").write_text("SAID = 'part'\n")
    (made / "part/one.py").write_text("from detbox import two\nSAID = 'one'\ndef fails():\n    raise ValueError\n")
    (made / "two.py").write_text("SAID = 'two'\n")
    return made


def said(package: Path, body: str = BODY) -> str:
    """What a Python says that has the package."""
    env = {"PYTHONPATH": str(package.parent)}
    command = [sys.executable, "-c", body]
    done = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def made(package: Path) -> Path:
    (bundle,) = package.glob("__pycache__/*.all")
    return bundle


def test_it_is_made_once_and_used_from_then_on(package: Path) -> None:
    assert said(package) == FROM_FILES
    before = made(package).stat()
    assert said(package) == FROM_BUNDLE
    assert made(package).stat().st_ino == before.st_ino
    assert not [name for name in os.listdir(package / "__pycache__") if not name.endswith((".pyc", ".all"))]


def test_a_changed_module_is_read_from_its_file(package: Path) -> None:
    said(package)
    (package / "two.py").write_text("SAID = 'another'\n")
    expected = FROM_BUNDLE.replace("two two bundle", "two another file")
    assert said(package) == expected
    assert said(package) == expected.replace("file", "bundle")
    (package / "two.py").unlink()
    (package / "two").mkdir()
    (package / "two/__init__.py").write_text("SAID = 'package'\n")
    assert "detbox.two package file\n" in said(package)
    assert "detbox.two package bundle\n" in said(package)


def test_sources_and_places_are_shown_as_ever(package: Path) -> None:
    said(package)
    shown = said(
        package,
        "from detbox import bundle; bundle.use()\n"
        "import inspect, traceback\n"
        "from detbox.part import one\n"
        "print(inspect.getsource(one.fails))\n"
        "try: one.fails()\n"
        "except ValueError: print(traceback.format_exc())\n",
    )
    assert shown.startswith("def fails():") and f'File "{package}/part/one.py", line 4, in fails' in shown


def test_a_damaged_one_or_another_places_is_made_again(package: Path, tmp_path: Path) -> None:
    said(package)
    for damaged in (b"", b"\xff" * 100, made(package).read_bytes()[:50]):
        made(package).write_bytes(damaged)
        assert said(package) == FROM_FILES and said(package) == FROM_BUNDLE
    moved = tmp_path / "elsewhere/detbox"
    shutil.copytree(package, moved)
    assert said(moved) == FROM_FILES and said(moved) == FROM_BUNDLE


def test_no_error_where_it_cannot_be_made(package: Path) -> None:
    (package / "three.py").write_text("not Python at all\n")
    assert said(package) == FROM_FILES and said(package) == FROM_FILES
    (package / "three.py").unlink()
    body = "import sys; sys.dont_write_bytecode = True\n" + BODY
    assert said(package, body) == FROM_FILES and not list(package.glob("__pycache__/*.all"))
    said(package, body + "bundle.make()\n")
    assert said(package, body) == FROM_BUNDLE


def test_the_numbers_of_closed_standard_streams_stay_free(package: Path) -> None:
    said(package)
    shell = f'exec {sys.executable} -c "$0" <&-'
    env = {"PYTHONPATH": str(package.parent)}
    body = BODY + "import os\ntry: print(os.fstat(0))\nexcept OSError: print('closed')\n"
    done = subprocess.run(["sh", "-c", shell, body], env=env, cwd="/", capture_output=True, text=True, check=False)
    assert done.stderr == "" and done.stdout == FROM_FILES + "closed\n"
