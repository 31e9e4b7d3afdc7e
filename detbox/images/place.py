"""Recognises an image of a store by its path; imports nothing, since every run asks."""

from __future__ import annotations

import os


def place_of(image: str) -> str | None:
    """The image's directory in its store, if ``image`` is the root in one (see detbox.images.store)."""
    place, name = os.path.split(image)
    return place if name == "root" and os.path.isfile(f"{place}/manifest") else None
