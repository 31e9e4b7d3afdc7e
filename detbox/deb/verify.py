"""Builds a package several times on perturbed hosts, in the container and without it, and compares the results."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from detbox.deb import causes, plan, programs
from detbox.deb.apt import Apt
from detbox.deb.build import Job, prepare
from detbox.deb.native import LATER, MACHINES, Machine, Tools, order
from detbox.errors import BuildFailed, TimedOut
from detbox.report.perturb import Host, Observed, variants
from detbox.report.scratch import Scratch
from detbox.report.tree import snapshot
from detbox.report.verify import Progress, Row, Run, Verification, differences, environment

#: Real seconds after which diffoscope is ended.
_DIFFOSCOPE_S = 300.0
#: What is said of a build that fails without detbox as well.
ANYWHERE = "it does so without detbox, too"
#: Programs that wait for a clock of their own may not end with another one: the limit, compared with the first build.
_CLOCK_FACTOR, _CLOCK_MIN_S = 4.0, 60.0
#: The perturbation with which builds fail that look for files in what the kernel lists by device.
_PLACE = "file system"


@dataclass
class Boxed:
    """Builds in the container.  ``times``: of the first, in seconds."""

    artefacts: dict[str, str]
    differences: list[str]
    times: dict[str, float]
    stats: dict[str, Any] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    pair: tuple[Path, Path] | None = None

    @property
    def identical(self) -> bool:
        """Whether nothing differed."""
        return not self.differences


@dataclass
class Native:
    """Two builds without detbox.  ``differing``: packages that differ.  ``causes``: guesses at why.

    ``packages``: SHA-256 of those of the first build, by name.  ``side_by_side``: that one directly followed the first
    under detbox.  ``times``: of that one, in seconds, if it has ended well, whatever the second one has done.
    """

    built: bool
    note: str = ""
    differing: list[str] = field(default_factory=list)
    compared: int = 0
    files: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    clock: bool = False
    packages: dict[str, str] = field(default_factory=dict)
    side_by_side: bool = True


def boxed(
    job: Job, rows: Sequence[Row], user: str | None, runs: int, progress: Progress, stack: ExitStack,
    between: Callable[[], object] | None = None,
) -> Boxed:  # fmt: skip
    """Build ``runs`` times under detbox and compare everything.  ``rows``, ``user``: of ``choose``.

    ``between``: called after the first build.  Raises BuildFailed, DetboxError.
    """
    prepare(job)
    verification = stack.enter_context(Verification(job.spec(), b"", runs, rows, user))
    spec = job.spec()
    # What is compared must be made anew: only the first build may come from the cache.
    done = verification.under_detbox(
        progress, between=between, cache=lambda number: "" if number else spec.cache,
        cache_dir=lambda number: None if number else spec.cache_dir,
    )  # fmt: skip
    first = done[0]
    if first.observed.status and first.observed.status == done[-1].observed.status:
        raise BuildFailed(
            f"{job.source.label}: the build failed with status {first.observed.status}", last_lines(first.observed)
        )
    found: list[str] = []
    pair = None
    for run in done[1:]:
        found = [str(difference) for difference in differences(first, run)]
        if found:
            pair = (_out(first), _out(run))
            break
    stats = first.answer.get("stats", {})
    times = {
        "wall_s": first.observed.seconds,
        "cpu_s": stats.get("supervisor_cpu_s", 0.0) + stats.get("guest_cpu_s", 0.0),
    }
    prefix = plan.OUT + "/"
    artefacts = {
        path.removeprefix(prefix): entry.sha256 or ""
        for path, entry in first.observed.tree.items()
        if path.startswith(prefix)
    }
    return Boxed(artefacts, found, times, stats, list(first.answer.get("doubts", [])), pair)


def _out(run: Run) -> Path:
    assert run.observed.work is not None  # they are left until the end
    return run.observed.work / plan.OUT


def last_lines(observed: Observed, count: int = 15) -> str:
    """The end of a build's log, which is on standard output."""
    return b"\n".join((observed.stdout or observed.stderr).splitlines()[-count:]).decode("utf-8", "replace")


class Natively:
    """Two builds without detbox.

    The first is compared in time with a build under detbox, and so should be made right after that one.
    """

    def __init__(self, job: Job, rows: Sequence[Row], progress: Progress, stack: ExitStack) -> None:
        self._job, self._rows, self._progress, self._stack = job, rows, progress, stack
        self._hosts = variants(2, user=None, without=[row.name for row in rows if not row.applied])
        self._first: tuple[Observed, dict[str, float]] | None = None

    def first(self) -> bool:
        """Build once, unless that was done; whether the package can be built at all."""
        return self._one()[0].status == 0

    def _one(self) -> tuple[Observed, dict[str, float]]:
        if self._first is None:
            self._progress("natively, run 1 of 2")
            self._first = _native_run(self._job, self._hosts[0], Tools(), MACHINES[0], self._stack)
        return self._first

    def both(self, given: Tools) -> Native:
        """Build on another host as well, and compare; what that breaks with is left out, and said."""
        one, times = self._one()
        if one.status:
            return Native(False, "the build fails natively: " + last_lines(one, 5))
        self._progress("natively, run 2 of 2")
        other, later, note = self._other(given, times)
        if other.status:
            text = f"on the second host the build fails with status {other.status}: " + last_lines(other, 5)
            return Native(False, text, times=times)
        found = compare_packages(one, other, self._hosts, self._stack)
        found.times, found.note, found.clock = times, note, later
        return found

    def _other(self, given: Tools, times: Mapping[str, float]) -> tuple[Observed, bool, str]:
        """The build on the second host, whether its clock was another, and what it does not build with."""
        machine, notes = MACHINES[1], []
        if not any(row.name == "path" and row.applied for row in self._rows):
            machine = replace(machine, base=MACHINES[0].base)
        if given.clock:
            limit = max(_CLOCK_MIN_S, _CLOCK_FACTOR * times.get("wall_s", 0.0))
            try:
                other, _ = _native_run(self._job, self._hosts[1], given, machine, self._stack, limit)
                if other.status == 0:
                    return other, True, ""
                notes.append(f"with a clock 400 days later the build fails (status {other.status})")
            except TimedOut:
                notes.append("with a clock 400 days later the build does not end")
        here, without = self._hosts[1], replace(given, clock="")
        other, _ = _native_run(self._job, here, without, machine, self._stack)
        if other.status and here.settings[_PLACE] != self._hosts[0].settings[_PLACE]:
            on_disk = replace(here, settings={**here.settings, _PLACE: self._hosts[0].settings[_PLACE]})
            again, _ = _native_run(self._job, on_disk, without, machine, self._stack)
            if again.status == 0:
                notes.append(f"on a file system in memory the build fails (status {other.status})")
                other = again
        return other, False, "; ".join(notes)


