"""SHA-256 and SHAKE-256 of short data.

hashlib loads OpenSSL, which takes 4 ms of every start; the interpreter's own modules give the same digests (CPython's
random.py takes them in the same way).
"""

from __future__ import annotations

try:
    from _sha2 import sha256  # CPython 3.12
except ImportError:
    try:
        from _sha256 import sha256
    except ImportError:
        from hashlib import sha256
try:
    from _sha3 import shake_256
except ImportError:
    from hashlib import shake_256

__all__ = ["sha256", "shake_256"]
