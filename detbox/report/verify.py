"""Runs a command several times on perturbed hosts and compares everything that a user could see.

Each run is a process of its own, started by a *starter* (for detbox: this package's command line with the frozen
run description in a file; natively: the command itself), in a fresh copy of the work directory and of every
directory whose changes stay.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from detbox import errors
from detbox.errors import InternalError, UserError
from detbox.report.copies import Copies
from detbox.report.perturb import PERTURBATIONS, Difference, Host, Observed, compare, owner_of, variants
from detbox.report.tree import snapshot
from detbox.spec import BASE_ENV, Mount, RunSpec

#: Who runs the command on hosts with another user: it exists everywhere.
OTHER_USER = "nobody"
#: Real seconds that a run may take longer than its limit before it is ended from outside.
_GRACE_S = 20.0


@dataclass(frozen=True)
class Row:
    """A perturbation as it was used: ``why`` says what kept it from being applied."""

    name: str
    changes: str
    applied: bool
    why: str = ""


@dataclass(frozen=True)
class Run:
    """One finished run; ``answer`` is what detbox itself said of it (empty for a native one)."""

    host: Host
    observed: Observed
    answer: dict[str, Any] = field(default_factory=dict)

    @property
    def error(self) -> str:
        """detbox's own failure as text; "" if the run came to its end."""
        return f"{self.answer['error']}: {self.answer['message']}" if self.answer.get("error") else ""


@dataclass(frozen=True)
class Comparison:
    """All runs of one kind, and how run ``other`` differs from run 0."""

    runs: Sequence[Run]
    other: int
    differences: Sequence[Difference]


Progress = Callable[[str], None]


def choose(only: Sequence[str], without: Sequence[str], stdin: bytes) -> tuple[list[Row], str | None]:
    """The table of perturbations for this host, and the name of the other user (or None).

    ``only``, ``without``: names; a hyphen may stand for a space.  Raises UserError for an unknown name.
    """
    named = {name.replace("-", " ") for name in (*only, *without)}
    unknown = named - {row.name for row in PERTURBATIONS}
    if unknown:
        known = ", ".join(row.name.replace(" ", "-") for row in PERTURBATIONS)
        raise UserError(f"no such perturbation: {', '.join(sorted(unknown))}", f"there are: {known}")
    chosen = {name.replace("-", " ") for name in only} or {row.name for row in PERTURBATIONS}
    chosen -= {name.replace("-", " ") for name in without}
    rows = []
    for row in PERTURBATIONS:
        why = "" if row.name in chosen else "not chosen"
        why = why or row.obstacle()
        if not why and row.name == "user":
            why = _user_obstacle()
        elif not why and row.name == "terminal" and stdin:
            why = "standard input has content"
        rows.append(Row(row.name, row.changes, not why, why))
    user = OTHER_USER if any(row.name == "user" and row.applied for row in rows) else None
    return rows, user


def _user_obstacle() -> str:
    """Why the other user cannot run detbox here; "" if it can."""
    probe = [sys.executable, "-c", "import detbox.cli.main, detbox.kernel._native"]
    try:
        done = subprocess.run(probe, user=OTHER_USER, env=environment(), cwd="/", capture_output=True, check=False)
    except (OSError, LookupError) as error:
        return f"{OTHER_USER} cannot run {sys.executable}: {error}"
    return "" if done.returncode == 0 else f"{OTHER_USER} cannot read detbox or its interpreter"


def environment() -> dict[str, str]:
    """The variables that make this package importable from any directory."""
    here = [str(Path(__file__).parents[2]), *(path for path in sys.path if path.endswith("-packages"))]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(here)), "PYTHONDONTWRITEBYTECODE": "1"}


