"""Every way in which detbox itself can fail, each with its exit status.

There are three kinds of failure, and a fourth that is a verdict about the guest:

* :class:`UserError`: something was asked for that cannot be done.  The message
  says what to do instead; no traceback.
* :class:`HostError`: the host lacks something.  The message names it (kernel
  version, sysctl or package).
* :class:`InternalError`: a bug in detbox.  Traceback, and the run's directory is kept.
* :class:`GuestError`: the guest ran, but its run could not be brought to an end
  that detbox vouches for.

The statuses stay clear of what a guest commonly uses: 125 to 127 mean what they
mean for ``env`` and ``docker run``, 124 what it means for ``timeout``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any, ClassVar

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Added to a signal's number when the guest's first process was killed by it (as shells do).
SIGNAL_STATUS_BASE = 128


class DetboxError(Exception):
    """Base of all errors of detbox.

    ``message`` says what is wrong, ``remedy`` what to do about it ("" if
    nothing can be said).  ``status`` is the exit status of the command line.
    """

    status: ClassVar[int] = 125
    status_name: ClassVar[str] = "FAILED"
    summary: ClassVar[str] = "detbox itself failed"

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.stats: dict[str, Any] = {}

    def lines(self) -> list[str]:
        """The text for people: the message, then the remedy."""
        return self.message.splitlines() + self.remedy.splitlines()


def is_full_disk(error: Exception) -> bool:
    """Whether an operation failed because there was no room left, or no more was allowed.

    ``shutil`` collects the errors of a tree, as (source, target, text).
    """
    if not isinstance(error, OSError):
        return False
    listed = error.args[0] if error.args and isinstance(error.args[0], list) else ()
    return error.errno in _FULL or any(f"[Errno {number}]" in str(item[-1]) for item in listed for number in _FULL)


class UserError(DetboxError):
    """The user's mistake."""

    summary = "an option, an input or the configuration is wrong"


class CommandNotInvocable(UserError):
    """The command exists in the container but cannot be executed."""

    status = 126
    status_name = "CANNOT_INVOKE"
    summary = "the command was found but cannot be executed"


class CommandNotFound(UserError):
    """The command does not exist in the container."""

    status = 127
    status_name = "NOT_FOUND"
    summary = "the command does not exist in the container"


class HostError(DetboxError):
    """The host lacks something that a run needs, or took it away meanwhile."""

    summary = "the host lacks something; `detbox doctor` says what"


def missing_module(error: ImportError) -> HostError | None:
    """What the host lacks if a module cannot be imported; None if it is one that is detbox's own fault."""
    import sys

    name = (error.name or "").partition(".")[0]
    remedy = f"install detbox for this Python: {sys.executable} -m pip install detbox"
    if error.name == "detbox.kernel._native":
        return HostError(f"detbox's C extension was not built for this Python ({sys.executable})", remedy)
    if not isinstance(error, ModuleNotFoundError) or name in ("", "detbox"):
        return None
    return HostError(f"the Python module {name} is missing from this Python ({sys.executable})", remedy)


class SourceNotAvailable(HostError):
    """The archive's index lists a source package that the archive does not have."""

    summary = "`detbox deb`: the archive lists the source package and does not serve it"


class InternalError(DetboxError):
    """A bug in detbox.  ``kept`` is the run's directory, kept for the report (or None)."""

    summary = "a bug in detbox; please report it"

    def __init__(self, message: str, remedy: str = "", kept: str | None = None) -> None:
        super().__init__(message, remedy)
        self.kept = kept

    def lines(self) -> list[str]:
        """The message, then how to report it."""
        text = super().lines()
        text.append("this is a bug in detbox: please report it, with the text above")
        if self.kept is not None:
            text.append(f"the run's directory is kept: {self.kept}")
        return text


class GuestError(DetboxError):
    """The guest's run ended without a result that detbox vouches for."""

    summary = "the guest's run was ended by detbox"


class LimitExceeded(GuestError):
    """The guest used more memory or processes than it may."""

    status = 121
    status_name = "LIMIT"
    summary = "the guest exceeded its limit of memory or processes"


class NotDeterministic(GuestError):
    """The run could not be kept deterministic."""

    status = 122
    status_name = "NOT_DETERMINISTIC"
    summary = "the run could not be kept deterministic (with --strict: any doubt)"


class Deadlock(GuestError):
    """Every thread of the guest waits, and nothing can ever wake one."""

    status = 123
    status_name = "DEADLOCK"
    summary = "every thread of the guest waits for ever; the report says who waits for what"


class TimedOut(GuestError):
    """The run took longer than ``--timeout`` allows."""

    status = 124
    status_name = "TIMEOUT"
    summary = "the run took more real time than --timeout allows, and was ended"


class BuildFailed(GuestError):
    """A Debian package's own build failed."""

    status = 1
    status_name = "BUILD_FAILED"
    summary = "`detbox deb`: the package's own build failed; its log says why"


class Interrupted(GuestError):
    """The user ended the run (Ctrl-C)."""

    status = 130
    status_name = "INTERRUPTED"
    summary = "the run was ended by Ctrl-C"


def all_errors(root: type[DetboxError] = DetboxError) -> Iterator[type[DetboxError]]:
    """``root`` and every class derived from it, in the order of definition."""
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)


def by_name(name: str) -> type[DetboxError]:
    """The class called ``name``; an unknown name (of a newer detbox) gives the base class."""
    return {cls.__name__: cls for cls in all_errors()}.get(name, DetboxError)


def status_table() -> str:
    """The Markdown table of exit statuses, for the user guide."""
    rows = ["| status | error class | meaning |", "| --- | --- | --- |"]
    rows.append("| 0 to 120 | | the guest's own exit status (as are all others unless listed here) |")
    ordered = sorted(all_errors(), key=lambda cls: cls.status)
    rows += [f"| {cls.status} | `{cls.__name__}` | {cls.summary} |" for cls in ordered]
    rows.append(f"| {SIGNAL_STATUS_BASE}+N | | the guest's first process was killed by signal N |")
    return "\n".join(rows) + "\n"
