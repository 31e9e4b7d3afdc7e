"""A private apt: the system's own archives and keys, with state and downloads in a directory of detbox.

The system's lists are left alone, its sources need no ``deb-src`` line, and no rights are needed.  What apt
downloads it has checked against the archive's signature.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from detbox.deb import programs, whole
from detbox.errors import HostError, SourceNotAvailable, UserError
from detbox.values import own_directory

#: Lists older than this are fetched again, in seconds.
_FRESH_S = 12 * 3600.0
_CONF = """\
Dir::State "{top}/state";
Dir::State::status "{status}";
Dir::Cache "{top}/cache";
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "{top}/sources";
Dir::Etc::Parts "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::Log "{top}";
Acquire::Languages "none";
Acquire::Retries "2";
APT::Sandbox::User "";
APT::Install-Recommends "false";
APT::Get::AllowUnauthenticated "false";
Debug::NoLocking "true";
"""
_INST = re.compile(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) .*\[(\w+)\]\)", re.MULTILINE)


def default_path(env: Mapping[bytes, bytes]) -> Path:
    """Where lists and downloaded packages are kept: in the user's cache directory."""
    return Path(own_directory("cache", env), "apt")


@dataclass(frozen=True)
class Package:
    """A binary package of an exact version."""

    name: str
    version: str
    arch: str

    def __str__(self) -> str:
        return f"{self.name}:{self.arch}={self.version}"


