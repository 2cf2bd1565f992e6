"""The hold is tried, in no network that anybody uses; the hook is looked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes.nodes import FakeNode, states

from oci_hooks import hold as holding
from shim.config import Config
from shim.doctor import network
from shim.errors import Unavailable


def links() -> str:
    return os.readlink("/proc/self/ns/net")


@pytest.mark.skipif(os.geteuid() != 0, reason="a namespace needs root")
def test_it_holds(tmp_path: Path) -> None:
    before = links()
    assert states(network.hold(FakeNode(tmp_path))) == ["ok"]
    assert links() == before
    assert not holding.is_held(f"/proc/{os.getpid()}/ns/net")


def test_a_kernel_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise Unavailable("nftables: Protocol not supported")

    monkeypatch.setattr(holding, "hold", refuse)
    (found,) = network.hold(FakeNode(tmp_path))
    assert found.state == "bad"
    assert "Protocol not supported" in found.said or "no new network" in found.said
    assert "CONFIG_NF_TABLES_INET" in found.fix


def test_the_hook(tmp_path: Path) -> None:
    own, node = tmp_path / "hook", FakeNode(tmp_path)
    for named, state in (
        ("thaw-hook-network", "ok"),
        ("", "absent"),
        ("no-such-hook", "bad"),
        (str(own), "bad"),
        (str(tmp_path), "bad"),
    ):
        node.config = Config({"network.hook": named})
        (found,) = network.hook(node)
        assert (found.state, named) == (state, named)
        if state == "bad":
            assert named in found.said
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    node.config = Config({"network.hook": str(own)})
    (found,) = network.hook(node)
    assert (found.state, found.said) == ("ok", str(own))
