"""`detbox trace`: records the events of a run, prints them, and finds where two runs part."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from detbox.cli import run_cmd, trace_actions
from detbox.cli.helptext import HelpFormatter
from detbox.errors import HostError, UserError
from detbox.report import leftovers
from detbox.spec import RunSpec

_DESCRIPTION = """\
Records the events of a deterministic run: every call that detbox decides, with its
process, virtual time, arguments, result and checksums of its data, and the start and
end of every process.  The same job gives the same file, so the trace of a past run
can be had at any time.
"""

_EXAMPLES = """\
examples:
  detbox trace -o build.trace -- make       record
  detbox trace show build.trace --call %file --path '*.h'
  detbox trace query build.trace "SELECT command FROM processes WHERE status <> 0"
  detbox trace graph build.trace -o build.svg
  detbox trace diff one.trace other.trace   the first event in which they differ

`detbox trace ACTION --help` says more about show, query, graph and diff.
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb to argparse's subparsers."""
    parser = verbs.add_parser(
        "trace",
        help="record the events of a run; print, query, draw and compare them",
        usage="detbox trace -o FILE [run options] -- CMD [ARG...]\n"
        "       detbox trace show FILE [selection]\n"
        "       detbox trace query FILE 'SELECT …'\n"
        "       detbox trace graph FILE [-o OUT.svg|OUT.dot]\n"
        "       detbox trace diff FILE FILE",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="the trace file to write")
    parser.add_argument(
        "--no-results",
        action="store_true",
        help="leave out the results of calls that the kernel executes (records faster)",
    )
    parser.add_argument(
        "--real-times",
        metavar="FILE",
        help="also write how long each process really took, for `detbox trace graph`; differs each time",
    )
    run_cmd.add_run_options(parser)
    parser.set_defaults(body=partial(run, type(parser)))


def run(parser_class: type[argparse.ArgumentParser], arguments: argparse.Namespace) -> int:
    """The verb's body: returns the exit status."""
    words = arguments.command
    if arguments.output is None:
        if words and words[0] in trace_actions.ACTIONS:
            return trace_actions.ACTIONS[words[0]](parser_class, words[1:])
        raise UserError("where to write the trace?", "detbox trace -o FILE -- CMD, or: detbox trace show FILE")
    spec = run_cmd.spec_from(arguments)
    if spec.dry_run:
        raise UserError("--dry-run records nothing", "detbox run --dry-run shows the container's set-up")
    from detbox.container.launch import run as launch

    with ExitStack() as files:
        record, times = (
            files.enter_context(_written(os.path.abspath(path), spec)) if path else None
            for path in (arguments.output, arguments.real_times)
        )
        spec = spec.with_changes(record=record, record_times=times, record_results=not arguments.no_results)
        outcome = launch(spec)
    run_cmd.report(spec, outcome)
    leftovers.collect()
    if outcome.trouble:
        raise HostError(outcome.trouble, "the run itself has ended, and its results are kept")
    return run_cmd.status_of(spec, outcome)


@contextmanager
def _written(path: str, spec: RunSpec) -> Iterator[str]:
    """The path under which the run writes the file ``path``.

    In a directory that the command sees it is a file without a name, which gets its name at the end: the command
    would see it grow.
    """
    tops = [os.path.realpath(top) for top in (spec.workdir, *(mount.src for mount in spec.mounts))]
    place = os.path.realpath(os.path.dirname(path))
    fd = -1
    if not os.path.isdir(path) and any(os.path.commonpath([top, place]) == top for top in tops):
        with suppress(OSError):  # not every file system has such files
            fd = os.open(place, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    if fd < 0:
        yield path
        return
    try:
        yield f"/proc/self/fd/{fd}"  # the run's processes inherit it
    finally:
        draft = f"{path}.{os.getpid()}"
        try:
            if os.fstat(fd).st_size:  # otherwise the run has not even begun
                os.link(f"/proc/self/fd/{fd}", draft, src_dir_fd=fd)  # without a src_dir_fd, link(2) does not follow
                os.replace(draft, path)
        except OSError as error:
            raise HostError(f"{path} cannot be written: {error.strerror}", "give another name") from None
        finally:
            os.close(fd)
