"""Huge pages that a program asks for: its machine has none set aside, whatever the host's administrator has."""

from __future__ import annotations

from errno import EINVAL, ENOMEM

#: MAP_HUGETLB, SHM_HUGETLB, MFD_HUGETLB.
MAP, SHM, MFD = 0x40000, 0o4000, 0x4
#: All of them have the binary logarithm of the pages' size in the flags' highest bits; 0 is the usual one.
_SHIFT, _MASK, _SIZES = 26, 0x3F, (0, 21, 30)
#: What memfd_create(2) knows besides: MFD_CLOEXEC, MFD_ALLOW_SEALING; MFD_NOEXEC_SEAL and MFD_EXEC, not both.
_MFD_FLAGS, _MFD_EITHER = 0x1F, 0x18


def wanted_of_memfd(flags: int) -> bool:
    """Whether memfd_create(2) with these flags looks for huge pages; unknown ones are an error before that."""
    known = not flags & ~(_MFD_FLAGS | _MASK << _SHIFT) and flags & _MFD_EITHER != _MFD_EITHER
    return bool(flags & MFD) and known


def refusal(flags: int) -> int:
    """The errno for a request with these flags: no such pages, or none left of them."""
    return ENOMEM if flags >> _SHIFT & _MASK in _SIZES else EINVAL
