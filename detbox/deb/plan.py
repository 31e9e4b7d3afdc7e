"""What a build executes: the same script in the container and, for comparison, without detbox."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from detbox.deb.control import without_epoch
from detbox.deb.root import BUILD_DIR
from detbox.deb.source import Source
from detbox.errors import UserError

#: Names in the work directory.
SOURCES, SCRIPT, OUT, STATUS = "source", "build.sh", "out", "status"
#: What dpkg-buildpackage builds: with -b, -B and -A.
KINDS = {"binary": "-b", "any": "-B", "all": "-A"}

# Each line of the log begins with the time since the build's start, as the build itself could have read it.
_STAMPS = r"""
use Time::HiRes "time"; $| = 1; my $start = time;
open my $log, ">", $ARGV[0] or die "$ARGV[0]: $!"; shift @ARGV;
while (<STDIN>) { my $line = sprintf("[%9.3f] %s", time - $start, $_); print $line; print $log $line }
close $log or die "log: $!";
"""


@dataclass(frozen=True)
class BuildOptions:
    """``parallel``: jobs, and virtual processors.  ``flags``: more words of DEB_BUILD_OPTIONS, such as nocheck."""

    parallel: int = 4
    flags: tuple[str, ...] = ()
    kind: str = "binary"
    profiles: tuple[str, ...] = ()
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"--build {self.kind}: not one of {', '.join(KINDS)}")

    def environment(self) -> dict[str, str]:
        """What the build declares."""
        env = {
            "DEB_BUILD_OPTIONS": " ".join([f"parallel={self.parallel}", *self.flags]),
            "HOME": "/nonexistent",
            "LC_ALL": "C.UTF-8",
            "TERM": "unknown",  # as on a build daemon
            "XDG_RUNTIME_DIR": "/nonexistent",
        }
        if self.profiles:
            env["DEB_BUILD_PROFILES"] = " ".join(self.profiles)
        return env


def stem(source: Source, architecture: str = "amd64") -> str:
    """The beginning of the names of .changes, .buildinfo and log."""
    return f"{source.name}_{without_epoch(source.version)}_{architecture}"


def script(source: Source, options: BuildOptions, base: str = BUILD_DIR, work: str = "/work", under: str = "") -> str:
    """The shell script of a build.

    ``base``: where the source is unpacked.  ``work``: the work directory.  ``under``: what precedes the build command.
    """
    place = f"{base}/{source.name}"
    q = shlex.quote
    log = f"{stem(source)}.build"
    if source.dsc:
        unpack = f"dpkg-source --no-check -x {q(f'{work}/{SOURCES}/{source.dsc}')}"
        enter = "cd */"
    else:
        # Modes as dpkg-source gives them: those of a directory depend on who has made it.
        unpack = f"cp -R {q(f'{work}/{SOURCES}/{source.tree}')} . && chmod -R u+rwX,go+rX,go-w {q(source.tree)}"
        enter = f"cd {q(source.tree)}"
    gain = "" if source.needs_root == "no" else " -rfakeroot"
    return f"""\
# Unpacks and builds {source.label}.
umask 022
mkdir -p {q(place)} {work}/{OUT} && cd {q(place)} || exit 1
build() {{
    {unpack} && {enter} && {under}dpkg-buildpackage -us -uc {KINDS[options.kind]}{gain}
}}
{{ build 2>&1 </dev/null; echo $? >{work}/{STATUS}; }} | perl -e {q(_STAMPS)} {work}/{OUT}/{q(log)}
read status <{work}/{STATUS}
rm {work}/{STATUS}
[ "$status" = 0 ] || exit "$status"
cd {q(place)} || exit 1
cp -p *.changes $(sed -n '/^Checksums-Sha256:/,/^[^ ]/s/^ [^ ]* [^ ]* //p' *.changes) {work}/{OUT}/
"""
