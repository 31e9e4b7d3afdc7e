"""`detbox verify`: runs a command several times on perturbed hosts and says whether anything differs."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from detbox.cli import run_cmd
from detbox.cli.helptext import HelpFormatter
from detbox.cli.messages import say
from detbox.cli.progress import colours
from detbox.errors import DetboxError, HostError, InternalError, UserError
from detbox.report import leftovers
from detbox.spec import RunSpec

if TYPE_CHECKING:
    from pathlib import Path

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
#: Of a run's outcome, what the verification is told.
_REPORTED = ("stats", "doubts", "unknown_calls", "interleaving", "trouble")


def add_parser(verbs: Any) -> None:
    """Adds the verb to argparse's subparsers."""
    parser = verbs.add_parser(
        "verify",
        help="prove that runs are identical, or show where they part",
        usage="detbox verify [-n N] [--native] [options] [run options] -- CMD [ARG...]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
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
    parser.add_argument("--html", metavar="FILE", help="write the report as one self-contained page")
    parser.add_argument(
        "--keep", metavar="DIR", help="keep the outputs of the runs here (default: only if they differ, in TMPDIR)"
    )
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
    from detbox.cli.progress import phases
    from detbox.kernel.numbers import NUMBERS
    from detbox.report import keep
    from detbox.report.verify import Verification, choose
    from detbox.values import number

    spec = run_cmd.spec_from(arguments)
    if arguments.leak and arguments.leak not in NUMBERS:
        raise UserError(f"--leak {arguments.leak}: no such system call")
    spec = spec.with_changes(leak=arguments.leak)
    runs = number(arguments.runs, "-n", 2, MAX_RUNS, default=2)
    page = _page(arguments.html)
    kept = keep.place(arguments.keep) if arguments.keep else None
    for signo in (signal.SIGTERM, signal.SIGHUP):  # the runs and their copies are to vanish then as well
        signal.signal(signo, signal.default_int_handler)
    leftovers.collect()
    stdin = _stdin(spec)
    rows, user = choose(arguments.perturb, arguments.no_perturb, stdin, spec)
    with Verification(spec, stdin, runs, rows, user) as verification:
        try:
            with phases() as progress:
                verdict = _verify(verification, arguments.native, page is not None, progress)
                progress("writing the report")
                text = _text(verdict, arguments.json)
            sys.stdout.write(text)
            sys.stdout.flush()
            if page is not None:
                _write_page(page, verdict)
            _keep_outputs(verification, verdict, kept)
        except (DetboxError, OSError) as error:
            raise _with_first_run(error, verification, kept) from error
    return 0 if verdict.identical else 1


def _verify(verification: Verification, native: bool, record: bool, progress: Progress) -> Verdict:
    from detbox.report.isolate import Investigation
    from detbox.report.verdict import Verdict
    from detbox.report.verify import first_comparison

    causes: list[Any] = []
    divergence, notes = None, []
    plain = first_comparison(verification.natively(progress)) if native else None
    boxed = first_comparison(verification.under_detbox(progress))
    changed = verification.changed_inputs()
    if changed and (boxed.differences or plain and plain.differences):
        listed = ", ".join(changed[:5]) + (", …" if changed[5:] else "")
        raise UserError(f"inputs were changed while they were in use: {listed}", "run it when nothing writes to them")
    if plain is not None and plain.differences:
        search = Investigation(verification, plain, boxed, progress)
        causes = search.causes()
        notes.append(search.note)
    if boxed.differences:
        divergence, note = _divergence(verification, boxed, progress)
        notes.append(note)
    trace = _trace(verification, progress) if record else None
    said = list(filter(None, notes))
    return Verdict(verification.spec, verification.rows, boxed, plain, causes, divergence, said, trace=trace)


def _divergence(verification: Verification, boxed: Comparison, progress: Progress) -> tuple[Any, str]:
    """Record the two runs that differ, on the same hosts, and find where they part."""
    from pathlib import Path

    from detbox.recorder.compare import first_divergence
    from detbox.recorder.read import Trace

    hosts = [boxed.runs[0].host, boxed.runs[boxed.other].host]
    for results in (True, False):
        paths = [str(verification.places.disk / f"trace-{results}-{place}") for place in range(2)]
        try:
            runs = verification.under_detbox(
                lambda phase: progress("recording, " + phase), hosts,
                record=paths.__getitem__, record_results=results,
            )  # fmt: skip
            trouble = next((run.answer["trouble"] for run in runs if run.answer.get("trouble")), "")
            if trouble:
                return None, f"the runs could not be recorded: {trouble}"
            found = first_divergence(Trace(Path(paths[0])), Trace(Path(paths[1])))
        except DetboxError as error:
            return None, f"the runs could not be recorded: {error.message}"
        if found is not None:
            return found, ""
    return None, (
        "no event differs between the recorded runs: the difference comes from an instruction, a mapping or the "
        "host's timing, or does not come each time"
    )


def _trace(verification: Verification, progress: Progress) -> Path | None:
    """A record of one run, for the picture of its processes; None if there can be none."""
    path, times = verification.places.disk / "trace", verification.places.disk / "trace-times"
    try:
        verification.under_detbox(
            lambda _: progress("recording"), verification.hosts[:1], record=str(path), record_times=str(times)
        )
    except DetboxError:
        return None
    return path


def _text(verdict: Verdict, as_json: bool) -> str:
    """What is printed."""
    if as_json:
        import json

        text = json.dumps(verdict.as_json(), indent=2)
    else:
        from detbox.report.text import Paint, lines

        text = "\n".join(lines(verdict, Paint(colours())))
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def _page(given: str | None) -> Path | None:
    """The file for the page, which can be written.  It is made afterwards: it may be among the inputs' files."""
    from pathlib import Path

    from detbox.report.keep import can_be_made

    if given is None:
        return None
    path = Path(given).absolute()
    try:
        if path.exists():
            path.open("ab").close()
        else:
            can_be_made(path)
    except OSError as error:
        raise UserError(f"--html {given}: {error.strerror}", "name a file that can be written") from None
    return path


def _write_page(path: Path, verdict: Verdict) -> None:
    from detbox.report.page import page

    try:
        path.write_bytes(page(verdict).encode("utf-8", "backslashreplace"))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise HostError(f"--html {path}: {error.strerror}", "the report above is whole; name another file") from None


def _keep_outputs(verification: Verification, verdict: Verdict, kept: Path | None) -> None:
    """Keep the outputs of runs under detbox that differ, or if that was asked for."""
    from detbox.report import keep

    if verdict.identical and kept is None:
        return
    runs = {f"run-{place + 1}": verdict.boxed.runs[place] for place in (0, verdict.boxed.other)}
    if verdict.native is not None:
        runs |= {f"native-{place + 1}": verdict.native.runs[place] for place in (0, verdict.native.other)}
    say(f"the outputs of the runs are kept in {keep.keep(runs, kept or keep.place(None))}")


def _with_first_run(error: Exception, verification: Verification, kept: Path | None) -> DetboxError:
    """The error, and where the results of the first run are, if there was one."""
    from detbox.report import keep

    if isinstance(error, OSError):
        error = HostError(f"{error.filename or 'a file'}: {error.strerror or error}")
    assert isinstance(error, DetboxError)
    if verification.first is not None:
        try:
            spare = kept if kept is not None and not kept.exists() else keep.place(None)
            place = keep.keep({"run-1": verification.first}, spare)
        except (OSError, UserError) as failure:
            remedy = f"the results of the first run could not be kept: {failure}"
        else:
            remedy = f"the results of the first run are kept in {place}"
        error.remedy = "\n".join(filter(None, (error.remedy, remedy)))
    return error


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
    spec = RunSpec.from_json(text).with_changes(workdir=os.getcwd())
    outcome = run_cmd.launch(spec)
    answer |= {name: getattr(outcome, name) for name in _REPORTED}
    return run_cmd.status_of(spec, outcome)


def _plain(given: dict[str, Any], answer: dict[str, Any]) -> int:
    from detbox.report import plain

    answer["status"] = plain.run(plain.Plain.from_json(given))
    return 0
