"""What the kernel says of the user namespace that this process is in: user_namespaces(7)."""

from __future__ import annotations


def limited() -> bool:
    """Whether it maps one user only: an ordinary user made it."""
    return [count for _, _, count in _rows("uid_map")] == ["1"]


def all_ids(name: str) -> str:
    """A map of each id to itself, for a namespace below it: root may be that of a container, which has not all ids.

    ``name``: "uid_map" or "gid_map".
    """
    return "".join(f"{inside} {inside} {count}\n" for inside, _, count in _rows(name))


def _rows(name: str) -> list[list[str]]:
    with open(f"/proc/self/{name}", encoding="utf-8") as file:
        return [line.split() for line in file]
