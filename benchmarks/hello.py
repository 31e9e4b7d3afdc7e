"""The source of GNU hello, from the package mirror that the machine already uses."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

PACKAGE = "hello"


class Unavailable(Exception):
    """The source cannot be had; the message says why."""


def source(cache: Path) -> Path:
    """The unpacked source tree, kept below ``cache``.  Raises Unavailable."""
    found = sorted(cache.glob(f"{PACKAGE}_*.orig.tar.*[!c]"))
    if not found:
        _download(cache)
        found = sorted(cache.glob(f"{PACKAGE}_*.orig.tar.*[!c]"))
    if not found:
        raise Unavailable("no source archive of GNU hello")
    tree = cache / "tree"
    if not (tree / "configure").exists():
        tree.mkdir(exist_ok=True)
        subprocess.run(["tar", "-xf", str(found[-1]), "-C", str(tree), "--strip-components=1"], check=True)
    return tree


def _download(cache: Path) -> None:
    """Ask apt, with lists of its own: the system's configuration usually names no sources, and stays so."""
    cache.mkdir(parents=True, exist_ok=True)
    for part in ("lists/partial", "archives/partial"):
        (cache / part).mkdir(parents=True, exist_ok=True)
    listing = cache / "sources.list"
    listing.write_text(_source_lines())
    options = {
        "Dir::Etc::SourceList": listing, "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": cache / "lists", "Dir::Cache::Archives": cache / "archives",
        "Dir::Cache::pkgcache": "", "Dir::Cache::srcpkgcache": "",
    }  # fmt: skip
    flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    for verb in (["update"], ["--download-only", "source", PACKAGE]):
        try:
            done = subprocess.run(
                ["apt-get", "-q", *flags, *verb],
                cwd=cache, capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"apt-get {verb[0]}: {error}") from None
        if done.returncode:
            raise Unavailable(f"apt-get {verb[0]}: {done.stderr.strip()[-200:]}")


def fresh(tree: Path, copy: Path) -> Path:
    """``copy``, made again as a copy of the source tree."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(tree, copy, symlinks=True)
    return copy


def _source_lines() -> str:
    """``deb-src`` lines for the repositories that the system takes its binary packages from."""
    wanted = "$(SITE) $(RELEASE) $(COMPONENT) $(SIGNED_BY)"
    try:
        text = subprocess.run(
            ["apt-get", "indextargets", "--format", wanted, "Created-By: Packages", "Component: main"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"no package mirror is known: {error}") from None
    lines = []
    for line in sorted(set(text.splitlines())):
        site, release, component, *key = line.split()
        signed = f"[signed-by={key[0]}] " if key and os.path.isabs(key[0]) else ""
        lines.append(f"deb-src {signed}{site} {release} {component}\n")
    if not lines:
        raise Unavailable("no package mirror is known")
    return "".join(lines)
