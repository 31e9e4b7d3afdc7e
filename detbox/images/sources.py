"""Where packages come from: the system's own apt sources, turned into those of a suite."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from detbox.errors import HostError, UserError

#: Parts of a release that belong to it besides its main archive.
_PARTS = ("-updates", "-security", "/updates")


@dataclass(frozen=True)
class Source:
    """One archive: a line of sources.list(5) with one suite."""

    uri: str
    suite: str
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()

    def line(self) -> str:
        """As apt reads it."""
        options = " ".join(f"{name}={value}" for name, value in self.options)
        words = ["deb", f"[{options}]" if options else "", self.uri, self.suite, *self.components]
        return " ".join(word for word in words if word)


def for_suite(suite: str, components: Sequence[str], mirrors: Sequence[str], apt: Path = Path("/etc/apt")) -> list[str]:
    """The lines of sources.list(5) that a suite's packages come from.

    ``mirrors``: URIs, or whole lines; without them the system's own sources serve.  Raises HostError, UserError.
    """
    if mirrors:
        return [_mirror_line(mirror, suite, components) for mirror in mirrors]
    known = [source for source in system(apt) if set(source.components) & set(components)]
    chosen = [source for source in known if _release(source.suite) == suite]
    if not chosen:
        # The same archives under another release's name.
        others = {_release(source.suite) for source in known}
        chosen = [
            replace(source, suite=suite + source.suite.removeprefix(release))
            for release in sorted(others)[:1]
            for source in known
            if _release(source.suite) == release
        ]
    if not chosen:
        raise HostError(f"no apt source in {apt} serves {' '.join(components)}", "name one with --mirror URI")
    wanted = [replace(source, components=tuple(c for c in source.components if c in components)) for source in chosen]
    return list(dict.fromkeys(source.line() for source in wanted))


def _mirror_line(mirror: str, suite: str, components: Sequence[str]) -> str:
    if mirror.startswith("deb "):
        return mirror
    if not re.match(r"[a-z+]+:/", mirror):
        raise UserError(f"--mirror {mirror!r}: not a URI", "write http://HOST/PATH, or a line that begins with deb")
    return Source(mirror, suite, tuple(components)).line()


def _release(suite: str) -> str:
    for part in _PARTS:
        suite = suite.removesuffix(part)
    return suite


def system(apt: Path) -> list[Source]:
    """The binary package sources that apt is configured with."""
    parts = apt / "sources.list.d"
    files = sorted(parts.iterdir()) if parts.is_dir() else []
    found: list[Source] = []
    for path in [apt / "sources.list", *files]:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if path.suffix == ".list":
            found += _one_line(text)
        elif path.suffix == ".sources":
            found += _deb822(text)
    return found


def _one_line(text: str) -> Iterator[Source]:
    pattern = re.compile(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)((?:\s+\S+)*)\s*")
    for line in text.splitlines():
        match = pattern.fullmatch(line.partition("#")[0].strip())
        if match:
            pairs = [option.partition("=") for option in (match[1] or "").split()]
            options = tuple((name.lower(), value) for name, _, value in pairs if name.lower() in _OPTIONS)
            yield Source(match[2], match[3], tuple(match[4].split()), options)


def _deb822(text: str) -> Iterator[Source]:
    for block in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[name] = fields.get(name, "") + "\n" + line.strip()
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        enabled = fields.get("enabled", "yes").lower() not in ("no", "false", "0")
        if not enabled or "deb" not in fields.get("types", "").split():
            continue
        # A key in the field itself (many lines) cannot be said in one line; apt's own keyrings have Debian's.
        options = tuple((key, fields[key]) for key in _OPTIONS if fields.get(key) and "\n" not in fields[key])
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Source(uri, suite, tuple(fields.get("components", "").split()), options)


#: Options of a source that say whom to trust.
_OPTIONS = ("signed-by", "trusted", "check-valid-until")


def proxies() -> Mapping[str, str]:
    """Environment variables for the proxies that apt is configured with: they never get into an image."""
    try:
        done = subprocess.run(
            ["apt-config", "shell", "HTTP", "Acquire::http::Proxy", "HTTPS", "Acquire::https::Proxy"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise HostError("apt is missing", "images are made on Debian and its derivatives") from None
    found = dict(re.findall(r"(HTTPS?)='([^']*)'", done.stdout))
    kept = {name: value for name, value in os.environ.items() if name in ("http_proxy", "https_proxy", "no_proxy")}
    return {**kept, **{f"{name.lower()}_proxy": value for name, value in found.items() if value != "DIRECT"}}
