"""Digests of little without hashlib, which loads all of OpenSSL: 3 ms, and megabytes."""

from __future__ import annotations


def sha256(data: bytes) -> str:
    """The SHA-256 in hexadecimal digits, by the interpreter's own module where there is one."""
    try:
        from _sha2 import sha256  # type: ignore[import-not-found] # CPython 3.12 and newer
    except ImportError:
        try:
            from _sha256 import sha256  # type: ignore[import-not-found]
        except ImportError:
            from hashlib import sha256
    digest: str = sha256(data).hexdigest()
    return digest
