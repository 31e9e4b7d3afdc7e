"""Verifies many packages, each in a process of its own, and keeps what was found in a data base.

A survey that was ended, however, goes on where it stopped: a package's row is written when it is finished.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detbox.deb import table
from detbox.deb.source import UPSTREAM
from detbox.deb.verify import ANYWHERE
from detbox.errors import HostError, UserError
from detbox.report.verify import environment as import_environment

#: Real seconds for one package, with everything.
LIMIT_S = 1800.0
DATABASE = "survey.sqlite"
_SCHEMA_VERSION = 1
_GRACE_S = 10.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS packages (
    name TEXT PRIMARY KEY, kind TEXT NOT NULL, position INTEGER NOT NULL, replaces TEXT NOT NULL DEFAULT '',
    status TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', result TEXT NOT NULL DEFAULT '{}', seconds REAL NOT NULL
);
"""
_NAME = re.compile(rf"({UPSTREAM})?[a-z0-9][a-z0-9+.-]+(=\S+)?")


@dataclass(frozen=True)
class Wanted:
    """A line of a list."""

    name: str
    kind: str
    position: int
    replaces: str = ""


def read_list(path: Path) -> tuple[list[Wanted], list[Wanted]]:
    """The packages of a list and its reserve.  Raises UserError."""
    chosen: list[Wanted] = []
    reserve: list[Wanted] = []
    into = chosen
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.partition("#")[0].split()
        if words == ["[reserve]"]:
            into = reserve
        elif words:
            if len(words) > 2 or not _NAME.fullmatch(words[0]):
                raise UserError(f"{path}, line {number}: not a source package and its kind: {line!r}")
            into.append(Wanted(words[0], words[1] if len(words) == 2 else "other", number))
    if not chosen:
        raise UserError(f"{path} has no packages", "write one source package a line")
    names = [item.name for item in (*chosen, *reserve)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: named twice: {', '.join(twice)}")
    return chosen, reserve


class Survey:
    """The data base of a survey, and what is left to do."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._base = sqlite3.connect(path, check_same_thread=False)
        self._lock = threading.Lock()
        with self._lock, self._base:
            self._base.executescript(_SCHEMA)
            row = self._base.execute("SELECT version FROM meta").fetchone()
            if row is None:
                self._base.execute("INSERT INTO meta VALUES (?)", (_SCHEMA_VERSION,))
            elif row[0] != _SCHEMA_VERSION:
                raise HostError(f"{path} is a survey of format {row[0]}, expected {_SCHEMA_VERSION}", "move it away")

    def finished(self) -> dict[str, dict[str, Any]]:
        """All rows by package."""
        with self._lock:
            cursor = self._base.execute(
                "SELECT name, kind, position, replaces, status, reason, result, seconds FROM packages ORDER BY position"
            )
            names = [column[0] for column in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor]
        return {row["name"]: {**row, "result": json.loads(row["result"])} for row in rows}

    def add(self, item: Wanted, status: str, reason: str, result: Mapping[str, Any], seconds: float) -> None:
        """One finished package."""
        values = (item.name, item.kind, item.position, item.replaces, status, reason, json.dumps(result), seconds)
        with self._lock, self._base:
            self._base.execute("INSERT OR REPLACE INTO packages VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def close(self) -> None:
        """Close the data base."""
        self._base.close()


def main(
    path: Path, output: Path, options: Sequence[str], *, jobs: int, limit_s: float, build: bool,
    environment: Mapping[str, str],
) -> int:  # fmt: skip
    """Do what is left of a survey, and write its reports: 0 if nothing under detbox differed or failed."""
    chosen, reserve = read_list(path)
    survey = Survey(output / DATABASE)
    try:
        if build:
            with table.live(len(chosen)) as notice:
                _Runner(survey, chosen, reserve, options, limit_s, environment, notice).run(jobs)
        rows = survey.finished()
        from detbox.deb import pages

        pages.write(output, chosen, rows)
    finally:
        survey.close()
    bad = [row for row in rows.values() if row["status"] in ("different", "failed", "timeout")]
    return 1 if bad else 0


class _Runner:
    """Hands packages to workers; a source that is not served gives way to one of the reserve."""

    def __init__(
        self, survey: Survey, chosen: list[Wanted], reserve: list[Wanted], options: Sequence[str], limit_s: float,
        environment: Mapping[str, str], notice: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        self._survey, self._options, self._limit_s = survey, options, limit_s
        self._environment, self._notice = {**environment, **import_environment()}, notice
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._ended = False
        done = survey.finished()
        self._reserve = [item for item in reserve if item.name not in done]
        self._chosen = [item for item in chosen if item.name not in done]
        for row in done.values():
            notice(row["name"], row["status"])
        replaced = {row["replaces"] for row in done.values()}
        self._gaps = [
            Wanted(row["name"], row["kind"], row["position"]) for row in done.values()
            if row["status"] == "not served" and row["name"] not in replaced
        ]  # fmt: skip

    def run(self, jobs: int) -> None:
        """All that is left.  An interrupt ends the running builds and passes on."""
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(self._replace, gap) for gap in self._gaps]
            futures += [pool.submit(self._package, item) for item in self._chosen]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._ended = True
                pool.shutdown(wait=False, cancel_futures=True)
                with self._lock:
                    for pid in self._running:
                        os.killpg(pid, signal.SIGTERM)
                raise

    def _package(self, item: Wanted) -> None:
        self._notice(item.name, "running")
        started = time.monotonic()
        status, reason, result = self._verify(item)
        if self._ended:
            return
        self._survey.add(item, status, reason, result, time.monotonic() - started)
        self._notice(item.name, status)
        if status == "not served":
            self._replace(item)

    def _replace(self, gone: Wanted) -> None:
        with self._lock:
            if not self._reserve:
                return
            like = [item for item in self._reserve if item.kind.partition("-")[0] == gone.kind.partition("-")[0]]
            same = [item for item in like if item.kind == gone.kind]
            item = (same or like or self._reserve)[0]
            self._reserve.remove(item)
        self._package(Wanted(item.name, item.kind, gone.position, gone.name))

    def _verify(self, item: Wanted) -> tuple[str, str, dict[str, Any]]:
        command = [sys.executable, "-m", "detbox", "deb", "verify", "--native", "--json", *self._options, item.name]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", env=self._environment, start_new_session=True,
        )  # fmt: skip
        with self._lock:
            self._running.add(process.pid)
        try:
            out, err = process.communicate(timeout=self._limit_s)
        except subprocess.TimeoutExpired:
            out, err = _end(process)
            return "timeout", f"longer than {self._limit_s:g} seconds", {}
        finally:
            with self._lock:
                self._running.discard(process.pid)
        return judge(process.returncode, out, err)


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        return process.communicate(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()


def judge(status: int, out: str, err: str) -> tuple[str, str, dict[str, Any]]:
    """(status, reason, result) of a package, out of what its verification said."""
    try:
        result = json.loads(out)
    except ValueError:
        said = "\n".join(line.removeprefix("detbox: ") for line in err.splitlines())[-3000:]
        if "does not serve it" in said:
            return "not served", said, {}
        if ANYWHERE in said:
            return "fails natively", said, {}
        return "failed", said or f"status {status}", {}
    result.pop("attestation", None)
    if not result["identical"]:
        return "different", "; ".join(result["differences"][:5]), result
    native = result["native"]
    if native and not native["built"]:
        return "identical", "natively: " + native["note"], result
    return "identical", "", result
