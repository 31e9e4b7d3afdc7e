"""Runs commands under detbox on perturbed hosts, for the tests that need a real container."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from detbox.report.perturb import Host, Observed, compare, variants

REPOSITORY = Path(__file__).resolve().parents[2]
USER = "detbox-test"
DEBIAN_PYTHON = "/usr/bin/python3"
IMPATIENT = Path(__file__).with_name("impatient.py")

SUCCESS = b"EXIT-SUCCESS\n"


def _packages() -> str:
    """Where this interpreter's packages are; other interpreters of the same version can use them as well."""
    here = [path for path in sys.path if path.endswith("site-packages")]
    return os.pathsep.join([str(REPOSITORY), *here])


@lru_cache
def unprivileged() -> str | None:
    """An ordinary user who can run detbox here, or None: only root can become one, and the user must be able
    to read the interpreter and the package."""
    if os.geteuid() != 0 or not shutil.which("useradd") or not os.path.exists(DEBIAN_PYTHON):
        return None
    try:
        pwd.getpwnam(USER)
    except KeyError:
        subprocess.run(["useradd", "--system", "--no-create-home", USER], check=False)
    probe = [DEBIAN_PYTHON, "-c", "import detbox.cli.main, detbox.kernel._native"]
    env = {"PYTHONPATH": _packages(), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(probe, user=USER, env=env, cwd="/", check=False)
    except (OSError, KeyError):
        return None
    return USER if done.returncode == 0 else None


def environment() -> dict[str, str]:
    """The variables that make detbox importable from any directory."""
    return {"PYTHONPATH": _packages(), "PYTHONDONTWRITEBYTECODE": "1"}


def detbox(command: Sequence[str], options: Sequence[str] = (), *, impatient: bool = False) -> list[str]:
    """The whole command line of ``detbox run``.  ``impatient``: see impatient.py."""
    python = DEBIAN_PYTHON if unprivileged() else sys.executable
    program = [str(IMPATIENT)] if impatient else ["-m", "detbox"]
    return [python, *program, "run", *options, "--", *command]


def hosts(n: int = 2, without: Iterable[str] = ("time of run",)) -> list[Host]:
    """Hosts that differ in everything that can be changed here."""
    return variants(n, user=unprivileged(), without=without)


def run_on(
    host: Host,
    command: Sequence[str],
    inputs: Path | None = None,
    *,
    options: Sequence[str] = (),
    stdin: bytes = b"",
    limit_s: float = 60,
    keep: Path | None = None,
    impatient: bool = False,
) -> Observed:
    """One run.  ``limit_s``: real seconds, given to detbox itself; the harness waits a little longer."""
    argv = detbox(command, [f"--timeout={limit_s}", *options], impatient=impatient)
    return host.run(argv, inputs, stdin=stdin, env=environment(), timeout=limit_s + 20, keep=keep)


def twice(
    command: Sequence[str],
    inputs: Path | None = None,
    *,
    options: Sequence[str] = (),
    stdin: bytes = b"",
    limit_s: float = 60,
    without: Iterable[str] = ("time of run",),
    keep: Path | None = None,
) -> Observed:
    """Run on two hosts, the second one impatient, demand that nothing differs, and return what both observed.

    ``keep``: directory that receives both output trees, as ``0`` and ``1``.
    """
    observed = []
    for number, host in enumerate(hosts(2, without)):
        kept = None if keep is None else keep / str(number)
        run = run_on(
            host, command, inputs, options=options, stdin=stdin, limit_s=limit_s, keep=kept, impatient=number == 1
        )
        observed.append(run)
    demand_identical(*observed)
    return observed[0]


def demand_identical(a: Observed, b: Observed) -> None:
    """Fail with the differences, the shortest useful part of them, if there are any."""
    differences = compare(a, b)
    if differences:
        shown = "\n".join(str(d)[:400] for d in differences[:20])
        said = a.stderr.decode(errors="replace")[-2000:]
        raise AssertionError(f"{len(differences)} differences\n{shown}\nstderr of the first: {said}")


def demand_success(run: Observed) -> None:
    """The guest program ended well and said so."""
    tail = run.stdout[-300:].decode(errors="replace")
    said = run.stderr[-3000:].decode(errors="replace")
    assert run.status == 0, f"status {run.status}\nstdout ends: {tail}\nstderr: {said}"
    assert run.stdout.endswith(SUCCESS), f"no EXIT-SUCCESS\nstdout ends: {tail}\nstderr: {said}"
