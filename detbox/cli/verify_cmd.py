"""`detbox verify`: runs a command several times on perturbed hosts and says whether anything differs."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from detbox.cli import run_cmd
from detbox.errors import DetboxError, InternalError, UserError
from detbox.spec import RunSpec

if TYPE_CHECKING:
    from detbox.report.verdict import Verdict
    from detbox.report.verify import Comparison, Progress, Verification

_DESCRIPTION = """\
Runs CMD several times under detbox, each time on a fresh copy of the work directory
(yours is never touched) and on a host that differs in everything that can be changed:
time, name, user, environment, umask, locale, path, order of files, load and more.
Then compares status, output and the whole output tree; nothing is normalised.  If
something differs, both runs are recorded and the first divergent event is named.
"""

_EXAMPLES = """\
examples:
  detbox verify -- make -j4                   are two builds identical?
  detbox verify --native -- make -j4          and what differs without detbox?
  detbox verify -n 5 --no-perturb load -- ./simulate
  detbox verify --native --perturb umask --perturb path -- ./configure

exit status: 0 identical, 1 different, and as `detbox run` for failures of detbox
"""

MAX_RUNS = 100


def add_parser(verbs: Any) -> None:
    """Adds the verb to argparse's subparsers."""
    parser = verbs.add_parser(
        "verify",
        help="prove that runs are identical, or show where they part",
        usage="detbox verify [-n N] [--native] [options] [run options] -- CMD [ARG...]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-n", "--runs", metavar="N", default="2", help="number of runs (default: 2)")
    parser.add_argument(
        "--native", action="store_true", help="also compare runs without detbox, in a plain container"
    )
    parser.add_argument(
        "--perturb", metavar="NAME", action="append", default=[], help="change only this (may be repeated)"
    )
    parser.add_argument(
        "--no-perturb", metavar="NAME", action="append", default=[], help="do not change this (may be repeated)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    # One run of a verification, in a process of its own: FILE holds the frozen run description.
    parser.add_argument("--one", metavar="FILE", help=argparse.SUPPRESS)
    # For tests: let this call through to the kernel.
    parser.add_argument("--leak", default="", help=argparse.SUPPRESS)
    run_cmd.add_run_options(parser)
    parser.set_defaults(body=run)


def run(arguments: argparse.Namespace) -> int:
    """The verb's body: returns the exit status."""
    if arguments.one is not None:
        return _one(arguments.one)
    import json

    from detbox.cli.progress import phases
    from detbox.kernel.numbers import NUMBERS
    from detbox.report.verify import Verification, choose
    from detbox.values import number

    spec = run_cmd.spec_from(arguments)
    if arguments.leak and arguments.leak not in NUMBERS:
        raise UserError(f"--leak {arguments.leak}: no such system call")
    spec = spec.with_changes(leak=arguments.leak)
    runs = number(arguments.runs, "-n", 2, MAX_RUNS, default=2)
    for signo in (signal.SIGTERM, signal.SIGHUP):  # the runs and their copies are to vanish then as well
        signal.signal(signo, signal.default_int_handler)
    stdin = _stdin(spec)
    rows, user = choose(arguments.perturb, arguments.no_perturb, stdin)
    with Verification(spec, stdin, runs, rows, user) as verification:
        with phases() as progress:
            verdict = _verify(verification, rows, arguments.native, progress)
        if arguments.json:
            text = json.dumps(verdict.as_json(), indent=2)
        else:
            text = "\n".join(verdict.lines())
        sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
        sys.stdout.flush()
    return 0 if verdict.identical else 1


def _verify(verification: Verification, rows: Any, native: bool, progress: Progress) -> Verdict:
    from detbox.report.verdict import Verdict
    from detbox.report.verify import first_comparison

    plain = first_comparison(verification.natively(progress)) if native else None
    boxed = first_comparison(verification.under_detbox(progress))
    causes, divergence, notes = [], None, []
    if plain is not None and plain.differences:
        from detbox.report.isolate import Investigation

        search = Investigation(verification, plain, boxed, progress)
        causes = search.causes()
        notes.append(search.note)
    if boxed.differences:
        divergence, note = _divergence(verification, boxed, progress)
        notes.append(note)
    return Verdict(verification.spec, rows, boxed, plain, causes, divergence, "\n".join(filter(None, notes)))


def _divergence(verification: Verification, boxed: Comparison, progress: Progress) -> tuple[Any, str]:
    """Record the two runs that differ, on the same hosts, and find where they part."""
    from pathlib import Path

    from detbox.recorder.compare import first_divergence
    from detbox.recorder.read import Trace

    verification.hosts = [boxed.runs[0].host, boxed.runs[boxed.other].host]
    for results in (True, False):
        paths = [str(verification.places.disk / f"trace-{results}-{place}") for place in range(2)]
        try:
            verification.under_detbox(
                lambda phase: progress("recording, " + phase), record=paths.__getitem__, record_results=results
            )
            found = first_divergence(Trace(Path(paths[0])), Trace(Path(paths[1])))
        except DetboxError as error:
            return None, f"the runs could not be recorded: {error.message}"
        if found is not None:
            return found, ""
    return None, (
        "no event differs between the recorded runs: the difference comes from an instruction, a mapping or the "
        "host's timing, or does not come each time"
    )


def _stdin(spec: RunSpec) -> bytes:
    """All of the command's standard input; a terminal counts as an empty one."""
    if spec.stdin is not None:
        with open(spec.stdin, "rb") as file:
            return file.read()
    if spec.stdin_closed or os.isatty(0):
        return b""
    return sys.stdin.buffer.read()


def _one(order: str) -> int:
    """One run: what to do is in the file ``order``; the current directory is the work directory."""
    import json

    with open(order, encoding="utf-8") as file:
        given = json.load(file)
    answer: dict[str, Any] = {}
    try:
        if "plain" in given:
            status = _plain(given["plain"], answer)
        else:
            status = _boxed(given["spec"], answer)
    except DetboxError as error:
        status = error.status
        answer = {"error": type(error).__name__, "message": error.message, "remedy": error.remedy}
    except Exception:  # the edge of the program: whatever arrives here is our bug
        import traceback

        status = InternalError.status
        answer = {"error": "InternalError", "message": traceback.format_exc(), "remedy": ""}
    with open(given["answer"], "w", encoding="utf-8") as file:
        json.dump(answer, file)
    return status


def _boxed(text: str, answer: dict[str, Any]) -> int:
    from detbox.container.launch import run as launch

    spec = RunSpec.from_json(text).with_changes(workdir=os.getcwd())
    outcome = launch(spec)
    answer |= {name: getattr(outcome, name) for name in ("stats", "doubts", "unknown_calls", "interleaving")}
    return run_cmd.status_of(spec, outcome)


def _plain(given: dict[str, Any], answer: dict[str, Any]) -> int:
    from detbox.report import plain

    answer["status"] = plain.run(plain.Plain.from_json(given))
    return 0
