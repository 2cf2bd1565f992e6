"""Which GPUs a container has, by every kind of evidence, and what is no evidence or a bad one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.nvml import A100, H100, machine

from shim.errors import Unfit
from shim.gpu.given import given, has_gpus, is_nvidias, may_be_several
from shim.task.contract import mentions_gpus

GPUS = machine(H100, H100, A100, H100)
ALL = [2, 0, 1, 3]  # those of one kind stand together
LIKE = GPUS[0].uuid[:-2]
CONTROL = {"path": "/dev/nvidiactl", "type": "c", "major": 195, "minor": 255}
UVM = {"path": "/dev/nvidia-uvm", "type": "c", "major": 511, "minor": 0}
CAPS = {"path": "/dev/nvidia-caps/nvidia-cap1", "type": "c", "major": 236, "minor": 1}
VOLUMES = "/var/run/nvidia-container-devices"
NVIDIAS = "nvidia-container-runtime"


def node(minor: int, path: str = "") -> dict[str, Any]:
    return {"path": path or f"/dev/nvidia{minor}", "type": "c", "major": 195, "minor": minor}


def with_devices(*devices: dict[str, Any]) -> dict[str, Any]:
    return {"linux": {"devices": list(devices)}}


def with_env(*words: str) -> dict[str, Any]:
    return {"process": {"env": ["A=b", *(f"NVIDIA_VISIBLE_DEVICES={word}" for word in words)]}}


def with_mounts(**mounts: str) -> dict[str, Any]:
    return {"mounts": [{"source": s, "destination": d} for d, s in mounts.items()]}


def with_volumes(*names: str, source: str = "/dev/null") -> dict[str, Any]:
    return with_mounts(**{f"{VOLUMES}/{name}": source for name in names})


def with_cdi(**notes: str) -> dict[str, Any]:
    return {"annotations": {f"cdi.k8s.io/{key}": names for key, names in notes.items()}}


def with_hook(*args: str, path: str = "/usr/bin/containerd") -> dict[str, Any]:
    return {"hooks": {"prestart": None, "createRuntime": [{"path": path, "args": list(args)}]}}


CTR = ("containerd", "oci-hook", "--", "/usr/bin/nvidia-container-cli", "--load-kmods", "configure")


def found(*specs: dict[str, Any], runtime: str = NVIDIAS) -> list[int]:
    spec = {key: part for spec in specs for key, part in spec.items()}
    gpus = given(spec, GPUS, runtime)
    assert has_gpus(spec, runtime) == bool(gpus)
    assert mentions_gpus(spec) or not gpus
    assert may_be_several(spec, runtime) or len(gpus) < 2
    return [gpu.index for gpu in gpus]


NOTHING: list[dict[str, Any]] = [
    {},
    {"linux": None, "mounts": None, "process": None, "annotations": None},
    {"linux": {"devices": None}, "process": {"env": None}},
    {"hooks": None},
    with_hook(*CTR, "--compute"),
    with_hook("/usr/bin/other", "--device=0"),
    with_devices(CONTROL, UVM, CAPS, {"path": "/dev/null", "type": "c", "major": 1, "minor": 3}),
    with_devices({"path": "/dev/nvidia-modeset", "type": "c", "major": 195, "minor": 254}),
    with_devices({"path": "/dev/nvidia0x"}, {"path": "/dev/nvidia"}, {"path": "/dev/nvidia٣"}),
    {"linux": {"resources": {"devices": [{"allow": True, "major": 195, "minor": 0}]}}},
    with_mounts(**{"/data": "/srv/nvidia0", "/usr/bin/nvidia-smi": "/usr/bin/nvidia-smi"}),
    with_volumes("0", source="/srv/0"),
    with_volumes("imex/0"),
    with_env("void"),
    with_env("none"),
    with_env(""),
    with_env("all", "void"),
    with_env(" , "),
    with_cdi(a="amd.com/gpu=0", b="nvidia.com/gds=all", c="notnvidia.com/gpu=0", d="x"),
    {"annotations": {"thaw.dev/gpu": "nvidia.com/gpu=0"}},
]


@pytest.mark.parametrize("spec", NOTHING)
def test_none(spec: dict[str, Any]) -> None:
    assert found(spec) == []


@pytest.mark.parametrize(
    ("spec", "indexes"),
    [
        (with_devices(CONTROL, node(1), UVM), [1]),
        (with_devices(node(3), node(0), node(3)), [0, 3]),
        (with_devices(node(1, "/dev/gpu")), [1]),  # CDI may call it anything
        (with_devices(node(1, "/dev/nvidia0")), [1]),
        (with_devices({"path": "/dev/nvidia3"}), [3]),
        (with_mounts(**{"/dev/nvidia0": "/dev/nvidia3"}), [3]),
        (with_mounts(**{"/dev/nvidia0": "/run/nvidia/driver/dev/nvidia1"}), [1]),
        (with_mounts(**{"/dev/nvidia1": "/srv/device"}), [1]),
        (with_hook(*CTR, "--device=3,1", "--compute"), [1, 3]),
        (with_hook(*CTR, "--device=all"), ALL),
        (with_volumes("0", "3"), [0, 3]),
        (with_volumes(GPUS[1].uuid), [1]),
        (with_volumes("all"), ALL),
        (with_volumes("cdi/nvidia.com/gpu/1", "cdi/runtime.nvidia.com/gpu=3"), [1, 3]),
        (with_env("all"), ALL),
        (with_env("0"), [0]),
        (with_env("3,1"), [1, 3]),
        (with_env(" 1 ,, 3 ,1"), [1, 3]),
        (with_env("0", "1"), [1]),
        (with_env(GPUS[3].uuid), [3]),
        (with_env(f"{GPUS[3].uuid},0"), [0, 3]),
        (with_env("nvidia.com/gpu=1,runtime.nvidia.com/gpu=3"), [1, 3]),
        (with_cdi(one="nvidia.com/gpu=0"), [0]),
        (with_cdi(one="nvidia.com/gpu=0,nvidia.com/gpu=1", two="vendor.com/nic=9"), [0, 1]),
        (with_cdi(one="nvidia.com/gpu=gpu1"), [1]),
        (with_cdi(one=f"k8s.device-plugin.nvidia.com/gpu={GPUS[1].uuid}"), [1]),
        (with_cdi(one="management.nvidia.com/gpu=all"), ALL),
    ],
)
def test_some(spec: dict[str, Any], indexes: list[int]) -> None:
    assert found(spec) == indexes


def test_the_beginning_of_a_uuid() -> None:
    gpus = [GPUS[0], replace(GPUS[1], uuid="GPU-fef8089b-1111-2222-3333-444444444444")]
    assert given(with_env("GPU-fef8089b"), gpus, NVIDIAS) == [gpus[1]]
    assert given(with_env("GPU-FEF8089B-11"), gpus, NVIDIAS) == [gpus[1]]


def test_nodes_say_it_all() -> None:
    """Images from CUDA's say `all`, and the device plugin says it in several ways at once."""
    assert found(with_devices(node(1)), with_env("all")) == [1]
    assert found(with_devices(node(1)), with_cdi(a="nvidia.com/gpu=gpu7")) == [1]
    assert found(with_devices(node(1)), with_env("MIG-1:2")) == [1]


