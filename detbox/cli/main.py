"""The `detbox` command: chooses the verb and turns every failure into a message and an exit status."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from detbox import bundle
from detbox.cli.messages import say, say_error
from detbox.errors import (
    DetboxError,
    HostError,
    InternalError,
    Interrupted,
    is_full_disk,
    missing_module,
)

#: Objects made and not given back before cycles are looked for: Python's 700 cost 5 ms while modules are imported.
_GARBAGE = 50_000


def program() -> NoReturn:
    """What the `detbox` command executes: ``main``, whose exit status is the process's."""
    status = main()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # too late to end with another status
    if status == Interrupted.status:
        # An interrupt that comes while Python executes source text, as dataclasses do with their methods', makes
        # the interpreter end itself by SIGINT although it was handled (CPython's pythonrun.c, run_eval_code_obj()).
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)
    bundle.renew()
    if sys.argv[1:2] == ["run"] or sys.argv[1:3] == ["verify", "--one"]:
        # Nothing is left to be done, and taking the interpreter apart takes 6 ms; a failing flush is to be seen.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    stdin_closed = _keep_standard_descriptors()
    gc.set_threshold(_GARBAGE)

    def body() -> int:
        words = sys.argv[1:] if argv is None else argv
        if words[:1] == ["run"] and os.geteuid() and not any(word.startswith("--image") for word in words):
            from detbox.container import ahead

            ahead.begin(os.environb)  # before all that is not needed for it
        from detbox.cli import verbs

        arguments = verbs.parsed(words, stdin_closed=stdin_closed)
        return int(arguments.body(arguments))

    return guarded(body)


def guarded(body: Callable[[], int]) -> int:
    """Runs ``body``; an exception becomes a message on standard error and its exit status."""
    try:
        return body()
    except SystemExit as leaving:  # argparse, after --help and --version
        return int(leaving.code or 0)
    except InternalError as error:
        if "Traceback" not in error.message:  # one that comes from the supervisor brings its own
            _say_traceback()
        say_error(error)
        return error.status
    except DetboxError as error:
        say_error(error)
        return error.status
    except KeyboardInterrupt:
        say("interrupted")
        return Interrupted.status
    except BrokenPipeError:
        # The reader of our own output (`detbox syscalls | head`) went away: nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ImportError as error:
        lacking = missing_module(error)
        if lacking is None:
            return _bug(error)
        say_error(lacking)
        return lacking.status
    except Exception as error:  # the edge of the program: whatever else arrives here is our bug
        return _full(error) if is_full_disk(error) else _bug(error)


def _full(error: Exception) -> int:
    full = HostError(f"a disk is full: {error}", "make room, or set TMPDIR to a directory where there is some")
    say_error(full)
    return full.status


def _bug(error: Exception) -> int:
    _say_traceback()
    say_error(InternalError(f"{type(error).__name__}: {error}"))
    return InternalError.status


def _say_traceback() -> None:
    import traceback

    for line in traceback.format_exc().splitlines():
        say(line)


def _keep_standard_descriptors() -> bool:
    """Closed standard descriptors become /dev/null, so that no other file gets their numbers.

    Says whether standard input was closed.
    """
    closed = set()
    for fd, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            closed.add(fd)
            os.open(os.devnull, mode)  # gets the lowest free number, which is this one
    # Python has None for a stream that was closed at its start.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)
    return 0 in closed