class Apt:
    """The private apt of one suite's archives.  ``suite``: only sources of it are used."""

    def __init__(self, suite: str, top: Path | None = None) -> None:
        self.suite = suite
        self.top = (top or default_path(os.environb)) / suite

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.top.mkdir(parents=True, exist_ok=True)
        with open(self.top / "lock", "w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def prepare(self) -> None:
        """Fetch the lists, unless they are fresh.  Raises HostError if the archive cannot be reached."""
        with self._locked():
            sources = system_sources(self.suite)
            if not sources:
                raise HostError(
                    f"the system's apt has no source of {self.suite}",
                    f"add one to /etc/apt/sources.list.d (suite {self.suite})",
                )
            for name in ("state/lists/partial", "cache/archives/partial", "sources"):
                (self.top / name).mkdir(parents=True, exist_ok=True)
            stamp = self.top / "updated"
            digest = hashlib.sha256(sources.encode()).hexdigest()
            with contextlib.suppress(FileNotFoundError):
                if stamp.read_text() == digest and time.time() - stamp.stat().st_mtime < _FRESH_S:
                    return
            whole.write(self.top / "sources" / "system.sources", sources, self.top)
            (self.top / "no-status").touch()
            done = programs.call(["apt-get", "update", "--error-on=any"], env=self.environment(None))
            if done.returncode:
                raise HostError("\n".join(["the archive's lists cannot be fetched:", *programs.complaints(done)]))
            whole.write(stamp, digest)

    def environment(self, root: Path | None) -> dict[str, str]:
        """Variables that make apt use this directory, and what is installed in ``root`` (None: nothing)."""
        status = self.top / "no-status" if root is None else root / "var/lib/dpkg/status"
        name = "none" if root is None else hashlib.sha256(str(root).encode()).hexdigest()[:16]
        conf = self.top / f"apt-{name}.conf"
        whole.write(conf, _CONF.format(top=self.top, status=status))
        return {"APT_CONFIG": str(conf)}

    def inside(self, shown: str) -> str:
        """Name of a configuration in this directory, for an apt that sees the directory at ``shown``."""
        conf = self.top / "apt-inside.conf"
        whole.write(conf, _CONF.format(top=shown, status="/var/lib/dpkg/status"))
        return conf.name

    def state(self) -> str:
        """A digest of what the archive's signed indices say."""
        total = hashlib.sha256()
        for path in sorted((self.top / "state/lists").glob("*Release")):
            total.update(path.read_bytes())
        return total.hexdigest()

    def fetch_source(self, package: str, version: str | None, into: Path) -> Path:
        """Download a source package: the path of its .dsc.  Raises UserError, HostError."""
        wanted = package if version is None else f"{package}={version}"
        done = programs.call(
            ["apt-get", "source", "--download-only", "--only-source", "-qq", wanted],
            cwd=into, env=self.environment(None),
        )  # fmt: skip
        found = sorted(into.glob("*.dsc"))
        if done.returncode == 0 and len(found) == 1:
            return found[0]
        text = "\n".join(programs.complaints(done))
        if "Unable to find a source package" in text or "Can not find version" in text:
            raise UserError(f"{self.suite} has no source package {wanted}", "is the name that of the source?")
        if re.search(r"\b404\b|Not Found", text):
            raise SourceNotAvailable(f"the archive lists {wanted} and does not serve it")
        raise HostError("\n".join([f"the source {wanted} cannot be fetched:", text]))

    def resolve(self, root: Path, tree: Path) -> list[Package]:
        """What ``root`` lacks for building the source whose ``debian/control`` is below ``tree`` (or a .dsc)."""
        done = programs.call(
            ["apt-get", "-s", "-q", "build-dep", str(tree)], cwd=tree.parent, env=self.environment(root)
        )
        if done.returncode:
            lines = [line.partition(" : ")[2].strip() for line in done.stdout.splitlines() if "Depends: " in line]
            complaint = lines or programs.complaints(done)
            raise UserError("\n".join(["the build dependencies cannot be met:", *complaint]))
        return parse_simulation(done.stdout)

    def resolve_named(self, root: Path, names: list[str]) -> list[Package]:
        """What ``root`` lacks for these packages (NAME or NAME=VERSION) to be installed."""
        done = programs.call(["apt-get", "-s", "-qq", "install", *names], env=self.environment(root))
        if done.returncode:
            raise UserError("\n".join(["packages cannot be installed:", *programs.complaints(done)]))
        return parse_simulation(done.stdout)

    def download(self, root: Path, packages: list[Package]) -> None:
        """Put the packages into the cache of downloads.  Raises HostError."""
        with self._locked():
            done = programs.call(
                ["apt-get", "-y", "-qq", "--download-only", "install", *map(str, packages)],
                env=self.environment(root),
            )
        if done.returncode:
            raise HostError("\n".join(["packages cannot be downloaded:", *programs.complaints(done)]))


def parse_simulation(text: str) -> list[Package]:
    """The packages that ``apt-get -s`` would install, in its order."""
    return [Package(name, version, arch) for name, version, arch in _INST.findall(text)]


def system_sources(suite: str, etc: Path = Path("/etc/apt")) -> str:
    """The system's own sources of a suite in deb822 format, for binary and source packages."""
    found: list[str] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if path.suffix == ".sources":
            found += _of_deb822(path.read_text(), suite)
        elif path.suffix == ".list" and path.exists():
            found += _of_lines(path.read_text(), suite)
    return "\n".join(found)


def _ours(name: str, suite: str) -> bool:
    return name == suite or name in (f"{suite}-updates", f"{suite}-security", f"{suite}/updates")


def _of_deb822(text: str, suite: str) -> Iterator[str]:
    from detbox.deb.control import stanzas

    for fields in stanzas(text):
        suites = [name for name in fields.get("suites", "").split() if _ours(name, suite)]
        if suites and "deb" in fields.get("types", "").split() and fields.get("enabled", "yes") != "no":
            rest = "".join(
                f"{name.title()}: {_indented(value)}\n"
                for name, value in fields.items()
                if name in ("uris", "components", "signed-by", "trusted")
            )
            yield f"Types: deb deb-src\nSuites: {' '.join(suites)}\n{rest}"


def _indented(value: str) -> str:
    return "\n ".join(line or "." for line in value.splitlines())


def _of_lines(text: str, suite: str) -> Iterator[str]:
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)\s+(.*?)\s*(?:#.*)?$", line.strip())
        if match and _ours(match[3], suite):
            signed = re.search(r"signed-by=(\S+)", match[1] or "")
            yield (
                f"Types: deb deb-src\nURIs: {match[2]}\nSuites: {match[3]}\nComponents: {match[4]}\n"
                + (f"Signed-By: {signed[1]}\n" if signed else "")
            )
