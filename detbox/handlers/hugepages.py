"""Huge pages that a program asks for: its machine has none set aside, whatever the host's administrator has."""

from __future__ import annotations

from errno import EINVAL, ENOMEM

#: MAP_HUGETLB, SHM_HUGETLB, MFD_HUGETLB.
MAP, SHM, MFD = 0x40000, 0o4000, 0x4
#: All of them have the binary logarithm of the pages' size in the flags' highest bits; 0 is the usual one.
_SHIFT, _MASK, _SIZES = 26, 0x3F, (0, 21, 30)


def refusal(flags: int) -> int:
    """The errno for a request with these flags: no such pages, or none left of them."""
    return ENOMEM if flags >> _SHIFT & _MASK in _SIZES else EINVAL
