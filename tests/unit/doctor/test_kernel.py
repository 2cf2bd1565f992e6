"""The kernel's features: each probe works on a kernel that has it, and tells one that has not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from fakes.host import children, open_fds
from fakes.nodes import FakeNode, states

from shim.doctor import kernel
from shim.doctor.kernel import FEATURES, Feature, features
from shim.snapshot.kernel import PROBES


@pytest.mark.skipif(os.geteuid() != 0, reason="TCP repair and nftables need root")
@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_this_kernel_has_it(feature: Feature) -> None:
    feature.probe()


def test_nothing_is_left_of_a_probe() -> None:
    fds, others = open_fds(), set(children())
    kernel.ptrace()
    assert open_fds(fds) == set()
    assert set(children()) <= others


def test_a_call_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """9999 is no system call of any machine's."""
    monkeypatch.setattr(kernel, "_CLONE3", 9999)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSYS)):
        kernel.set_tid()


@pytest.mark.parametrize("request_", ["_SEIZE", "_RSEQ"])
def test_a_request_that_is_not_known(request_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, request_, 0x42FF)
    with pytest.raises(OSError, match=r"Errno (3|5)"):  # of one that is not traced, or EIO
        kernel.ptrace()


@pytest.mark.parametrize("name", ["memfd", "pidfd", "rseq", "seccomp"])
def test_what_snapshots_note_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = next(feature.probe for feature in FEATURES if feature.name == name)
    monkeypatch.setitem(PROBES, name, lambda: False)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSYS)):
        probe()


def test_a_kernel_with_all_of_them(tmp_path: Path) -> None:
    (found,) = features(FakeNode(tmp_path), (Feature("one", "1.0", lambda: None),))
    assert (found.state, found.said) == ("ok", "6.1.0: one")


def test_a_kernel_without_some(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    known = (Feature("one", "1.0", fail), Feature("two", "2.0", lambda: None))
    found = list(features(FakeNode(tmp_path), (*known, Feature("three", "3.0", fail))))
    assert states(found) == ["bad", "bad"], "each has its line, and there is none for all"
    assert [verdict.said.split()[0] for verdict in found] == ["one", "three"]
    assert "3.0" in found[1].fix
