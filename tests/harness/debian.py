"""A source package of a few lines, `detbox deb` as a command, and an archive of one's own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

ROOT = Path(__file__).parents[2]
_CONTROL = """\
Source: few-lines
Maintainer: A B <a@b.example>
Section: misc
Priority: optional
Standards-Version: 4.6.2
Rules-Requires-Root: no
{dependencies}
Package: few-lines
Architecture: all
Description: a package of a few lines
"""
CHANGELOG = """\
few-lines (1.0) unstable; urgency=low

  * New.

 -- A B <a@b.example>  Sun, 01 Jan 2023 00:00:00 +0000
"""
_RULES = """\
#!/usr/bin/make -f
clean build build-indep build-arch binary-arch:
binary binary-indep:
	mkdir -p debian/few-lines/DEBIAN debian/few-lines/usr/share/few-lines
	date > debian/few-lines/usr/share/few-lines/date
	head -c 8 /dev/urandom > debian/few-lines/usr/share/few-lines/random
	(id -un; pwd; nproc; hostname) > debian/few-lines/usr/share/few-lines/place
	{step}
	dpkg-gencontrol -Pdebian/few-lines
	dpkg-deb --root-owner-group --build debian/few-lines ..
"""


def detbox(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    return subprocess.run(command(*words), cwd=cwd, env=environment(), capture_output=True, text=True, check=False)


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "detbox", "deb", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def need_image() -> None:
    """The image of build roots, in the user's store; made if there is none yet."""
    from detbox.images.recipe import default_suite
    from detbox.images.store import Store

    name = f"{default_suite()}-buildd"
    if Store().find(name) is None:
        build = [sys.executable, "-m", "detbox", "image", "build", name]
        subprocess.run(build, cwd="/", env=environment(), check=True)


def make_source(place: Path, step: str = ":", dependencies: str = "") -> Path:
    """An unpacked source package.  ``step``: one more command of its build."""
    tree = place / "few-lines"
    (tree / "debian/source").mkdir(parents=True)
    (tree / "debian/source/format").write_text("3.0 (native)\n")
    (tree / "debian/control").write_text(_CONTROL.format(dependencies=dependencies))
    (tree / "debian/changelog").write_text(CHANGELOG)
    (tree / "debian/rules").write_text(_RULES.format(step=step))
    (tree / "debian/rules").chmod(0o755)
    return tree


def describe(tarball: Path) -> Path:
    """The .dsc of a source package that is one tarball, which is called as it is to be."""
    content, name = tarball.read_bytes(), tarball.name
    package, version = name.removesuffix(".tar.xz").split("_")
    fields = {"Format": "3.0 (native)", "Source": package, "Binary": package, "Architecture": "all", "Version": version}
    text = "".join(f"{field}: {value}\n" for field, value in fields.items()) + "Maintainer: A B <a@b.example>\n"
    for field, kind in (("Checksums-Sha1", "sha1"), ("Checksums-Sha256", "sha256"), ("Files", "md5")):
        text += f"{field}:\n {hashlib.new(kind, content).hexdigest()} {len(content)} {name}\n"
    dsc = tarball.with_name(f"{package}_{version}.dsc")
    dsc.write_text(text)
    return dsc


def make_archive(folder: Path, *sources: Path, sign: list[str] | None = None) -> None:
    """An archive of bookworm with the .dsc files ``sources`` of that directory, and no binary packages.

    ``sign``: a command that signs its standard input in place.
    """
    stanzas = []
    for dsc in sources:
        text = dsc.read_text()
        fields, _, listed = text.partition("Checksums-Sha256:\n")
        listed += f" {_digest(dsc)} {dsc.stat().st_size} {dsc.name}\n"
        head = fields.replace("Source: ", "Package: ", 1)
        stanzas.append(f"{head}Format: 3.0 (native)\nBinary: x\nDirectory: .\nChecksums-Sha256:\n{listed}")
    indices = {"main/source/Sources": "\n".join(stanzas), "main/binary-amd64/Packages": ""}
    top = folder / "dists/bookworm"
    lines = ["Suite: bookworm", "Codename: bookworm", "Architectures: amd64", "Components: main"]
    lines += ["Date: Sun, 01 Jan 2023 00:00:00 UTC", "SHA256:"]
    for name, text in indices.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
        lines.append(f" {_digest(top / name)} {len(text)} {name}")
    release = "".join(line + "\n" for line in lines)
    if sign:
        release = subprocess.run(sign, input=release, capture_output=True, text=True, check=True).stdout
        (top / "InRelease").write_text(release)
    else:
        (top / "Release").write_text(release)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *words: object) -> None:  # its output would be the test's
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which a directory is served; then nobody answers there any more."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
