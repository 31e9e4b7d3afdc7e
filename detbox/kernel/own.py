"""How calls are marked that a guest's thread makes for the supervisor: filters let them through, the guest's own, too.

The kernel looks at neither: a mapping's descriptor has 32 bits, and no other of these calls has six arguments.
"""

from __future__ import annotations

#: The sixth argument of each of these calls but mmap.
OWN_CALL = 0xDE7B0C5
#: The upper half of the descriptor in those to mmap.  The highest bit is not set, as it is in -1, and the one below is.
OWN_MAPPING = 0x4DE7B0C5 << 32
OWN_MAPPING_BIT, OTHER_MAPPING_BIT = 1 << 62, 1 << 63
