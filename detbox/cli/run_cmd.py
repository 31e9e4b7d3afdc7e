"""`detbox run`: runs a command deterministically."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from detbox.cli.helptext import HelpFormatter
from detbox.cli.messages import say
from detbox.errors import DetboxError, NotDeterministic, UserError
from detbox.options import OPTIONS, WORDS, Kind, Option
from detbox.report import leftovers
from detbox.spec import RunSpec, make_spec

if TYPE_CHECKING:
    from detbox.cache.remote import Access
    from detbox.container.outcome import Outcome

_DESCRIPTION = """\
Runs CMD in a deterministic container.  Its outputs are a pure function of the
image, the work directory and other inputs, the command line, the declared
environment, standard input and the options below.  Without --image the container
shows the host's own file system; changes to it vanish.
"""

_EXAMPLES = """\
examples:
  detbox run -- python3 -c 'import random; print(random.random())'
  detbox run -C project --env CFLAGS=-O2 -- make -j4
  detbox run --ro ~/data:/data --seed 7 -- ./simulate /data/in.csv
  detbox run --epoch 2020-02-29 -- date

exit status: the command's own, 128+N if signal N killed it; detbox's own are
  121 limit exceeded, 122 not deterministic, 123 deadlock, 124 timeout,
  125 detbox failed, 126 command not executable, 127 command not found,
  130 interrupted
