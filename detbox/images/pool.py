"""The packages of a lock file, fetched by apt into an archive of their own that has nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from detbox.errors import HostError, UserError
from detbox.images import dpkg
from detbox.images.lock import Locked
from detbox.images.tools import environment, failure
from detbox.images.tree import hash_file

_CONFIGURATION = """\
Dir "{top}";
Dir::Etc::SourceList "{top}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Trusted "/etc/apt/trusted.gpg";
Dir::Etc::TrustedParts "/etc/apt/trusted.gpg.d";
Dir::State::status "{top}/status";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Get::List-Cleanup "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
"""


def fetch(
    packages: Sequence[Locked], suite: str, archive: Sequence[str], work: Path, notice: Callable[[str], None]
) -> list[str]:
    """Downloads the packages and returns the source lines of an archive of this suite that consists of them.

    apt verifies the archive's signatures, and every file is compared with the lock.  Raises UserError for a
    package that is gone or another one, HostError for a mirror that cannot be used.
    """
    apt = _Apt(work / "apt", archive)
    notice("reading the archive's index")
    apt.run(["apt-get", "update", "-q", "--error-on=any"])
    known = _known(apt, packages)
    _compare(packages, known)
    folder = work / "pool"
    folder.mkdir(mode=0o755)
    notice(f"downloading {len(packages)} packages")
    apt.run(["apt-get", "download", "-q", *(package.wanted for package in packages)], cwd=folder)
    stanzas = []
    files = {hash_file(bytes(path)).decode(): path for path in folder.iterdir()}
    for package in packages:
        path = files.get(package.sha256)
        if path is None:
            raise UserError(f"{package.name} {package.version} was downloaded, but is not the locked file")
        stanzas.append(f"{known[package.name, package.version, package.architecture]}\nFilename: {path.name}\n")
    describe(folder, suite, "\n".join(stanzas))
    return [f"deb [trusted=yes] file://{folder} {suite} main"]


def describe(folder: Path, suite: str, packages: str) -> None:
    """Makes a directory of packages an archive: its index and its Release file, which apt takes the suite from."""
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()  # fmt: skip
    index = folder / "dists" / suite / "main" / f"binary-{architecture}" / "Packages"
    index.parent.mkdir(parents=True)
    index.write_text(packages, encoding="utf-8")
    size, digest = index.stat().st_size, hash_file(bytes(index)).decode()
    (folder / "dists" / suite / "Release").write_text(
        f"Suite: {suite}\nCodename: {suite}\nComponents: main\nArchitectures: {architecture}\n"
        f"SHA256:\n {digest} {size} main/binary-{architecture}/Packages\n"
    )


def _compare(packages: Sequence[Locked], known: Mapping[tuple[str, str, str], str]) -> None:
    gone = [package for package in packages if (package.name, package.version, package.architecture) not in known]
    if gone:
        listed = ", ".join(f"{package.name} {package.version}" for package in gone)
        raise UserError(
            f"the archive no longer has {len(gone)} of {len(packages)} locked packages: {listed}",
            "give an archive that keeps old versions with --mirror, or build without --locked",
        )
    for package in packages:
        stanza = known[package.name, package.version, package.architecture]
        if f"SHA256: {package.sha256}" not in stanza:
            raise UserError(
                f"the archive has another file as {package.name} {package.version} than the locked one",
                "is it the same archive? see --mirror",
            )


def _known(apt: _Apt, packages: Sequence[Locked]) -> dict[tuple[str, str, str], str]:
    """The stanzas of these packages, without the field that says where the file is."""
    # A version that is not found makes apt-cache fail, after it has shown the others.
    text = apt.run(["apt-cache", "show", "-q", *(package.wanted for package in packages)], check=False)
    found: dict[tuple[str, str, str], str] = {}
    for block in text.split("\n\n"):
        for fields in dpkg.stanzas(block):
            lines = [line for line in block.strip().splitlines() if not line.startswith("Filename:")]
            key = (fields.get("Package", ""), fields.get("Version", ""), fields.get("Architecture", ""))
            found.setdefault(key, "\n".join(lines))
    return found


class _Apt:
    """apt with a state of its own, which knows one archive and no installed package."""

    def __init__(self, top: Path, archive: Sequence[str]) -> None:
        for name in ("lists/partial", "archives/partial", "state"):
            (top / name).mkdir(parents=True)
        (top / "status").touch()
        (top / "sources.list").write_text("".join(line + "\n" for line in archive))
        text = _CONFIGURATION.format(top=top)
        text += f'Dir::State::Lists "{top}/lists";\nDir::Cache "{top}";\nDir::State "{top}/state";\n'
        (top / "apt.conf").write_text(text + f'Dir::State::status "{top}/status";\n')
        self.top = top

    def run(self, command: Sequence[str], *, cwd: Path | None = None, check: bool = True) -> str:
        env = {**environment(self.top), "APT_CONFIG": str(self.top / "apt.conf")}
        done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise failure((done.stdout + done.stderr).splitlines())
        if done.returncode < 0:
            raise HostError(f"{command[0]} was killed by signal {-done.returncode}")
        return done.stdout