class Verification:
    """Runs of one command.  Use it as a context manager: it owns the runs' output trees."""

    def __init__(self, spec: RunSpec, stdin: bytes, n: int, rows: Sequence[Row], user: str | None) -> None:
        self.spec = spec.with_changes(stdin=None, stdin_closed=False)
        self.stdin = stdin
        skipped = [row.name for row in rows if not row.applied]
        self.hosts = variants(n, user=user, without=skipped)
        self._stack = ExitStack()

    def __enter__(self) -> Verification:
        self.scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="detbox-verify-")))
        self.scratch.chmod(0o755)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def under_detbox(self, progress: Progress, **changes: Any) -> list[Run]:
        """One run on each host.  ``changes``: fields of the run description.

        Raises what detbox raised if it failed in the same way in every run.
        """
        runs = []
        for number, host in enumerate(self.hosts):
            progress(f"under detbox, run {number + 1} of {len(self.hosts)}")
            mine = {name: value(number) if callable(value) else value for name, value in changes.items()}
            runs.append(self._one(host, mine))
        if runs[0].error and len({run.error for run in runs}) == 1:
            answer = runs[0].answer
            cls = errors.by_name(answer["error"])
            raise cls(answer["message"], answer["remedy"])
        return runs

    def natively(self, progress: Progress) -> list[Run]:
        """The same without detbox, where only the work directory and an own /tmp can be written."""
        declared = {k: v for k, v in self.spec.env.items() if BASE_ENV.get(k) != v}
        env = {os.fsdecode(key): os.fsdecode(value) for key, value in declared.items()}
        runs = []
        for number, host in enumerate(self.hosts):
            progress(f"natively, run {number + 1} of {len(self.hosts)}")
            try:
                observed = host.run(
                    [os.fsdecode(word) for word in self.spec.command], Path(self.spec.workdir), stdin=self.stdin,
                    env=env, timeout=self.spec.timeout_s, leave=self._stack, contained=True,
                )  # fmt: skip
            except (FileNotFoundError, PermissionError) as error:
                if error.filename != os.fsdecode(self.spec.command[0]):
                    raise
                raise errors.CommandNotFound(f"natively: {error}") from None
            except subprocess.TimeoutExpired as late:
                raise errors.TimedOut(f"natively the command took longer than {late.timeout:g} seconds") from None
            runs.append(Run(host, observed))
        return runs

    def _one(self, host: Host, changes: dict[str, Any]) -> Run:
        place = Path(tempfile.mkdtemp(dir=self.scratch))
        place.chmod(0o755)
        owner = owner_of(host.settings["user"])
        mounts, kept = self._kept_copies(place, owner)
        answer, order = place / "answer", place / "run"
        for path in (answer, *(Path(value) for key, value in changes.items() if key == "record")):
            path.touch()
            os.chown(path, *owner)
        spec = self.spec.with_changes(mounts=mounts, **changes)
        order.write_text(json.dumps({"spec": spec.to_json(), "answer": str(answer)}))
        order.chmod(0o644)
        before = {name: snapshot(path, owner) for name, path in kept.items()}
        limit = None if spec.timeout_s is None else spec.timeout_s + _GRACE_S
        argv = [sys.executable, "-m", "detbox", "verify", "--one", str(order)]
        observed = host.run(
            argv, Path(spec.workdir), stdin=self.stdin, env=environment(), timeout=limit, leave=self._stack
        )
        tree = dict(observed.tree)
        for name, path in kept.items():
            for entry_name, entry in snapshot(path, owner).items():
                same = before[name].get(entry_name) == entry
                tree[f"{name}/{entry_name}"] = entry.untouched() if same else entry
        text = answer.read_text()
        if not text:
            said = observed.stderr.decode("utf-8", "backslashreplace")[-2000:]
            raise InternalError(f"a run ended without a report (status {observed.status}):\n{said}")
        return Run(host, replace(observed, tree=tree), json.loads(text))

    def _kept_copies(self, place: Path, owner: tuple[int, int]) -> tuple[tuple[Mount, ...], dict[str, Path]]:
        """Mounts with copies of the writable ones, and the copies by guest path."""
        mounts, kept = [], {}
        for number, mount in enumerate(self.spec.mounts):
            if not mount.rw:
                mounts.append(mount)
                continue
            source, target = Path(mount.src), place / f"rw{number}"
            target.mkdir()
            if source.is_dir():
                copies = Copies(source, target)
                for name in copies.others:
                    copies.make(name)
                copies.settle(owner, 0)
            else:
                raise UserError(f"--rw {source}: verify can copy directories only", "give the directory it is in")
            kept[mount.dst] = target
            mounts.append(replace(mount, src=str(target)))
        return tuple(mounts), kept


def first_comparison(runs: Sequence[Run]) -> Comparison:
    """Run 0 against the others: the first that differs, or the last."""
    for number, run in enumerate(runs[1:], 1):
        found = differences(runs[0], run)
        if found:
            return Comparison(runs, number, found)
    return Comparison(runs, len(runs) - 1, [])


def differences(a: Run, b: Run) -> list[Difference]:
    """Everything that differs between two runs; nothing is normalised."""
    found = []
    if a.error != b.error:
        found.append(Difference("end", "of the run", a.error or "regular", b.error or "regular"))
    found += compare(a.observed, b.observed)
    mixed = [run.answer.get("interleaving") for run in (a, b)]
    if mixed[0] != mixed[1] and not any(d.what in ("stdout", "stderr", "end") for d in found):
        found.append(Difference("interleaving", "of stdout and stderr", str(mixed[0]), str(mixed[1])))
    return found
