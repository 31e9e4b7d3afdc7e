"""`detbox trace`: records the events of a run, prints them, and finds where two runs part."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from typing import Any

from detbox.cli import run_cmd
from detbox.cli.messages import say
from detbox.errors import UserError

_DESCRIPTION = """\
Records the events of a deterministic run: every call that detbox decides, with its
process, virtual time, arguments and answer, and the start and end of every process.
The same job gives the same file, so the trace of a past run can be had at any time.
"""

_EXAMPLES = """\
examples:
  detbox trace -o build.trace -- make       record
  detbox trace show build.trace             print all events
  detbox trace show build.trace --process 1.2 --call openat --path /usr/include
  detbox trace diff one.trace other.trace   the first event in which they differ

`show` selects: --process LINEAGE (with its descendants), --call NAME[,NAME…],
--path TEXT (part of the path).  `diff` exits with 0 if the traces are the same,
1 if they differ.
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb to argparse's subparsers."""
    parser = verbs.add_parser(
        "trace",
        help="record the events of a run, print them, compare two runs",
        usage="detbox trace -o FILE [run options] -- CMD [ARG...]\n"
        "       detbox trace show FILE [--process LINEAGE] [--call NAMES] [--path TEXT]\n"
        "       detbox trace diff FILE FILE",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="the trace file to write")
    parser.add_argument(
        "--results",
        action="store_true",
        help="also record the results of calls that the kernel executes (slower)",
    )
    run_cmd.add_run_options(parser)
    parser.set_defaults(body=partial(run, type(parser)))


def run(parser_class: type[argparse.ArgumentParser], arguments: argparse.Namespace) -> int:
    """The verb's body: returns the exit status."""
    words = arguments.command
    if arguments.output is None:
        if words and words[0] in _ACTIONS:
            return _ACTIONS[words[0]](parser_class, words[1:])
        raise UserError("where to write the trace?", "detbox trace -o FILE -- CMD, or: detbox trace show FILE")
    spec = run_cmd.spec_from(arguments)
    spec = spec.with_changes(record=os.path.abspath(arguments.output), record_results=arguments.results)
    from detbox.container.launch import run as launch

    outcome = launch(spec)
    run_cmd.report(spec, outcome)
    return run_cmd.status_of(spec, outcome)


def _show(parser_class: type[argparse.ArgumentParser], words: list[str]) -> int:
    from pathlib import Path

    from detbox.kernel.numbers import NUMBERS
    from detbox.recorder.read import Trace, events
    from detbox.recorder.show import line

    parser = parser_class(prog="detbox trace show", allow_abbrev=False)
    parser.add_argument("file", type=Path)
    parser.add_argument("--process", metavar="LINEAGE", help="this process and its descendants")
    parser.add_argument("--call", metavar="NAMES", help="only these calls, separated by commas")
    parser.add_argument("--path", metavar="TEXT", help="only events that name a path with this text")
    chosen = parser.parse_args(words)
    names = chosen.call.split(",") if chosen.call else []
    unknown = [name for name in names if name not in NUMBERS]
    if unknown:
        raise UserError(f"no such system call: {', '.join(unknown)}")
    numbers = {NUMBERS[name] for name in names}
    trace = Trace(chosen.file)
    for event, threads in events(trace):
        if numbers and event.nr not in numbers:
            continue
        if chosen.path and os.fsencode(chosen.path) not in event.path:
            continue
        if chosen.process and not _below(threads.of(event).lineage, chosen.process):
            continue
        sys.stdout.write(line(event, threads).encode("utf-8", "backslashreplace").decode() + "\n")
    sys.stdout.flush()
    _say_if_cut(trace)
    return 0


def _below(lineage: str, top: str) -> bool:
    return lineage == top or lineage.startswith((top + ".", top + "/"))


def _diff(parser_class: type[argparse.ArgumentParser], words: list[str]) -> int:
    from pathlib import Path

    from detbox.recorder.compare import first_divergence
    from detbox.recorder.read import Trace

    parser = parser_class(prog="detbox trace diff", allow_abbrev=False)
    parser.add_argument("files", type=Path, nargs=2, metavar="FILE")
    left, right = (Trace(path) for path in parser.parse_args(words).files)
    if left.description != right.description:
        say("the two traces are of different jobs")
    found = first_divergence(left, right)
    if found is None:
        for trace in (left, right):
            _say_if_cut(trace)
        sys.stdout.write("the traces are the same\n")
        return 0
    text = "\n".join(found.lines()) + "\n"
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode())
    sys.stdout.flush()
    return 1


def _say_if_cut(trace: Any) -> None:
    if not trace.complete:
        say(f"{trace.path} ends early: the run was ended before it could close the file")


_ACTIONS = {"show": _show, "diff": _diff}
