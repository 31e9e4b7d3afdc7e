"""Whole jobs: looked up before a container is made, recorded while it runs."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from detbox.cache import gc, key, mismatch
from detbox.cache.check import Checker
from detbox.cache.manifest import Manifest
from detbox.cache.places import Places, Sources
from detbox.cache.remote_check import stays_inside
from detbox.cache.restore import Restore, remove_leftovers
from detbox.cache.stdin import Input
from detbox.cache.store import Store
from detbox.cache.summary import data_of
from detbox.records import as_dict

if TYPE_CHECKING:
    from detbox.cache.remote import Access
    from detbox.container.outcome import Outcome
    from detbox.spec import RunSpec

Launch = Callable[["RunSpec"], "Outcome"]
_LENGTH = 8
_HIT, _MISS, _UNABLE = "hit", "miss", "not cacheable"


def run(
    spec: RunSpec, launch: Launch, outcome: type[Outcome], sources: Sources, access: Access | None = None
) -> Outcome:
    """Run the command with ``launch``, or put a former result in place.  Raises DetboxError.

    ``outcome``: what is made of a result.  ``access``: to the remote cache.
    """
    assert spec.cache_dir is not None
    store = Store(spec.cache_dir) if spec.cache_remote is None else _shared(spec, access)
    try:
        done = Job(spec, launch, outcome, sources, store).run()
        if store.trouble:
            done.stats["cache trouble"] = store.trouble
        return done
    finally:
        store.close()


def _shared(spec: RunSpec, access: Access | None) -> Store:
    from detbox.cache.remote import Access
    from detbox.cache.remote_store import open_store

    return open_store(spec, access or Access())


class Job:
    """One run with a cache."""

    def __init__(self, spec: RunSpec, launch: Launch, outcome: type[Outcome], sources: Sources, store: Store) -> None:
        self.spec = spec
        self._outcome = outcome
        self._launch = launch
        self._store = store
        self._places = Places(sources)
        self._known = key.parts(spec, sources, store)
        bound = (spec.guest_workdir, *(mount.dst for mount in spec.mounts)) if self._known["ordinary user"] else ()
        self._checker = Checker(self._places, store, bound)
        self._key = key.key_of(self._known)
        self._base = key.base_of(self._known)
        self._family = key.family_of(self._known, self._base)
        self._input = Input(spec)
        self._why = ""
        self._executions: list[dict[str, Any]] = []
        self._environments: list[dict[str, str]] = []
        self._trace: IO[bytes] | None = None

    def run(self) -> Outcome:
        """Look up; run for real if nothing fits; keep the result."""
        started = time.perf_counter()
        remove_leftovers(self.spec.workdir)
        found = self._find() if self.spec.cache in ("read", "both") else None
        if found is not None and not mismatch.chosen(self.spec.cache_verify):
            outcome = self._restore(found)
            if outcome is not None:
                self._log(_HIT, "", time.perf_counter() - started, found.seconds)
                return outcome
            self._why = "the result could not be put in place"
            found = None
        outcome, new = self._record(verify=found is not None)
        seconds = time.perf_counter() - started
        if found is not None and new is not None:
            command = " ".join(self._known["command"])
            left = found.left()
            self._compare(mismatch.difference(command, as_dict(found), as_dict(new), left.__contains__))
        if new is not None:
            new.seconds = seconds
            if self.spec.cache in ("write", "both"):
                new.command = self._known["command"]
                self._store.publish(self._key, new.to_bytes(), [*new.blobs(), *self._kept_trace()])
        gc.keep_small(self._store, self.spec.cache_max_bytes)
        self._log(_MISS if new is not None else _UNABLE, self._why, seconds, 0.0)
        return outcome

    # -- looking up ------------------------------------------------------------------------

    def _find(self) -> Manifest | None:
        known = False
        for data in self._store.look_up(self._key):
            known = True
            if self._checker.is_known_wrong(data):
                continue
            manifest = Manifest.from_bytes(data)
            if manifest is None:
                continue
            why = self._checker.first_change(manifest) or self._input.first_change(manifest.stdin)
            if why is None:
                self._store.chosen(self._key, data)
                return manifest
            self._why = self._why or why
        if not known:
            self._why = self._unknown()
        return None

    def _unknown(self) -> str:
        """Why the key is new: what differs from the last run of this work directory or command."""
        for earlier in self._store.runs():
            known = earlier.get("known")
            if not isinstance(known, dict) or known.get("command") != self._known["command"]:
                continue
            # The environment comes last: other options set variables.
            for name, value in sorted(self._known.items(), key=lambda item: item[0] == "env"):
                if known.get(name) != value:
                    return _difference(name, known.get(name), value)
        return "this command has not been run before"

    def _restore(self, manifest: Manifest) -> Outcome | None:
        output = b""
        if manifest.output:
            blob = self._store.open_blob(manifest.output)
            if blob is None:
                return None
            output = blob
        tops = (self.spec.guest_workdir, *(mount.dst for mount in self.spec.mounts if mount.rw))
        try:
            if not stays_inside(manifest, tops, self._places.host):
                return None
            if not Restore(manifest.changes, self._places.host, self.spec.workdir).carry_out(self._store):
                return None
        except OSError:
            return None
        self._input.consume(manifest.stdin)
        view = memoryview(output)
        for stream, size in manifest.turns:
            _write(stream, view[:size])
            view = view[size:]
        stats = {"cache": _HIT, "saved_s": manifest.seconds}
        return self._outcome(manifest.status, stats, interleaving=manifest.interleaving)

    # -- running for real ------------------------------------------------------------------------

    def _record(self, verify: bool) -> tuple[Outcome, Manifest | None]:
        notes = os.memfd_create("detbox-observed")
        try:
            spec = self._input.handed_on(self.spec).with_changes(observe_fd=notes, cache_base=self._base)
            if spec.cache_verify:
                self._trace = mismatch.trace_file(self._store)
                spec = spec.with_changes(record=f"/proc/self/fd/{self._trace.fileno()}", record_results=True)
            if verify:
                spec = spec.with_changes(cache_verify=100)  # else the run would be answered from results that it made
            elif self.spec.cache != "write":
                self._store.fetch_parts(self._family)
            self._store.rest()
            outcome = self._launch(spec)
            with open(os.dup(notes), "rb") as file:
                file.seek(0)
                length = int.from_bytes(file.read(_LENGTH), "little")
                raw = json.loads(file.read(length)) if length else None
                records = [(k, file.read(size), dict(blobs)) for k, size, blobs in raw["records"]] if raw else []
                output = file.read()
        finally:
            os.close(notes)
        if raw is None:
            self._why = "the run told nothing"
            return outcome, None
        self._executions, self._environments = raw["executions"], raw["environments"]
        self._store.use(used for used, _ in raw["used"])
        self._compare(raw["mismatch"])
        if outcome.trouble or any(one["result"] == _HIT for one in self._executions):
            self._trace = None  # it is not whole
        if records and not outcome.doubts:
            trace = self._kept_trace()
            self._store.publish_all((k, data, (*blobs, *trace)) for k, data, blobs in records)
            self._store.give_parts(self._family, [(k, data) for k, data, _ in records], raw["used"])
        reasons = [*raw["reasons"], *outcome.doubts, *(f"unknown call {name}" for name in outcome.unknown_calls)]
        reasons += self._input.reasons(raw["stdin"])
        if reasons:
            self._why = "; ".join(reasons)
            return outcome, None
        rows, names, hints, why = self._checker.finish(raw["facts"])
        try:
            if why or not self._keep_blobs(raw["changes"]):
                self._why = why or "an output was changed from outside"
                return outcome, None
            digest = self._store.put_bytes(output) if output else ""
        except OSError as error:
            self._why = f"the cache cannot keep it: {error.strerror}"
            return outcome, None
        manifest = Manifest(
            rows, names, raw["changes"], outcome.status, digest, raw["turns"], raw["stdin"], outcome.interleaving
        )
        self._checker.keep_hints(manifest, hints)
        return outcome, manifest

    def _keep_blobs(self, changes: list[dict[str, Any]]) -> bool:
        for change in changes:
            place = self._places.host(data_of(change["path"]))
            if place is None:
                return False
            if change["do"] != "file":
                continue
            try:
                change["blob"] = self._store.put_file(place)
                if os.lstat(place).st_size != change["size"]:
                    return False
            except FileNotFoundError:
                return False
        return True

    # -- reports ---------------------------------------------------------------------------------------

    def _compare(self, found: Any) -> None:
        if found is not None:
            key = found["stored"].get("key", self._key)
            error = mismatch.report(self._store, key, found, self._trace)
            self._store.withdraw(key)
            raise error

    def _kept_trace(self) -> list[str]:
        """The digest of the run's trace, which is kept with its results."""
        if self._trace is None or self.spec.cache not in ("write", "both"):
            return []
        self._trace.seek(0)
        try:
            return [self._store.put_bytes(self._trace.read())]
        except OSError:
            return []

    def _log(self, result: str, why: str, seconds: float, former: float) -> None:
        self._store.log_run({
            "command": self._known["command"], "workdir": self.spec.workdir, "result": result, "why": why,
            "seconds": round(seconds, 4), "saved": round(max(0.0, former - seconds), 4), "known": self._known,
            "executions": self._executions, "environments": self._environments,
            **self._store.report(),
        })  # fmt: skip


def _difference(name: str, old: Any, new: Any) -> str:
    if name == "env" and isinstance(old, dict) and isinstance(new, dict):
        for variable in sorted(old.keys() | new.keys()):
            if old.get(variable) != new.get(variable):
                return f"environment: {variable}"
    return name.replace("_", " ")


def _write(stream: int, data: memoryview) -> None:
    while data:
        try:
            data = data[os.write(stream, data) :]
        except BlockingIOError:
            select.select([], [stream], [])
        except OSError:
            return  # nobody reads it, as in a real run