def test_the_order_of_the_rest() -> None:
    assert found(with_volumes("0"), with_cdi(a="nvidia.com/gpu=1"), with_env("3")) == [0]
    assert found(with_cdi(a="nvidia.com/gpu=1"), with_env("3")) == [1]


@pytest.mark.parametrize("spec", [with_env("all"), with_cdi(a="nvidia.com/gpu=0"), with_env("?")])
def test_runc_heeds_nodes_alone(spec: dict[str, Any]) -> None:
    assert found(spec, runtime="runc") == []
    assert found(with_devices(node(0)), spec, runtime="runc") == [0]
    assert found(with_hook(*CTR, "--device=1"), spec, runtime="runc") == [1]


@pytest.mark.parametrize(
    ("spec", "runtime", "nvidias"),
    [
        ({}, "runc", False),
        ({}, "/usr/local/nvidia/toolkit/runc", False),
        ({}, "/usr/local/nvidia/toolkit/nvidia-container-runtime", True),
        ({}, "nvidia-container-runtime.cdi", True),
        (with_hook(path="/usr/bin/nvidia-container-runtime-hook"), "runc", True),
        (with_hook(*CTR, "--device=0"), "runc", False),
    ],
)
def test_whose_runtime_it_is(spec: dict[str, Any], runtime: str, nvidias: bool) -> None:
    assert is_nvidias(spec, runtime) is nvidias


