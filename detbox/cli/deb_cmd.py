"""`detbox deb`: builds Debian packages reproducibly, and proves it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detbox.cli.helptext import HelpFormatter
from detbox.cli.messages import say
from detbox.cli.run_cmd import launch
from detbox.errors import BuildFailed, UserError
from detbox.values import duration_s, number

if TYPE_CHECKING:
    from detbox.deb.build import Job
    from detbox.deb.verify import Boxed, Native

_DESCRIPTION = """\
Builds Debian source packages so that every result is the same, bit for bit, on any
host.  SOURCE is PKG or PKG=VERSION (fetched and checked by apt), a .dsc file, or an
unpacked source directory; upstream:PKG is the release that PKG was made of, without
Debian's changes, built by its own configure and make.  The build root is an image (see `detbox image`) with the
build dependencies; it is kept for the next time.
"""

_EXAMPLES = """\
examples:
  detbox deb build hello --output results
  detbox deb verify --native hello          two builds compared; and without detbox?
  detbox deb rebuild hello_2.10-3_amd64.buildinfo
  detbox deb survey packages.txt --output survey

exit status: 0 built, identical; 1 the build failed, or something differs; others as `detbox run`
"""
_MAX_CPUS = 256
#: Of `detbox run`, which says more about them.
_CACHE = (
    ("--cache", "MODE", "answer the build, or parts of it, from the cache, and keep what is new (read, write, both, "
     "off; default: both; verify and survey use it for the first build alone)"),
    ("--cache-dir", "DIR", "the cache's directory"),
    ("--cache-remote", "URL", "share results with others"),
)  # fmt: skip


def add_parser(verbs: Any) -> None:
    """Adds the verb to argparse's subparsers."""
    parser = verbs.add_parser(
        "deb", help="build Debian packages reproducibly", description=_DESCRIPTION, epilog=_EXAMPLES,
        formatter_class=HelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    build = _action(actions, "build", "build a source package", "SOURCE", _build)
    build.add_argument("-q", "--quiet", action="store_true", help="do not show the build's log")
    verify = _action(actions, "verify", "build it on perturbed hosts, and compare", "SOURCE", _verify)
    verify.add_argument("-n", "--runs", metavar="N", help="number of builds (default: 2)")
    verify.add_argument("--native", action="store_true", help="also build twice without detbox")
    verify.add_argument("--json", action="store_true", help="print JSON instead of text")
    verify.add_argument("--perturb", metavar="NAME", action="append", default=[], help="change only this")
    verify.add_argument("--no-perturb", metavar="NAME", action="append", default=[], help="do not change this")
    _action(actions, "rebuild", "build what a .buildinfo describes, and compare", "FILE.buildinfo", _rebuild)
    survey = _action(actions, "survey", "verify many packages", "LIST", _survey)
    survey.add_argument("-j", "--jobs", metavar="N", help="packages at the same time (default: 1)")
    survey.add_argument("--perturb", metavar="NAME", action="append", default=[], help="change only this")
    survey.add_argument("--no-perturb", metavar="NAME", action="append", default=[], help="do not change this")
    survey.add_argument("--report-only", action="store_true", help="write the reports of what is known")


def _action(actions: Any, name: str, text: str, operand: str, body: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.add_argument("what", metavar=operand)
    parser.add_argument("-o", "--output", metavar="DIR", help="where the results go (default: current directory)")
    parser.add_argument("--suite", metavar="NAME", help="release (default: this system's, if there is a recipe for it)")
    parser.add_argument("--image", metavar="NAME", help="image to build in (default: SUITE-buildd)")
    parser.add_argument("--store", metavar="DIR", help="the store of images")
    parser.add_argument("--parallel", metavar="N", help="jobs and virtual CPUs (default: 4, on every host)")
    parser.add_argument("--nocheck", action="store_true", help="leave out the package's tests")
    parser.add_argument("--option", metavar="WORD", action="append", default=[], help="more of DEB_BUILD_OPTIONS")
    parser.add_argument("--profile", metavar="NAME", action="append", default=[], help="a build profile")
    parser.add_argument("--build", metavar="KIND", default="binary", help="binary, any or all (default: binary)")
    parser.add_argument("--timeout", metavar="TIME", help="end a build after so much real time")
    for name, metavar, text in _CACHE:
        given: dict[str, Any] = {"nargs": "?", "const": "both"} if name == "--cache" else {}
        parser.add_argument(name, metavar=metavar, help=text, **given)
    parser.set_defaults(body=lambda arguments: _guarded(body, arguments))
    return parser


def _guarded(body: Any, arguments: argparse.Namespace) -> int:
    for signo in (signal.SIGTERM, signal.SIGHUP):  # work directories are to vanish then as well
        signal.signal(signo, signal.default_int_handler)
    if arguments.suite is None:
        from detbox.images.recipe import default_suite

        arguments.suite = default_suite()
    return int(body(arguments))


@contextlib.contextmanager
def _job(arguments: argparse.Namespace, progress: Any) -> Iterator[Job]:
    """The source, fetched, in a work directory, and its build root."""
    from detbox.deb import build
    from detbox.deb.apt import Apt
    from detbox.deb.plan import BuildOptions
    from detbox.deb.root import build_root
    from detbox.images.store import Store

    options = BuildOptions(
        parallel=number(arguments.parallel, "--parallel", 1, _MAX_CPUS, default=4),
        flags=(*(["nocheck"] if arguments.nocheck else []), *arguments.option),
        kind=arguments.build, profiles=tuple(arguments.profile),
        timeout_s=duration_s(arguments.timeout, "--timeout"),
    )  # fmt: skip
    store = Store(Path(arguments.store) if arguments.store else None)
    image = store.resolve(arguments.image or f"{arguments.suite}-buildd")
    apt = Apt(arguments.suite)
    with build.work_directory() as work:
        progress("fetching the source")
        source = build.fetch(arguments.what, work, apt)
        progress("preparing the build root")
        root = build_root(store, image, apt, source)
        with store.hold(image):
            yield build.Job(source, work, root, options, _cache_of(arguments))


def _cache_of(arguments: argparse.Namespace) -> dict[str, str]:
    names = [name.removeprefix("--").replace("-", "_") for name, _, _ in _CACHE]
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def _build(arguments: argparse.Namespace) -> int:
    from detbox.cli.progress import phases
    from detbox.deb import build

    with ExitStack() as stack:
        with phases() as progress:
            job = stack.enter_context(_job(arguments, progress))
        say(f"{job.source.label}: source checked by {job.source.checked.removeprefix('by ')}")
        build.prepare(job)
        output = Path(arguments.output or ".")
        try:
            build.run(job, launch, show=not arguments.quiet)
        except BuildFailed as failed:
            build.place_log(job, output)
            raise BuildFailed(failed.message, f"its log: {output / job.log}") from None
        build.check_results(job)
        build.place(job.work, output)
        for name, digest in build.artefacts(job.work).items():
            say(f"{digest}  {name}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from detbox.cli.progress import phases
    from detbox.deb import attest, build, verify
    from detbox.report.verify import choose

    runs = number(arguments.runs, "-n", 2, 100, default=2)
    plain: Native | None = None
    with ExitStack() as stack:
        with phases() as progress:
            job = stack.enter_context(_job(arguments, progress))
            rows, user = choose(arguments.perturb, arguments.no_perturb, b"", job.spec())
            natively = verify.Natively(job, rows, progress, stack) if arguments.native else None
            try:
                result = verify.boxed(job, rows, user, runs, progress, stack, natively.first if natively else None)
            except BuildFailed as failed:
                if natively and not natively.first():
                    raise BuildFailed(f"{failed.message}; {verify.ANYWHERE}", failed.remedy) from None
                raise
            if natively:
                plain = natively.both(verify.tools(arguments.suite))
        report = verify.diffoscope(result.pair) if result.pair else ""
        statement = attest.text(job, result.artefacts, arguments.suite)
        if arguments.output and result.identical:
            name = job.log.removesuffix(".build") + ".intoto.json"
            build.place_text(Path(arguments.output), name, statement)
        if arguments.json:
            text = json.dumps(as_json(job, result, plain, report, json.loads(statement)), indent=1)
        else:
            text = "\n".join([*lines(job, result, plain), *report.splitlines()])
        sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
    return 0 if result.identical else 1


def as_json(job: Job, result: Boxed, plain: Native | None, report: str, statement: Any) -> dict[str, Any]:
    """What `--json` prints."""
    from dataclasses import asdict

    calls = result.stats.get("notifications", 0)
    return {
        "version": 1, "source": job.source.name, "source_version": job.source.version,
        "identical": result.identical, "differences": result.differences[:50], "artefacts": result.artefacts,
        "times": result.times, "calls": calls, "doubts": result.doubts[:20],
        "native": asdict(plain) if plain else None, "diffoscope": report[:20_000], "attestation": statement,
    }  # fmt: skip


def lines(job: Job, result: Boxed, plain: Native | None) -> list[str]:
    """The verdict as text."""
    verdict = "identical" if result.identical else "DIFFERENT"
    found = [f"{job.source.label}: {verdict} under detbox, {len(result.artefacts)} results"]
    found += [f"  {digest}  {name}" for name, digest in sorted(result.artefacts.items())]
    found += [f"  differs: {difference}" for difference in result.differences[:20]]
    if plain is not None and plain.built:
        found.append(f"natively: {len(plain.differing)} of {plain.compared} packages differ")
        found += [f"  {name}" for name in plain.files[:20]]
        found += [f"  looks like: {cause}" for cause in plain.causes]
        ratio = result.times["wall_s"] / plain.times["wall_s"] if plain.times.get("wall_s") else 0.0
        found.append(f"time: {ratio:.2f} times that of the native build")
    if plain is not None and plain.note:
        found.append(f"natively: {plain.note}")
    return found


def _rebuild(arguments: argparse.Namespace) -> int:
    from detbox.cli.progress import phases
    from detbox.deb import build, rebuild
    from detbox.deb.apt import Apt
    from detbox.images.store import Store

    store = Store(Path(arguments.store) if arguments.store else None)
    image = store.resolve(arguments.image or f"{arguments.suite}-buildd")
    with ExitStack() as stack:
        with phases() as progress:
            path = Path(arguments.what)
            record = rebuild.read(path)
            work = stack.enter_context(build.work_directory())
            job = rebuild.job(record, path.parent, store, image, Apt(arguments.suite), work, progress)
            build.prepare(job)
            build.run(dataclasses.replace(job, cache=_cache_of(arguments)), launch, show=False)
        result = rebuild.compare(record, build.artefacts(job.work))
        if arguments.output:
            build.place(job.work, Path(arguments.output))
    sys.stdout.write("\n".join(result.lines()) + "\n")
    return 0 if result.identical else 1


def _survey(arguments: argparse.Namespace) -> int:
    from detbox.deb import survey

    path = Path(arguments.what)
    if not path.is_file():
        raise UserError(f"{path}: no such list", "a list has one source package a line")
    options = [f"--suite={arguments.suite}"]
    for name in ("image", "store", "parallel"):
        if getattr(arguments, name):
            options.append(f"--{name}={getattr(arguments, name)}")
    for name, value in _cache_of(arguments).items():
        options.append(f"--{name.replace('_', '-')}={value if name != 'cache_dir' else os.path.abspath(value)}")
    options += ["--nocheck"] if arguments.nocheck else []
    options += [f"--no-perturb={name}" for name in arguments.no_perturb]
    options += [f"--perturb={name}" for name in arguments.perturb]
    return survey.main(
        path, Path(arguments.output or "."), options,
        jobs=number(arguments.jobs, "-j", 1, 64, default=1),
        limit_s=duration_s(arguments.timeout, "--timeout") or survey.LIMIT_S,
        build=not arguments.report_only, environment=dict(os.environ),
    )  # fmt: skip
