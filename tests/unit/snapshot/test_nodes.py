"""The device nodes of a spec, and what is to be done for those of another one."""

from __future__ import annotations

from typing import Any

import pytest

from shim.snapshot.config import DeviceNode
from shim.snapshot.nodes import Exchange, exchange, nodes_of


def spec(*devices: dict[str, Any], namespaces: tuple[str, ...] = ()) -> dict[str, Any]:
    kinds = [{"type": kind} for kind in namespaces]
    return {"linux": {"devices": list(devices), "namespaces": kinds}}


def gpu(number: int, **more: Any) -> dict[str, Any]:
    path = f"/dev/nvidia{number}"
    return {"path": path, "type": "c", "major": 195, "minor": number, "fileMode": 438, **more}


def node(number: int, mode: int = 0o666, uid: int = 0, gid: int = 0) -> DeviceNode:
    return DeviceNode(f"/dev/nvidia{number}", "c", 195, number, mode, uid, gid)


@pytest.mark.parametrize("said", [{}, {"linux": None}, {"linux": {"devices": None}}])
def test_a_spec_without_devices(said: dict[str, Any]) -> None:
    assert nodes_of(said) == []
    assert exchange([], said) == Exchange()


def test_nodes_are_read_as_runc_reads_them() -> None:
    found = nodes_of(
        spec(
            gpu(1, fileMode=0o20660, uid=5, gid=6),
            {"path": "dev//x/../fifo", "type": "p", "major": 3},
            {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0},
            {"path": "/dev/raw", "type": "u", "major": 1, "minor": 2, "fileMode": 0},
            gpu(1, minor=7),  # runc leaves what is there
            {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
            {"type": "c", "major": 5, "minor": 2},
            {"path": "/dev/odd", "type": "x"},
        )
    )
    assert found == [
        DeviceNode("/dev/fifo", "p", 0, 0, 0o666, 0, 0),
        node(1, 0o660, 5, 6),
        DeviceNode("/dev/raw", "c", 1, 2, 0, 0, 0),
        DeviceNode("/dev/sda", "b", 8, 0, 0o666, 0, 0),
    ]


def test_another_gpu() -> None:
    assert exchange([node(1)], spec(gpu(0))) == Exchange((node(1),), (node(0),))


def test_the_same_gpus() -> None:
    assert exchange([node(0), node(1)], spec(gpu(1), gpu(0))) == Exchange()


def test_a_node_that_has_become_another() -> None:
    """The kernel gives a driver another major after a reboot (nvidia-uvm), or a pod another gid."""
    moved = DeviceNode("/dev/nvidia0", "c", 510, 0, 0o666, 0, 0)
    assert exchange([moved], spec(gpu(0))) == Exchange((), (node(0),))
    assert exchange([node(0, gid=44)], spec(gpu(0))) == Exchange((), (node(0),))


def test_what_every_container_has() -> None:
    """It was given another /dev/null, and that one is not: runc would have made its own."""
    other = DeviceNode("/dev/null", "c", 1, 5, 0o600, 0, 0)
    null = DeviceNode("/dev/null", "c", 1, 3, 0o666, 0, 0)
    assert exchange([other], spec()) == Exchange((), (null,))
    plain = {"path": "/dev/null", "type": "c", "major": 1, "minor": 3}
    assert exchange([], spec(plain)) == exchange([null], spec()) == Exchange()


def test_in_a_user_namespace_nodes_are_mounts() -> None:
    assert exchange([node(1)], spec(gpu(0), namespaces=("pid", "user"))) == Exchange()
    assert exchange([node(1)], spec(gpu(0), namespaces=("pid",))) != Exchange()
