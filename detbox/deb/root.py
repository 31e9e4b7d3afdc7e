"""Build roots: an image and the build dependencies of one source package, cached by the exact set of packages."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from detbox.deb import control, whole
from detbox.deb.apt import Apt, Package
from detbox.deb.source import Source
from detbox.errors import HostError
from detbox.images import inside
from detbox.images.store import Image, Store

#: Who runs the build in the guest, and where.
BUILDER, BUILDER_ID, BUILD_DIR = "builder", 1000, "/build"
#: Version of what :func:`_fill` does: part of a layer's key.
_RECIPE = 2
_DEPENDENCIES = (
    "build-depends", "build-depends-arch", "build-depends-indep",
    "build-conflicts", "build-conflicts-arch", "build-conflicts-indep",
)  # fmt: skip
#: Where the private apt is shown while packages are installed.
_SHOWN = "/mnt"


@dataclass(frozen=True)
class BuildRoot:
    """A directory to build in.  ``packages``: what was added to the image.  ``key``: the layer's key."""

    path: Path
    image: Image
    packages: tuple[Package, ...]
    key: str
    cached: bool

    @property
    def digest(self) -> str:
        """Names image and added packages: SHA-256 of the key."""
        return hashlib.sha256(self.key.encode()).hexdigest()


def build_root(store: Store, image: Image, apt: Apt, source: Source) -> BuildRoot:
    """The build root of a source package; made if it does not exist yet.  Raises UserError, HostError."""
    apt.prepare()
    return _made(store, image, apt, _resolved(apt, image, source))


def exact_root(store: Store, image: Image, apt: Apt, wanted: list[Package]) -> BuildRoot:
    """A build root with these packages in these versions.  Raises UserError if one is gone."""
    apt.prepare()
    present = {name: version for name, version, _ in image.packages}
    lacking = [package for package in wanted if present.get(package.name) != package.version]
    missing = [f"{package.name}={package.version}" for package in lacking]
    names = [name for name in ("fakeroot",) if name not in present]
    return _made(store, image, apt, apt.resolve_named(image.root, [*missing, *names]))


def _made(store: Store, image: Image, apt: Apt, packages: list[Package]) -> BuildRoot:
    key = "\n".join([f"deb-root {_RECIPE}", image.digest, *sorted(map(str, packages))])
    known = store.layer(key)
    if known is not None:
        return BuildRoot(known, image, tuple(packages), key, True)
    if packages:
        apt.download(image.root, packages)
    path = store.make_layer(key, image, lambda root: _fill(root, apt, packages))
    return BuildRoot(path, image, tuple(packages), key, False)


def _resolved(apt: Apt, image: Image, source: Source) -> list[Package]:
    """The packages to add.  The answer is kept, since apt needs a second for it."""
    fields = control.first_stanza(
        source.place / source.dsc if source.dsc else source.place / source.tree / "debian/control", "source"
    )
    given = {name: fields[name] for name in _DEPENDENCIES if name in fields}
    question = json.dumps([_RECIPE, image.digest, apt.state(), given])
    kept = apt.top / "resolved" / hashlib.sha256(question.encode()).hexdigest()
    try:
        return [Package(*row) for row in json.loads(kept.read_text())]
    except FileNotFoundError:
        pass
    with tempfile.TemporaryDirectory(prefix="detbox-resolve-") as place:
        tree = Path(place) / "source"
        (tree / "debian").mkdir(parents=True)
        given["build-depends"] = ", ".join(filter(None, ["fakeroot", given.get("build-depends", "")]))
        (tree / "debian/control").write_text(
            "Source: x\n" + "".join(f"{name.title()}: {_folded(value)}\n" for name, value in given.items())
            + "\nPackage: x\nArchitecture: any\n"
        )  # fmt: skip
        packages = apt.resolve(image.root, tree)
    kept.parent.mkdir(exist_ok=True)
    whole.write(kept, json.dumps([[package.name, package.version, package.arch] for package in packages]))
    return packages


def _folded(value: str) -> str:
    lines = [line for line in value.splitlines() if line and not line.startswith("#")]
    return "\n ".join(lines)


def _fill(root: Path, apt: Apt, packages: list[Package]) -> None:
    """Install the packages, whose files apt has downloaded, and prepare the builder's account and directory."""
    if packages:
        options = ["-o", "DPkg::Options::=--force-unsafe-io", "-o", "Dpkg::Use-Pty=0"]
        done = inside.run(
            root,
            ["apt-get", "-y", "-qq", "--no-download", *options, "install", *map(str, packages)],
            env={"APT_CONFIG": f"{_SHOWN}/{apt.inside(_SHOWN)}", "SOURCE_DATE_EPOCH": "0"},
            binds={str(apt.top): _SHOWN},
        )
        if done.returncode:
            said = (done.stdout + done.stderr).decode("utf-8", "replace").splitlines()[-15:]
            raise HostError("\n".join(["the build dependencies cannot be installed:", *said]))
    script = (
        f"echo {BUILDER}:x:{BUILDER_ID}:{BUILDER_ID}::/nonexistent:/bin/sh >>/etc/passwd"
        f" && echo {BUILDER}:x:{BUILDER_ID}: >>/etc/group"
        f" && mkdir -p {BUILD_DIR} && chmod 1777 {BUILD_DIR}"
    )
    done = inside.run(root, ["sh", "-c", script])
    if done.returncode:
        raise HostError("the build root cannot be completed: " + done.stderr.decode("utf-8", "replace"))
