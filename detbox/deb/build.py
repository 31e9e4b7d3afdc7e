"""One build in the container, and the placing of what it made."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from detbox.deb import control, plan
from detbox.deb.apt import Apt
from detbox.deb.plan import BuildOptions
from detbox.deb.root import BUILDER, BuildRoot
from detbox.deb.source import Source, obtain
from detbox.errors import BuildFailed, HostError, UserError, is_full_disk
from detbox.spec import RunSpec, make_spec

if TYPE_CHECKING:
    from detbox.container.outcome import Outcome


@dataclass(frozen=True)
class Job:
    """A source in a work directory, ready to be built in a root."""

    source: Source
    work: Path
    root: BuildRoot
    options: BuildOptions
    cache: Mapping[str, str] = field(default_factory=dict)  # options of `detbox run` about the cache

    @property
    def log(self) -> str:
        """The name of the log among the results."""
        return f"{plan.stem(self.source)}.build"

    def spec(self) -> RunSpec:
        """The run description of the build."""
        environment = {"LOGNAME": BUILDER, "USER": BUILDER, **self.options.environment()}
        given = {
            "workdir": str(self.work),
            "image": str(self.root.path),
            "env": [f"{name}={value}" for name, value in environment.items()],
            "epoch": self.source.epoch_s,
            "cpus": self.options.parallel,
            "user": "root" if plan.gains_root(self.source) else BUILDER,
            "timeout": self.options.timeout_s,
            **self.cache,
        }
        spec = make_spec(["sh", f"/work/{plan.SCRIPT}"], given, os.environb, "/")
        return spec.with_changes(stdin="/dev/null", workdir_alias=None)


@contextlib.contextmanager
def work_directory() -> Iterator[Path]:
    """A fresh work directory, whatever happens gone at the end; ``source`` in it is for the source."""
    with tempfile.TemporaryDirectory(prefix="detbox-deb-") as place:
        work = Path(place) / "work"
        (work / plan.SOURCES).mkdir(parents=True)
        for path in (Path(place), work):
            path.chmod(0o755)
        yield work


def fetch(what: str, work: Path, apt: Apt) -> Source:
    """The source into its place in a work directory."""
    return obtain(what, work / plan.SOURCES, apt)


def prepare(job: Job) -> None:
    """Write the script.  The builder of the container must be able to make files in the work directory."""
    (job.work / plan.SCRIPT).write_text(plan.script(job.source, job.options))
    job.work.chmod(0o777)
    out = job.work / plan.OUT
    out.mkdir()
    out.chmod(0o777)


def run(job: Job, launch: Callable[[RunSpec], Outcome], show: bool) -> Mapping[str, object]:
    """Build with ``launch``.  ``show``: the log on standard output, too.

    Returns statistics.  Raises BuildFailed, DetboxError.
    """
    with _standard_output(show):
        outcome = launch(job.spec())
    if outcome.status:
        raise BuildFailed(f"{job.source.label}: the build failed with status {outcome.status}")
    return outcome.stats


@contextlib.contextmanager
def _standard_output(show: bool) -> Iterator[None]:
    if show:
        yield
        return
    sys.stdout.flush()
    saved, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(null)


def artefacts(work: Path) -> dict[str, str]:
    """SHA-256 of each result by its name."""
    import hashlib

    found = {}
    for path in sorted((work / plan.OUT).iterdir()):
        with open(path, "rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def check_results(job: Job) -> None:
    """The .changes lists files that are there, as they are.  Raises HostError (they were on a full disk, say)."""
    out = job.work / plan.OUT
    if job.source.release:
        return
    changes = sorted(out.glob("*.changes"))
    if not changes:
        raise BuildFailed(f"{job.source.label}: the build made no .changes file")
    found = artefacts(job.work)
    for entry in control.listed_files(control.first_stanza(changes[0]), changes[0]):
        if found.get(entry.name) != entry.sha256:
            raise HostError(f"{entry.name} is not what {changes[0].name} lists", "is a disk full?")


def place(work: Path, output: Path) -> None:
    """Move the results to ``output``: complete files only, the .changes last.  Raises UserError, HostError."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".detbox-", dir=output) as staging:
            names = sorted(os.listdir(work / plan.OUT), key=lambda name: (name.endswith(".changes"), name))
            for name in names:
                shutil.copy2(work / plan.OUT / name, Path(staging) / name, follow_symlinks=False)
                os.chmod(Path(staging) / name, 0o644)
            for name in names:
                os.rename(Path(staging) / name, output / name)
    except OSError as error:
        kind = HostError if is_full_disk(error) else UserError
        raise kind(f"the results cannot be placed in {output}: {error.strerror}", "give another --output") from None


def place_text(output: Path, name: str, text: str) -> None:
    """One more result, as a whole or not at all.  Raises UserError, HostError."""
    with tempfile.TemporaryDirectory(prefix="detbox-text-") as made:
        (Path(made) / plan.OUT).mkdir()
        (Path(made) / plan.OUT / name).write_text(text)
        place(Path(made), output)


def place_log(job: Job, output: Path) -> None:
    """The log of a build that failed."""
    log = job.work / plan.OUT / job.log
    place_text(output, job.log, log.read_text(errors="replace") if log.exists() else "")
