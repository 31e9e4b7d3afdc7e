"""What a build executes: the same script in the container and, for comparison, without detbox."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from detbox.deb.control import without_epoch
from detbox.deb.root import BUILD_DIR, BUILDER
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

# How a release is built that nobody has packaged.  The first word is the number of jobs, the second where to install.
_RELEASE = r"""
[ -f configure ] || [ ! -f configure.ac ] || autoreconf -fi || exit
if [ -f configure ]; then
    ./configure --prefix=/usr && make -j"$1" && make install DESTDIR="$2"
elif [ -f CMakeLists.txt ]; then
    cmake -S . -B build -DCMAKE_INSTALL_PREFIX=/usr && cmake --build build -j "$1" && DESTDIR="$2" cmake --install build
elif [ -f meson.build ]; then
    meson setup build --prefix=/usr && ninja -C build -j "$1" && DESTDIR="$2" meson install -C build
elif [ -f Makefile.PL ]; then
    perl Makefile.PL INSTALLDIRS=vendor && make -j"$1" && make install DESTDIR="$2"
elif [ -f dune-project ]; then
    dune build -j "$1" @install && dune install --prefix=/usr --destdir="$2"
elif [ -f Makefile ] || [ -f makefile ]; then
    make -j"$1" && cp -R . "$2"
else
    echo "no build system that is known here"; exit 1
fi
"""

# Owners in the container are virtual, so the builder can be given root's powers for a command: what was the builder's
# is root's meanwhile, as fakeroot shows it.  The environment is an argument, since a set-user-ID program loses some of
# it (ld.so(8)).
_GAIN = r"""
if [ "$(id -u)" = 0 ]; then
    mkdir -p /run/detbox && cd /run/detbox || exit 1
    install -m 4755 "$(command -v setpriv)" setpriv || exit 1
    cat >gain <<'END'
#!/bin/sh
exec /run/detbox/setpriv --reuid=0 --regid=0 --clear-groups /run/detbox/as-root "$(export -p)" "$@"
END
    cat >as-root <<'END'
#!/bin/sh
eval "$1"
shift
chown -hR 0:0 PLACE
"$@"
status=$?
chown -hR BUILDER: PLACE
exit $status
END
    chmod 755 gain as-root && chown -R BUILDER: WORK || exit 1
    exec setpriv --reuid=BUILDER --regid=BUILDER --init-groups sh "$0"
fi
"""


#: Where a source can be unpacked: what Debian's tools record of a path begins so.
PATH = re.compile(rf"{BUILD_DIR}(?:/[A-Za-z0-9][A-Za-z0-9+.~_-]*)+")


@dataclass(frozen=True)
class BuildOptions:
    """``parallel``: jobs, and virtual processors.  ``flags``: more words of DEB_BUILD_OPTIONS, such as nocheck."""

    parallel: int = 4
    flags: tuple[str, ...] = ()
    kind: str = "binary"
    profiles: tuple[str, ...] = ()
    timeout_s: float | None = None
    path: str = ""  # of the unpacked source in the guest; "": the usual one
    variables: tuple[tuple[str, str], ...] = ()  # more of the environment
    entry: str = ""  # what precedes debian/changelog, of a build that only changes the version

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"--build {self.kind}: not one of {', '.join(KINDS)}")
        if self.path and not PATH.fullmatch(self.path):
            raise UserError(f"{self.path} is not a path below {BUILD_DIR}")

    def environment(self) -> dict[str, str]:
        """What the build declares."""
        env = {
            "DEB_BUILD_OPTIONS": " ".join([f"parallel={self.parallel}", *self.flags]),
            "HOME": "/nonexistent",
            "LC_ALL": "C.UTF-8",
            "TERM": "unknown",  # as on a build daemon
            "XDG_RUNTIME_DIR": "/nonexistent",
            **dict(self.variables),
        }
        if self.profiles:
            env["DEB_BUILD_PROFILES"] = " ".join(self.profiles)
        return env


def stem(source: Source, architecture: str = "amd64") -> str:
    """The beginning of the names of .changes, .buildinfo and log, and of the results of a release."""
    return f"{source.name}_{without_epoch(source.version)}_{'upstream' if source.release else architecture}"


def command(source: Source, options: BuildOptions) -> str:
    """What builds the source, for people."""
    return "the release's own build system" if source.release else f"dpkg-buildpackage {KINDS[options.kind]}"


def gains_root(source: Source) -> bool:
    """Whether a part of the build has to run as root (Rules-Requires-Root)."""
    return not source.release and source.needs_root != "no"


def script(
    source: Source, options: BuildOptions, base: str = BUILD_DIR, work: str = "/work", under: str = "",
    fakeroot: bool = False,
) -> str:  # fmt: skip
    """The shell script of a build.

    ``base``: where the source is unpacked.  ``work``: the work directory.  ``under``: what precedes the build command.
    ``fakeroot``: what has to run as root is run with it.  Otherwise owners have to be virtual, and root has to start
    the script of such a source, which goes on as the builder.
    """
    place = options.path.rpartition("/")[0] or f"{base}/{source.name}"
    gain = ""
    if gains_root(source) and not fakeroot:
        gain = _GAIN.replace("BUILDER", BUILDER).replace("WORK", work).replace("PLACE", shlex.quote(place))
    q = shlex.quote
    log = f"{stem(source)}.build"
    if source.release:
        steps = _release(source, options, work, under)
    else:
        command = "-rfakeroot" if fakeroot else "-r/run/detbox/gain"
        steps = _package(source, options, work, under, command if gains_root(source) else "")
    return f"""\