def test_a_minor_that_is_not_the_index() -> None:
    gpus = [replace(GPUS[0], minor=1), replace(GPUS[1], minor=0)]
    assert given(with_devices(node(1)), gpus) == [gpus[0]]
    assert given(with_env("1"), gpus, NVIDIAS) == [gpus[1]]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (with_devices(node(7)), r"^device /dev/nvidia7: no GPU '/dev/nvidia7' here \(NVML knows: "),
        (with_devices(node(0), node(4)), "no GPU '/dev/nvidia4' here"),
        (with_devices({"path": "/dev/nvidia9"}), "no GPU '/dev/nvidia9' here"),
        (with_mounts(**{"/dev/nvidia0": "/dev/nvidia8"}), "^mount /dev/nvidia0: no GPU"),
        (with_env("4"), "^NVIDIA_VISIBLE_DEVICES: no GPU '4' here .NVML knows: 0 1 2 3"),
        (with_env("all,7"), "no GPU '7' here"),
        (with_env("-1"), "'-1' is no GPU"),
        (with_env("0-1"), "'0-1' is no GPU"),
        (with_env("0;1"), "'0;1' is no GPU"),
        (with_env("All"), "'All' is no GPU"),
        (with_env("0,none"), "'none' is no GPU"),
        (with_env("٣"), r"is no GPU"),
        (with_env("123456"), "'123456' is no GPU"),
        (with_env("0000:3b:00.0"), "'0000:3b:00.0' is no GPU"),
        (with_env("GPU-"), "'GPU-' is no GPU"),
        (with_env("GPU-0"), "'GPU-0' is no GPU"),
        (with_env("GPU-ffffffff"), "no GPU 'GPU-ffffffff' here"),
        (with_env(LIKE), "can be any of 4 GPUs"),
        (with_env("\x1b[2J" + "x" * 200), r"'\\x1b\[2Jx{76}' is no GPU"),
        (with_env("0:1"), "'0:1' is a part of a GPU"),
        (with_env("MIG-5c89852c-d268-c3f3-1b07-005d5ae1dc3f"), "part of a GPU"),
        (with_env("MIG-GPU-5c89852c/1/0"), "part of a GPU"),
        (with_cdi(a="nvidia.com/gpu=0:1"), "^annotation cdi.k8s.io/a: '0:1' is a part of a GPU"),
        (with_cdi(a="nvidia.com/gpu=mig0:1"), "part of a GPU"),
        (with_cdi(a="nvidia.com/mig=all"), "part of a GPU"),
        (with_cdi(a="nvidia.com/gpu="), "'' is no GPU"),
        (with_cdi(a="nvidia.com/gpu=4"), "no GPU '4' here"),
        (with_cdi(a="nvidia.com/gpu=default"), "'default' is no GPU"),
        (with_hook(*CTR, "--device=4"), "^hook nvidia-container-cli: no GPU '4' here"),
        (with_volumes("4"), f"^mount {VOLUMES}/4: no GPU"),
        (with_volumes("cdi/nvidia.com/gpu/odd"), "'odd' is no GPU"),
    ],
)
def test_what_cannot_be_told(spec: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unfit, match=reason) as refused:
        given(spec, GPUS, NVIDIAS)
    assert refused.value.hint
    assert has_gpus(spec, NVIDIAS)


@pytest.mark.parametrize(
    ("spec", "several"),
    [
        ({}, False),
        (with_devices(CONTROL, node(1), UVM), False),
        (with_devices(node(1), node(1, "/dev/gpu")), False),
        (with_devices(node(1), node(0)), True),
        ({**with_devices(node(1)), **with_env("all")}, False),
        (with_env("3"), False),
        (with_env("3,1"), True),
        (with_cdi(one="nvidia.com/gpu=0", two="nvidia.com/gpu=0"), False),
        (with_cdi(one="nvidia.com/gpu=0", two="nvidia.com/gpu=1"), True),
        (with_hook(*CTR, "--device=0"), False),
    ],
)
def test_one_or_several(spec: dict[str, Any], several: bool) -> None:
    assert may_be_several(spec, NVIDIAS) == several
    assert not may_be_several(with_env("3,1"), "runc"), "which heeds no such thing"


def test_all_of_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = tmp_path / "gpus"
    monkeypatch.setattr("shim.gpu.given.LISTED", str(listed))
    assert may_be_several(with_env("all"), NVIDIAS), "nobody knows"
    (listed / "0000:01:00.0").mkdir(parents=True)
    assert not may_be_several(with_env("all"), NVIDIAS)
    (listed / "0000:02:00.0").mkdir()
    assert may_be_several(with_env("all"), NVIDIAS)


def test_without_nvml() -> None:
    with pytest.raises(Unfit, match=r"no GPU '/dev/nvidia0' here \(NVML knows: none\)"):
        given(with_devices(node(0)), [])
    assert given(with_env("all"), [], NVIDIAS) == []