def _native_run(
    job: Job, host: Host, given: Tools, machine: Machine, stack: ExitStack, limit_s: float | None = None
) -> tuple[Observed, dict[str, float]]:
    places = stack.enter_context(Scratch())
    place = places.directory()
    inputs = place / "inputs"
    shutil.copytree(job.work, inputs, symlinks=True)
    options = replace(job.options, parallel=job.options.parallel + machine.jobs)
    under = LATER if given.clock else ""
    (inputs / plan.SCRIPT).write_text(plan.script(job.source, options, machine.base, under=under, fakeroot=True))
    content = order(job.root.path, place, given, machine)
    (place / "order").write_text(json.dumps(content))
    declared = {name: value for name, value in options.environment().items() if name.startswith("DEB_")}
    try:
        observed = host.run(
            [sys.executable, "-m", "detbox.deb.native", str(place / "order")], inputs,
            env={**declared, **environment()}, timeout=limit_s or job.options.timeout_s, places=places,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        raise TimedOut(f"natively the build took longer than {late.timeout:g} seconds") from None
    answer = Path(content["answer"])
    used = json.loads(answer.read_text()) if answer.exists() else {}
    return observed, {**used, "wall_s": observed.seconds}


def compare_packages(one: Observed, other: Observed, hosts: Sequence[Host], stack: ExitStack) -> Native:
    """The binary packages, or what a release installed (a .buildinfo names the path and the date by its nature)."""
    prefix = plan.OUT + "/"
    names = sorted(
        path for path in one.tree.keys() | other.tree.keys()
        if path.startswith(prefix) and path.endswith((".deb", ".udeb", ".tar"))
    )  # fmt: skip
    digests = {path.removeprefix(prefix): one.tree[path].sha256 or "" for path in names if path in one.tree}
    result = Native(True, compared=len(names), packages=digests)
    place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="detbox-differ-")))
    classes: dict[str, None] = {}
    for path in names:
        left, right = one.tree.get(path), other.tree.get(path)
        if left is not None and right is not None and left.sha256 == right.sha256:
            continue
        name = path.removeprefix(prefix)
        result.differing.append(name)
        if left is None or right is None or one.work is None or other.work is None:
            continue
        trees = (one.work, other.work)
        unpacked = [_unpacked(tree / path, place / f"{side}-{name}") for side, tree in enumerate(trees)]
        classes |= dict.fromkeys(causes.of_trees(unpacked[0], unpacked[1], hosts))
        for inside in sorted(unpacked[0].tree.keys() | unpacked[1].tree.keys()):
            if unpacked[0].tree.get(inside) != unpacked[1].tree.get(inside):
                result.files.append(f"{name}: {inside}")
    result.causes = list(classes)
    return result


def _unpacked(packed: Path, into: Path) -> Observed:
    if packed.suffix == ".tar":
        into.mkdir()
        programs.call(["tar", "-xf", str(packed), "-C", str(into)])
    else:
        programs.call(["dpkg-deb", "-R", str(packed), str(into)])
    return Observed(0, b"", b"", snapshot(into, (os.geteuid(), os.getegid())), work=into)


def diffoscope(pair: tuple[Path, Path]) -> str:
    """diffoscope's report on two directories, if it is installed; else a note how to get it."""
    if shutil.which("diffoscope") is None:
        return "install diffoscope for a report on the differences"
    command = ["diffoscope", "--text=-", "--exclude-directory-metadata=yes", *map(str, pair)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DIFFOSCOPE_S, check=False)
    except subprocess.TimeoutExpired:
        return f"diffoscope took longer than {_DIFFOSCOPE_S:g} seconds"
    return done.stdout if done.returncode == 1 else f"diffoscope failed: {done.stderr.strip()[-500:]}"


def tools(suite: str) -> Tools:
    """libfaketime and the sources of locales, out of the archive."""
    apt = Apt(suite)
    return Tools(
        _from_archive(apt, "libfaketime", "usr/lib/*/faketime/libfaketime.so.1"),
        _from_archive(apt, "locales", "usr/share/i18n"),
    )


def _from_archive(apt: Apt, package: str, wanted: str) -> str:
    """The host path of a file or directory of a package; "" if it cannot be had."""
    kept = apt.top / "tools" / package
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=kept.parent) as place:
            programs.call(["apt-get", "download", "-qq", package], cwd=Path(place), env=apt.environment(None))
            for deb in Path(place).glob("*.deb"):
                programs.call(["dpkg-deb", "-x", str(deb), f"{place}/x"])
            with contextlib.suppress(OSError):  # another survey was faster
                os.rename(f"{place}/x", kept)
    return str(next(kept.glob(wanted), ""))