# Unpacks and builds {source.label}.
umask 022
{gain}\
mkdir -p {q(place)} {work}/{OUT} && cd {q(place)} || exit 1
build() {{
    {steps}
}}
{{ build 2>&1 </dev/null; echo $? >{work}/{STATUS}; }} | perl -e {q(_STAMPS)} {work}/{OUT}/{q(log)}
read status <{work}/{STATUS}
rm {work}/{STATUS}
[ "$status" = 0 ] || exit "$status"
cd {q(place)} || exit 1
{_collect(source, work)}
"""


def _package(source: Source, options: BuildOptions, work: str, under: str, gain: str) -> str:
    """``gain``: dpkg-buildpackage's option that names the command which gains root."""
    q = shlex.quote
    if source.dsc:
        tree = options.path.rpartition("/")[2]
        unpack = f"dpkg-source --no-check -x {q(f'{work}/{SOURCES}/{source.dsc}')} {q(tree) if tree else ''}"
        enter = f"cd {q(tree)}" if tree else "cd */"
    else:
        # Modes as dpkg-source gives them: those of a directory depend on who has made it.
        unpack = f"cp -R {q(f'{work}/{SOURCES}/{source.tree}')} . && chmod -R u+rwX,go+rX,go-w {q(source.tree)}"
        enter = f"cd {q(source.tree)}"
    if options.entry:
        enter += (
            f" && printf '%s\\n' {q(options.entry)} | cat - debian/changelog >../entry && mv ../entry debian/changelog"
        )
    return f"{unpack} && {enter} && {under}dpkg-buildpackage -us -uc {KINDS[options.kind]} {gain}".rstrip()


def _release(source: Source, options: BuildOptions, work: str, under: str) -> str:
    q = shlex.quote
    tree = q(f"{source.name}-{source.version}")
    tarball = q(f"{work}/{SOURCES}/{source.release}")
    unpack = f"mkdir {tree} installed && tar -xf {tarball} -C {tree} --strip-components=1 --no-same-owner"
    return f'{unpack} && cd {tree} && {under}sh -c {q(_RELEASE)} sh {options.parallel} "$PWD/../installed"'


def _collect(source: Source, work: str) -> str:
    """The results to their place: what was installed as a tarball, whose wrapping is as neutral as that of a .deb."""
    if source.release:
        neutral = f"--sort=name --owner=0 --group=0 --numeric-owner --mtime=@{source.epoch_s}"
        return f"tar {neutral} -cf {work}/{OUT}/{shlex.quote(stem(source))}.tar -C installed ."
    return f"cp -p *.changes $(sed -n '/^Checksums-Sha256:/,/^[^ ]/s/^ [^ ]* [^ ]* //p' *.changes) {work}/{OUT}/"
