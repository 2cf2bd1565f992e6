"""`thaw fit`: yes, or every reason why not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import looked, snapshots
from fakes.command import Thaw
from fakes.nvml import GIB, H100, FakeNvml, machine
from fakes.pod import make_bundle
from fakes.work import fake_criu

from shim.snapshot.config import Gpu, SnapshotConfig
from shim.snapshot.cuda import CudaProcess, CudaState
from shim.snapshot.host import this_host
from shim.snapshot.mounts import parse
from shim.snapshot.origin import origin_of

SPEC: dict[str, Any] = {
    "process": {
        "cwd": "/srv",
        "user": {"uid": 0, "gid": 0},
        "noNewPrivileges": True,
        "capabilities": {"bounding": ["CAP_SETUID", "CAP_SETGID"]},
    },
    "linux": {
        "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "network", "uts")],
    },
    "annotations": {
        "io.kubernetes.cri.container-name": "worker",
        "thaw.dev/snapshot": "one",
    },
}


@pytest.fixture
def bundle(tmp_path: Path, thaw: Thaw) -> Path:
    thaw.configure(criu=fake_criu(tmp_path), state=str(tmp_path / "state"))
    return make_bundle(tmp_path / "bundles" / "c", ["serve"], SPEC)


def fitting(bundle: Path, **changes: Any) -> SnapshotConfig:
    """The document of a snapshot that was made here, in that container."""
    origin = origin_of(json.loads((bundle / "config.json").read_text()), "", "")
    made = replace(snapshots.CONFIG, origin=replace(origin, **changes), host=this_host("4.2"))
    return replace(made, volumes=[], difference=False, mounts=parse(""), files={})


def reasons(thaw: Thaw, *words: str) -> list[dict[str, str]]:
    said = thaw("fit", *words, "-o", "json", "--address", "/none")
    found: list[dict[str, str]] = said.json["reasons"]
    assert said.status == (4 if found else 0), "the status is the answer"
    assert said.json["fits"] == (not found)
    return found


def test_this_machine(thaw: Thaw, bundle: Path) -> None:
    looked.snapshot(thaw.store, "one", fitting(bundle))
    said = thaw("fit", "one")
    assert (said.status, said.lines) == (0, ["fit: it would be restored on this machine"])
    assert reasons(thaw, "one") == []


def test_all_reasons_of_another_machine(thaw: Thaw, tmp_path: Path, bundle: Path) -> None:
    host = this_host("4.2")
    strange = replace(host, architecture="riscv", cpu_features=[*host.cpu_features, "zz"], cgroup=9)
    looked.snapshot(thaw.store, "one", replace(fitting(bundle), host=strange))
    thaw.configure(criu=str(tmp_path / "none" / "criu"))
    found = reasons(thaw, "one")
    assert [reason["check"] for reason in found] == ["criu", "machine", "machine", "machine"]
    text = " ".join(reason["reason"] for reason in found)
    assert "riscv" in text
    assert "lacks zz" in text
    assert "cgroup v9" in text
    said = thaw("fit", "one")
    assert said.lines[0] == "unfit for this machine:"
    shown = [line.split()[0] for line in said.lines[1:]]
    assert shown == ["criu", "→", "machine", "machine", "machine"]


def test_a_container_it_fits(thaw: Thaw, bundle: Path) -> None:
    looked.snapshot(thaw.store, "one", fitting(bundle))
    assert reasons(thaw, "one", "--bundle", str(bundle)) == []
    said = thaw("fit", "one", "--bundle", str(bundle), "--address", "/none")
    assert said.lines == ["fit: it would be restored in container c"]


def test_all_reasons_of_a_container(thaw: Thaw, bundle: Path) -> None:
    what = fitting(bundle, container="other", args=["x"], cwd="/", namespace="team", read_only=True)
    looked.snapshot(thaw.store, "one", replace(what, volumes=["/cache"]), {
        "volumes/0.tar.0000": snapshots.EMPTY
    })  # fmt: skip
    found = reasons(thaw, "one", "--bundle", str(bundle))
    by_check: dict[str, list[str]] = {}
    for reason in found:
        by_check.setdefault(reason["check"], []).append(reason["reason"])
    assert by_check.keys() == {"fit", "container", "policy", "plan"}
    assert len(by_check["fit"]) == 3
    assert "of container 'other', not 'worker'" in by_check["container"][0]
    assert "namespace team" in by_check["policy"][0]
    assert "no volume at /cache" in by_check["plan"][0]


def test_gpus(thaw: Thaw, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the container, or of this machine; nobody is asked for them without need."""
    gpu = machine(H100)[0]
    nvml = FakeNvml(tmp_path)
    nvml.use(monkeypatch)
    made = fitting(bundle)
    kind = Gpu(gpu.model, gpu.memory, gpu.driver, 1)
    on_gpu = replace(
        made,
        host=replace(made.host, gpus=[kind]),
        gpu=CudaState([CudaProcess(1)], [gpu.uuid], {gpu.uuid: GIB}),
    )
    looked.snapshot(thaw.store, "one", on_gpu)
    [reason] = reasons(thaw, "one")
    assert reason["check"] == "gpu"
    assert f"made with GPUs: 1 {gpu.model}" in reason["reason"]
    nvml.has([gpu])
    assert reasons(thaw, "one") == []
    [reason] = reasons(thaw, "one", "--bundle", str(bundle))
    assert "the container has none" in reason["reason"]
    nvml.fail("nvmlInitWithFlags", 999)
    [reason] = reasons(thaw, "one")
    assert (reason["check"], "NVML" in reason["reason"]) == ("gpu", True)


def test_more_than_the_spec_allows(thaw: Thaw, bundle: Path) -> None:
    """What the threads have, not what the document says of them."""
    looked.snapshot(thaw.store, "one", fitting(bundle))
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"]["capabilities"] = {"bounding": []}
    (bundle / "config.json").write_text(json.dumps(spec))
    assert "privileges" in [r["check"] for r in reasons(thaw, "one", "--bundle", str(bundle))]


def test_a_damaged_snapshot(thaw: Thaw, bundle: Path) -> None:
    made = looked.snapshot(thaw.store, "one", fitting(bundle))
    (made.criu / "mm-1.img").write_bytes(b"x")
    found = reasons(thaw, "one")
    assert {"snapshot", "index"} >= {reason["check"] for reason in found} > set()
    assert "mm-1.img" in found[0]["reason"]


def test_what_has_no_document(thaw: Thaw, tmp_path: Path) -> None:
    looked.images(tmp_path / "bare")
    said = thaw("fit", str(tmp_path / "bare"))
    assert (said.status, said.out) == (3, "")
    assert thaw("fit", "none").status == 3
