"""`detbox trace`: records the events of a run, prints them, and finds where two runs part."""

from __future__ import annotations

import argparse
import os
from functools import partial
from typing import Any

from detbox.cli import run_cmd, trace_actions
from detbox.errors import HostError, UserError
from detbox.report import leftovers

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
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    real_times = os.path.abspath(arguments.real_times) if arguments.real_times else None
    spec = spec.with_changes(
        record=os.path.abspath(arguments.output), record_results=not arguments.no_results, record_times=real_times
    )
    from detbox.container.launch import run as launch

    outcome = launch(spec)
    run_cmd.report(spec, outcome)
    leftovers.collect()
    if outcome.trouble:
        raise HostError(outcome.trouble, "the run itself has ended, and its results are kept")
    return run_cmd.status_of(spec, outcome)