"""

#: How many different doubts are printed without -v.
_DOUBTS_SHOWN = 10


def add_parser(verbs: Any) -> None:
    """Adds the verb to argparse's subparsers."""
    parser = verbs.add_parser(
        "run",
        help="run a command deterministically",
        usage="detbox run [options] -- CMD [ARG...]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add_run_options(parser)
    # For detbox.api: one line of JSON goes to this descriptor, and detbox's own messages go nowhere else.
    parser.add_argument("--result-fd", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(body=run)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options of a run and its command, for every verb that takes them."""
    for option in OPTIONS:
        flags = ([f"-{option.short}"] if option.short else []) + [f"--{option.name}"]
        if option.kind in WORDS:
            _add_words(parser, option)
        elif option.kind is Kind.SWITCH:
            parser.add_argument(*flags, action="store_true", help=option.help)
        elif option.kind is Kind.COUNT:
            parser.add_argument(*flags, action="count", help=option.help)
        elif option.kind in (Kind.PATHS, Kind.ENV):
            parser.add_argument(*flags, action="append", metavar=option.metavar, help=option.help)
        else:
            parser.add_argument(*flags, metavar=option.metavar, help=option.help)
    parser.add_argument(
        "--config", metavar="FILE", help="read options from a TOML file; the command line wins"
    )
    # For tests: treat this host as one without CPUID faulting.
    parser.add_argument("--cpuid-backend", help=argparse.SUPPRESS)
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="CMD", help="the command and its arguments"
    )


def _add_words(parser: argparse.ArgumentParser, option: Option) -> None:
    """``--name`` alone or ``--name=WORD``, never ``--name WORD``: the next word is the command."""
    words, alone = WORDS[option.kind]
    shown = f"(={option.metavar}) {option.help}"
    parser.add_argument(f"--{option.name}", dest=option.key, action="store_const", const=alone, help=shown)
    for word in words:
        parser.add_argument(
            f"--{option.name}={word}", dest=option.key, action="store_const", const=word, help=argparse.SUPPRESS
        )


def run(arguments: argparse.Namespace) -> int:
    """The verb's body: returns the exit status."""
    if arguments.result_fd is not None:
        return _run_for_program(arguments)
    spec = spec_from(arguments)
    if spec.dry_run:
        _describe(spec)
        return 0
    try:
        outcome = launch(spec)
    except DetboxError as error:
        if spec.stats and error.stats:
            say("\n".join(stats_lines(error.stats)))
        raise
    report(spec, outcome)
    leftovers.collect()
    return status_of(spec, outcome)


def spec_from(arguments: argparse.Namespace) -> RunSpec:
    """The frozen run description of a parsed command line.  Raises UserError."""
    given = {option.key: getattr(arguments, option.key) for option in OPTIONS}
    given["stdin_closed"] = arguments.stdin_closed
    command = arguments.command
    if command and command[0] == "--":
        command = command[1:]
    if arguments.config is not None:
        from detbox.config import merge, read_config

        given = merge(read_config(arguments.config), given)
    given["cpuid_backend"] = arguments.cpuid_backend
    try:
        cwd = os.getcwd()
    except FileNotFoundError:
        raise UserError("the current directory does not exist any more", "go to another one") from None
    return make_spec(command, given, os.environb, cwd)


def status_of(spec: RunSpec, outcome: Outcome) -> int:
    """The exit status: the guest's, unless a doubt is fatal."""
    if spec.strict and (outcome.doubts or outcome.unknown_calls):
        return NotDeterministic.status
    return int(outcome.status)


def report(spec: RunSpec, outcome: Outcome) -> None:
    """Says on standard error what the run must not keep to itself, and the statistics if asked for."""
    lines: list[str] = []
    if outcome.unknown_calls:
        counts = ", ".join(f"{name} ({count})" for name, count in sorted(outcome.unknown_calls.items()))
        lines.append(f"system calls that detbox does not know, answered with ENOSYS: {counts}")
    doubts = list(dict.fromkeys(outcome.doubts))
    shown = doubts if spec.verbose else doubts[:_DOUBTS_SHOWN]
    lines += [f"not promised to be deterministic: {doubt}" for doubt in shown]
    if len(shown) < len(doubts):
        lines.append(f"… and {len(doubts) - len(shown)} more (-v shows all)")
    if "cache trouble" in outcome.stats:
        lines.append(f"the cache: {outcome.stats['cache trouble']}")
    if spec.stats:
        lines += stats_lines(outcome.stats)
    if lines:
        say("\n".join(lines))


def stats_lines(stats: dict[str, Any], indent: str = "") -> list[str]:
    """Statistics as text: nested tables are indented, their largest numbers first."""
    lines = []
    for name, value in stats.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{name}:")
            numeric = all(isinstance(count, (int, float)) for count in value.values())
            rows = (
                sorted(value.items(), key=lambda row: (-row[1], row[0])) if numeric else list(value.items())
            )
            lines += stats_lines(dict(rows), indent + "  ")
        else:
            text = f"{value:.3f}" if isinstance(value, float) else str(value)
            lines.append(f"{indent}{name:<{max(1, 28 - len(indent))}} {text:>12}")
    return lines


def launch(spec: RunSpec) -> Outcome:
    """Run the command, or answer it from the cache.  Raises DetboxError."""
    if spec.cache and spec.record is None:
        return _cached(spec)
    return _for_real(spec)


def _for_real(spec: RunSpec) -> Outcome:
    from detbox.container.launch import run

    return run(spec)


def _cached(spec: RunSpec) -> Outcome:
    from detbox.cache import job
    from detbox.container.outcome import Outcome
    from detbox.container.sources import sources

    return job.run(spec, _for_real, Outcome, sources(spec), _access() if spec.cache_remote else None)


def _access() -> Access:
    """The secrets for a remote cache, which must not be in anybody's command line."""
    from detbox.cache.remote import Access

    token = os.fsdecode(os.environb.get(b"DETBOX_CACHE_TOKEN", b""))
    return Access(token, os.environb.get(b"DETBOX_CACHE_SIGNATURE", b""))


def _describe(spec: RunSpec) -> None:
    from detbox.container.plan import describe

    sys.stdout.write(describe(spec).rstrip("\n") + "\n")
    sys.stdout.flush()


def _run_for_program(arguments: argparse.Namespace) -> int:
    """The same run for ``detbox.api``: what a person would read goes to the result descriptor as JSON."""
    import json

    end_with_caller()
    os.set_inheritable(arguments.result_fd, False)
    answer: dict[str, Any] = {"version": 1}
    try:
        spec = spec_from(arguments)
        outcome = launch(spec)
        status = status_of(spec, outcome)
        answer.update(
            status=status, stats=outcome.stats, doubts=outcome.doubts, unknown=outcome.unknown_calls
        )
        if status == NotDeterministic.status and status != outcome.status:
            reasons = [*outcome.doubts, *(f"unknown system call {name}" for name in outcome.unknown_calls)]
            answer.update(error="NotDeterministic", message="; ".join(dict.fromkeys(reasons)), remedy="")
    except DetboxError as error:
        status = error.status
        answer.update(status=status, error=type(error).__name__, message=error.message, remedy=error.remedy)
        answer["stats"] = error.stats
    except Exception:  # the edge of the program: whatever arrives here is our bug
        import traceback

        status = DetboxError.status
        answer.update(status=status, error="InternalError", message=traceback.format_exc(), remedy="")
    with open(arguments.result_fd, "w", encoding="utf-8") as file:
        file.write(json.dumps(answer) + "\n")
    return status


def end_with_caller() -> None:
    """A caller that is killed leaves no run behind: SIGTERM comes when the thread that waits for us ends."""
    from detbox.kernel import _native

    pr_set_pdeathsig = 1
    _native.prctl(pr_set_pdeathsig, signal.SIGTERM)
