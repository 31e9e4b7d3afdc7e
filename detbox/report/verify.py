"""Runs a command several times on perturbed hosts and compares everything that a user could see.

Each run is a process of its own (this package's command line, with what to do in a file), under detbox or in a plain
container, in a fresh copy of the work directory and of every directory whose changes stay.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from detbox import errors
from detbox.errors import InternalError, UserError
from detbox.images.lend import lend
from detbox.images.place import place_of
from detbox.report.copies import Copies
from detbox.report.perturb import PERTURBATIONS, Difference, Host, Observed, compare, owner_of, variants
from detbox.report.scratch import Scratch, temporary_directory
from detbox.report.tree import snapshot
from detbox.spec import BASE_ENV, Mount, RunSpec

#: Who runs the command on hosts with another user: it exists everywhere.
OTHER_USER = "nobody"
#: Where work directories are in a plain container.
NATIVE_TOP = "/build"
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


def choose(
    only: Sequence[str], without: Sequence[str], stdin: bytes, spec: RunSpec | None = None
) -> tuple[list[Row], str | None]:
    """The table of perturbations for this host and this job, and the name of the other user (or None).

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
            why = _user_obstacle(spec)
        elif not why and row.name == "terminal" and stdin:
            why = "standard input has content"
        rows.append(Row(row.name, row.changes, not why, why))
    user = OTHER_USER if any(row.name == "user" and row.applied for row in rows) else None
    return rows, user


