"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """``usable``: runs are possible with this state.  ``follows`` and ``mend`` are empty when all is well."""

    name: str
    state: str
    usable: bool
    follows: str = ""
    mend: str = ""
