"""Debian's own tools: whether they are there, what they run with, and what their complaints mean."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from detbox.errors import HostError, UserError
from detbox.images import inside, sources, tree


def check_tools() -> None:
    """HostError that names the Debian packages that are missing."""
    missing = [package for program, package in _PROGRAMS.items() if shutil.which(program) is None]
    if os.geteuid():
        missing += [] if shutil.which("newuidmap") else ["uidmap"]
    if missing:
        raise HostError(
            f"making images needs Debian packages that are missing: {' '.join(missing)}",
            f"install them: apt-get install {' '.join(missing)}",
        )
    inside.check_subids()


_PROGRAMS = {"mmdebstrap": "mmdebstrap", "apt-get": "apt", "gpgv": "gpgv"}


def environment(work: Path) -> Mapping[str, str]:
    """The environment of Debian's tools: the same everywhere, except where the packages come from."""
    return {
        **inside.ENVIRONMENT,
        **sources.proxies(),
        "SOURCE_DATE_EPOCH": str(tree.NEWEST),
        "TMPDIR": str(work),
        "HOME": str(work),
    }


#: What apt and mmdebstrap say, the kind of error that it is, and what to do.
_CAUSES: tuple[tuple[str, type[UserError] | type[HostError], str], ...] = (
    (r"Unable to locate package (\S+)|has no installation candidate", UserError, "correct the recipe's packages"),
    (
        r"NO_PUBKEY|BADSIG|EXPKEYSIG|is not signed|signatures couldn't be verified|signature verification",
        HostError,
        "the archive's signature is not trusted: is it the right mirror, and is debian-archive-keyring current?",
    ),
    (r"does not have a Release file|404 +Not Found", HostError, "does the mirror serve this suite? see --mirror"),
    (
        r"Could not resolve|Temporary failure resolving|Could not connect|Unable to connect|Failed to fetch",
        HostError,
        "is the network up, and the mirror the right one? see --mirror",
    ),
    (r"No space left on device", HostError, "make room, or set TMPDIR and --store"),
    (r"Unmet dependencies|unmet dependencies|Depends:", UserError, "the recipe's packages do not fit together"),
)


def failure(heard: Sequence[str]) -> UserError | HostError:
    """The error that Debian's tools have told of, with its likely remedy."""
    said = [line for line in heard if re.match(r"E: |Err:| {2}\S", line)] or list(heard)
    text = "\n".join(list(dict.fromkeys(said))[-12:])
    for pattern, kind, remedy in _CAUSES:
        if re.search(pattern, "\n".join(heard)):
            return kind(f"the image could not be made:\n{text}", remedy)
    return HostError(f"the image could not be made: mmdebstrap failed:\n{text}")
