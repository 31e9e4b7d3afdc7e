"""detbox: runs a program so that its outputs depend on its declared inputs alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detbox.api import Result, run

__version__ = "0.1.0"
__all__ = ["Result", "__version__", "run"]


def __getattr__(name: str) -> Any:
    """Loads the Python interface when it is first used: the command line never needs it."""
    if name in ("run", "Result"):
        from detbox import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
