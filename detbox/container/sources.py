"""What a container's file system is made from, as the cache wants to know it."""

from __future__ import annotations

import os

from detbox.cache.places import Sources
from detbox.container import operations as ops
from detbox.container import plan
from detbox.container.overlay import Overlay
from detbox.spec import RunSpec


def sources(spec: RunSpec) -> Sources:
    """From the same steps that build the file system."""
    shown: list[tuple[str, str]] = []
    fresh: list[str] = []
    made: set[str] = set()
    remade: dict[str, str] = {}
    fixed: list[str] = []
    for step in plan.steps(spec):
        if isinstance(step, (Overlay, ops.Bind)):
            shown.append((_guest_path(spec, step), step.source))
        elif isinstance(step, ops.Tmpfs):
            fresh.append(step.path)
        elif isinstance(step, ops.Symlink):
            made.add(step.path)
            if step.path.count("/") == 1:
                fixed.append(f"{step.path} -> {step.target}")
        elif isinstance(step, (ops.File, ops.Remove)):
            made.add(step.path)
        elif isinstance(step, ops.Remake):
            remade.update((path, source) for path, (source, *_) in step.makers.items())
    inside = [path for path in fresh if path != "/"]
    return Sources(tuple(shown), ("/", *inside), frozenset(made), tuple(remade.items()), tuple(sorted(fixed)))


def _guest_path(spec: RunSpec, step: Overlay | ops.Bind) -> str:
    """An image's overlay becomes the root."""
    if isinstance(step, Overlay) and spec.image is not None and os.path.abspath(step.source) == spec.image:
        return "/"
    return step.path