def _user_obstacle(spec: RunSpec | None) -> str:
    """Why the other user cannot run detbox, or this job, here; "" if it can."""
    places = [(temporary_directory(), "the copies are made (TMPDIR)")]
    if spec is not None:
        # Of an image in a store the other user gets a copy.
        places += [(spec.image, "the image is")] if spec.image and not place_of(spec.image) else []
        places += [(mount.src, "an input is") for mount in spec.mounts if not mount.rw]
    for path, what in places:
        here = Path(path).resolve()
        for place in (here, *here.parents):
            mode = place.stat().st_mode
            if stat.S_ISDIR(mode) and not mode & stat.S_IXOTH:
                return f"{OTHER_USER} cannot enter {place}, where {what}"
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
    """Runs of one command.  Use it as a context manager: it owns the runs' output trees.

    ``first`` is the first run that came to its end, once there is one.
    """

    def __init__(self, spec: RunSpec, stdin: bytes, n: int, rows: Sequence[Row], user: str | None) -> None:
        self.spec = spec.with_changes(stdin=None, stdin_closed=False, cache="", cache_dir=None)
        self.stdin = stdin
        self.rows, self.user = rows, user
        self.hosts = variants(n, user=user, without=[row.name for row in rows if not row.applied])
        self.places = Scratch()
        self.first: Run | None = None
        self._lent: str | None = None
        self._inputs = stamps(spec)

    def __enter__(self) -> Verification:
        self.places.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.places.__exit__()

    def changed_inputs(self) -> list[str]:
        """Inputs on the host that are no more what they were before the first run."""
        now = stamps(self.spec)
        return sorted(path for path in now.keys() | self._inputs.keys() if now.get(path) != self._inputs.get(path))

    def under_detbox(
        self, progress: Progress, hosts: Sequence[Host] | None = None, between: Callable[[], object] | None = None,
        **changes: Any,
    ) -> list[Run]:  # fmt: skip
        """One run on each host.  ``changes``: fields of the run description, or functions of the run's number.

        ``between``: called after the first run.  Raises what detbox raised if it failed in the same way in every run.
        """
        runs: list[Run] = []
        hosts = hosts or self.hosts
        for number, host in enumerate(hosts):
            progress(f"under detbox, run {number + 1} of {len(hosts)}")
            mine = {name: value(number) if callable(value) else value for name, value in changes.items()}
            runs.append(self._boxed(host, mine))
            if self.first is None and not runs[0].error:
                self.first = runs[0]
            if between is not None and number == 0:
                between()
        if runs[0].error and len({run.error for run in runs}) == 1:
            _raise(runs[0].answer)
        return runs

    def natively(self, progress: Progress, hosts: Sequence[Host] | None = None) -> list[Run]:
        """The same without detbox, in a plain container with the same mounts.  Raises DetboxError."""
        runs: list[Run] = []
        hosts = hosts or self.hosts
        for number, host in enumerate(hosts):
            progress(f"natively, run {number + 1} of {len(hosts)}")
            runs.append(self._plain(host))
            self.first = self.first or runs[0]
        return runs

    def _plain(self, host: Host) -> Run:
        place = self.places.directory()
        mounts, kept = self._kept_copies(place, owner_of(host.settings["user"]))
        declared = {k: v for k, v in self.spec.env.items() if BASE_ENV.get(k) != v}
        if self.spec.image:
            declared.setdefault(b"PATH", BASE_ENV[b"PATH"])
        plain = {
            "argv": [os.fsdecode(word) for word in self.spec.command],
            "env": host.environment({os.fsdecode(k): os.fsdecode(v) for k, v in declared.items()}),
            "mounts": [[mount.src, mount.dst, mount.rw] for mount in mounts],
            "image": self._image(host), "alias": self.spec.workdir_alias or "",
            "shown": os.path.join(NATIVE_TOP, host.settings["path"]),
            "burn": host.settings["process numbers"],
            "ignored": [int(signal.SIGPIPE)] if host.settings["signals"] else [],
        }  # fmt: skip
        run = self._one(host, place, kept, lambda work: {"plain": {**plain, "work": str(work)}}, self.spec.timeout_s)
        if run.error:
            _raise(run.answer)
        return replace(run, observed=replace(run.observed, status=run.answer["status"]))

    def _boxed(self, host: Host, changes: dict[str, Any]) -> Run:
        place = self.places.directory()
        owner = owner_of(host.settings["user"])
        mounts, kept = self._kept_copies(place, owner)
        for path in (value for key, value in changes.items() if key in ("record", "record_times")):
            Path(path).touch()
            os.chown(path, *owner)
        spec = self.spec.with_changes(mounts=mounts, image=self._image(host), **changes)
        limit = None if spec.timeout_s is None else spec.timeout_s + _GRACE_S
        return self._one(host, place, kept, lambda work: {"spec": spec.to_json()}, limit)

    def _image(self, host: Host) -> str | None:
        """The image's path on this host: a store is closed to the other user, who gets a copy."""
        image, user = self.spec.image, host.settings["user"]
        if image is None or user is None or place_of(image) is None:
            return image
        if self._lent is None:
            self._lent = lend(image, self.places.directory(self.places.roomy()), *owner_of(user))
        return self._lent

    def _one(
        self,
        host: Host,
        place: Path,
        kept: Mapping[str, Path],
        order: Callable[[Path], dict[str, Any]],
        limit_s: float | None,
    ) -> Run:
        """One run in a process of its own.  ``order``: what to do, given the work directory's copy."""
        owner = owner_of(host.settings["user"])
        answer, paper = place / "answer", place / "order"
        answer.touch()
        os.chown(answer, *owner)

        def write_order(work: Path) -> None:
            paper.write_text(json.dumps({**order(work), "answer": str(answer)}))
            paper.chmod(0o644)

        before = {name: snapshot(path, owner) for name, path in kept.items()}
        argv = [sys.executable, "-m", "detbox", "verify", "--one", str(paper)]
        try:
            observed = host.run(
                argv, Path(self.spec.workdir), stdin=self.stdin, env=environment(), timeout=limit_s,
                places=self.places, before=write_order,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise errors.TimedOut(f"a run took longer than {limit_s:g} seconds", "raise --timeout") from None
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
            mounts.append(mount._replace(src=str(target)))
        return tuple(mounts), kept


def _raise(answer: Mapping[str, Any]) -> NoReturn:
    """Raise the error that a run has reported."""
    raise errors.by_name(answer["error"])(answer["message"], answer["remedy"])


def stamps(spec: RunSpec) -> dict[str, tuple[int, int]]:
    """Size and change time of everything that the command is given, by host path."""
    found = {}
    for top in (spec.workdir, *(mount.src for mount in spec.mounts)):
        for directory, _, files in os.walk(top):
            for path in (directory, *(os.path.join(directory, name) for name in files)):
                with contextlib.suppress(OSError):
                    status = os.lstat(path)
                    found[path] = (status.st_size, status.st_mtime_ns)
    return found


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
