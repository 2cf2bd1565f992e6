"""Memory and the kernel's limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.nodes import FakeNode, states

from shim.doctor import resources

THP = "/sys/kernel/mm/transparent_hugepage/enabled"


@pytest.mark.parametrize(
    ("text", "state"), [("[always] madvise never", "ok"), ("always madvise [never]", "bad")]
)
def test_huge_pages(tmp_path: Path, text: str, state: str) -> None:
    node = FakeNode(tmp_path)
    node.put(THP, text)
    assert states(resources.huge_pages(node)) == [state]


def test_limits(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    assert states(resources.limits(node)) == ["ok", "ok"]
    node.put("/proc/sys/vm/max_map_count", "1000")
    found = list(resources.limits(node))
    assert states(found) == ["bad", "ok"]
    assert found[0].fix.startswith("sysctl -w vm.max_map_count=")


def test_memory(tmp_path: Path) -> None:
    """16 GiB are available, half of them may be used."""
    assert states(resources.memory(FakeNode(tmp_path, settings={"restore.memory": 8.0}))) == ["ok"]
    (found,) = resources.memory(FakeNode(tmp_path, settings={"restore.memory": 8.1}))
    assert states([found]) == ["bad"]
    assert "16.0 GiB" in found.said
    node = FakeNode(tmp_path)
    node.put("/proc/meminfo", "MemTotal: 1 kB")
    with pytest.raises(ValueError, match="MemAvailable"):
        list(resources.memory(node))
