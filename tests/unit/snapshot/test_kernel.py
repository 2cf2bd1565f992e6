from __future__ import annotations

import os

import pytest

from shim.snapshot import kernel
from shim.snapshot.kernel import PROBES, kernel_features


def test_this_kernel() -> None:
    found = kernel_features()
    assert found == sorted(set(found))
    assert set(found) <= PROBES.keys()
    assert {"memfd", "rseq"} <= set(found), "CRIU itself needs these"


def test_what_a_probe_does_not_find(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refuse)
    monkeypatch.setattr(os, "pidfd_open", refuse)
    monkeypatch.setattr(os.path, "exists", lambda _: False)
    monkeypatch.setattr(kernel, "_RSEQ", {os.uname().machine: 100_000})
    assert kernel_features() == []
    monkeypatch.setattr(kernel, "_RSEQ", {})
    assert kernel_features() == []
