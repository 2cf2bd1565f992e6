"""SHA-256 as everybody else has it."""

from __future__ import annotations

import hashlib
import sys

import pytest

from shim.lean.digests import sha256


@pytest.mark.parametrize("data", [b"", b"x", bytes(1 << 20)])
def test_sha256_is_sha256(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    meant = hashlib.sha256(data).hexdigest()
    assert sha256(data) == meant
    for module in ("_sha2", "_sha256"):
        monkeypatch.setitem(sys.modules, module, None)  # an interpreter without it
    assert sha256(data) == meant
