"""Every rule on its own: what fits, with one thing changed, does not, and says which."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.nvml import A100, GIB, H100, FakeNvml, machine
from fakes.snapshots import CONFIG, HOST, ORIGIN

from shim.config import Config
from shim.errors import OtherContainer, Unfit
from shim.gpu import preload
from shim.snapshot.config import Gpu, Host, Origin, SnapshotConfig, SpecMount
from shim.snapshot.cuda import CudaProcess, CudaState, GpuRegion
from shim.snapshot.fit import check, gpu_reasons, library_reasons, never_fits, reasons

DATA, SHM, PROC = ORIGIN.mounts


def spaces(**kinds: str) -> dict[str, str]:
    return {**ORIGIN.namespaces, **kinds}


def judged(
    config: SnapshotConfig = CONFIG,
    live: Origin = ORIGIN,
    host: Host = HOST,
    *,
    outright: bool = False,
) -> None:
    check(config, live, host, outright=outright)


@pytest.mark.parametrize("stack", [(replace(SHM, options=["ro"]), SHM), (SHM, SHM)])
def test_mounts_of_one_destination_all_count(stack: tuple[SpecMount, ...]) -> None:
    """The last one hides the others, and CRIU would bring back those of the snapshot."""
    live = replace(ORIGIN, mounts=[DATA, *stack, PROC])
    with pytest.raises(Unfit, match="mount /dev/shm was"):
        judged(live=live)
    judged(replace(CONFIG, origin=live), live)


def test_itself_fits() -> None:
    judged()


# what the pod has instead → the words that must be in the reason
POD: list[tuple[dict[str, Any], str]] = [
    ({"image_digest": "sha256:bb"}, "made from image registry/worker:1 sha256:aa, the pod has"),
    ({"image_digest": "", "image": "registry/worker:2"}, "registry/worker:2"),
    ({"args": ["python3", "other.py"]}, r"^argument 1 differs \(make"),
    ({"args": ["python2", "serve.py"]}, r"^the program \(argument 0\) differs \(make"),
    ({"args": ["python3", "serve.py", "-v"]}, "^it has 2 arguments, the pod 3"),
    ({"args": []}, "^it has 2 arguments, the pod 0"),
    ({"cwd": "/"}, "cwd was /srv, the pod has /"),
    ({"terminal": True}, "terminal was False"),
    ({"user": [0, 0]}, r"user was \[1000, 1000, 5, 6\], the pod has \[0, 0\]"),
    ({"user": [1000, 1000, 5]}, "user was"),
    ({"capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"]}}, "CAP_CHOWN"),
    ({"capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"]}}, "effective capabilities"),
    ({"seccomp": ""}, "its seccomp profile is not the pod's"),
    ({"apparmor": "unconfined"}, "its apparmor profile is not the pod's"),
    ({"selinux": "x"}, "its selinux profile is not the pod's"),
    ({"read_only": True}, "read-only"),
    ({"mounts": [DATA, PROC]}, "the pod lacks a mount at /dev/shm"),
    (
        {"mounts": [*ORIGIN.mounts, SpecMount("/secret", "bind", ["ro"])]},
        "the pod has a mount at /secret that the snapshot lacks",
    ),
    (
        {"mounts": [replace(DATA, options=["rbind", "rprivate", "rw"]), SHM, PROC]},
        r"mount /data was bind \(rbind,ro,rprivate\), here it is bind \(rbind,rprivate,rw\)",
    ),
    ({"mounts": [replace(DATA, type="tmpfs"), SHM, PROC]}, "here it is tmpfs"),
    (
        {"mounts": [replace(DATA, options=["rbind", "ro", "rshared"]), SHM, PROC]},
        "here it is bind .rbind,ro,rshared",
    ),
    ({"namespaces": spaces(pid="host")}, "no pid namespace of its own"),
    ({"namespaces": spaces(pid="joined")}, "shared pid namespace or hostPID"),
    ({"namespaces": spaces(network="host")}, r"on the host's network \(hostNetwork\)"),
    ({"namespaces": spaces(ipc="host")}, "its ipc namespace was 'joined', here it is 'host'"),
    ({"namespaces": spaces(user="new")}, "its user namespace was 'host', here it is 'new'"),
    ({"namespaces": spaces(cgroup="host")}, "its cgroup namespace was"),
    ({"namespaces": spaces(uts="new")}, "its uts namespace was"),
    ({"container": "sidecar"}, "of container 'worker', not 'sidecar'"),
]


@pytest.mark.parametrize(("changes", "reason"), POD, ids=[reason[:40] for _, reason in POD])
def test_a_pod_that_differs(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unfit, match=reason) as refused:
        judged(live=replace(ORIGIN, **changes))
    assert refused.value.hint


def test_no_secret_is_told() -> None:
    """Reasons are in logs, in events and in what a client is answered."""
    shm = replace(SHM, type="x")
    then = replace(
        ORIGIN,
        args=["python3", "--api-key=hunter2", "hunter2"],
        mounts=[DATA, replace(shm, options=["password=hunter2", "size=64k"]), PROC],
        env=["KEY=hunter2"],
    )
    now = replace(
        then,
        args=["python3", "--api-key=hunter3", "hunter3"],
        mounts=[DATA, replace(shm, options=["password=hunter3", "size=65k"]), PROC],
        env=["KEY=hunter3"],
    )
    found = list(reasons(replace(CONFIG, origin=then), now, HOST))
    assert found == [
        "argument 1 differs",
        "argument 2 differs",
        "mount /dev/shm was x (password=…,size=64k), here it is x (password=…,size=65k)",
    ]


# what the snapshot has instead, where the pod must not be given it
SNAPSHOT: list[tuple[dict[str, Any], str]] = [
    ({"no_new_privileges": False}, "it could gain privileges"),
    ({"capabilities": {"ambient": ["CAP_SYS_ADMIN"]}}, "ambient .*CAP_SYS_ADMIN"),
    ({"seccomp": ""}, "its seccomp profile"),
    ({"read_only": True}, "read-only"),
    ({"namespaces": {}}, "its .* namespace was None"),
]


@pytest.mark.parametrize(("changes", "reason"), SNAPSHOT)
def test_a_snapshot_that_wants_more(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unfit, match=reason):
        judged(config=replace(CONFIG, origin=replace(ORIGIN, **changes)))


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (replace(HOST, architecture="aarch64"), "made on x86_64, this is aarch64"),
        (replace(HOST, cpu_features=["sse2"]), "this CPU lacks avx avx2"),
        (replace(HOST, cpu_features=[]), "this CPU lacks avx avx2 sse2"),
        (replace(HOST, kernel_features=["memfd"]), "this kernel lacks rseq"),
        (replace(HOST, cgroup=1), "made on cgroup v2, this machine has v1"),
    ],
)
def test_another_machine(host: Host, reason: str) -> None:
    with pytest.raises(Unfit, match=reason):
        judged(host=host)


# GPUs; what the rules are is shown in gpu/test_rules.py.

KIND = Gpu(H100.model, H100.memory, H100.driver, 1)
ON_GPU = replace(
    CONFIG,
    host=replace(HOST, gpus=[KIND]),
    gpu=CudaState([CudaProcess(7)], ["GPU-old"], {"GPU-old": 60 * GIB}),
)
NODE = {"path": "/dev/nvidia1", "type": "c", "major": 195, "minor": 1}


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two, of which the second is what the snapshot was made with."""
    nvml = FakeNvml(tmp_path)
    nvml.use(monkeypatch)
    nvml.has(machine(A100, H100))


@pytest.mark.usefixtures("gpus")
def test_gpus() -> None:
    first = {**NODE, "path": "/dev/nvidia0", "minor": 0}
    assert list(gpu_reasons(ON_GPU, {"linux": {"devices": [NODE]}})) == []
    assert list(gpu_reasons(ON_GPU, None)) == [], "this machine has one"
    [reason] = gpu_reasons(ON_GPU, {"linux": {"devices": [first]}})
    assert f"1 {H100.model}; the container has 1 {A100.model}" in reason
    assert list(gpu_reasons(ON_GPU, {})), "it has none"
    larger = replace(ON_GPU.gpu, memory={"GPU-old": 90 * GIB})
    [reason] = gpu_reasons(replace(ON_GPU, gpu=larger), {"linux": {"devices": [NODE]}})
    assert "90.0 GiB are needed" in reason


def test_gpus_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a worker that used none, whatever its machine had."""
    monkeypatch.setitem(sys.modules, "shim.gpu.nvml", None)
    assert list(gpu_reasons(replace(ON_GPU, gpu=CudaState()), {})) == []
    judged(replace(ON_GPU, gpu=CudaState()), host=HOST)


IMAGES = Path("/snapshot/criu")  # without a library


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Config, str]:
    """A node with one version of the GPU memory library; which it is."""
    (tmp_path / "made.so").write_bytes(b"one")
    path = preload.keep(str(tmp_path / "libraries"), str(tmp_path / "made.so"))
    made: dict[str, Any] = {}
    preload.give(made, path)
    return Config({"gpu.preloaded": str(tmp_path / "libraries")}), preload.digest_of(made)


def test_the_library_must_be_the_very_same(kept: tuple[Config, str]) -> None:
    settings, digest = kept
    here = replace(CONFIG, origin=replace(ORIGIN, library=digest))
    assert list(library_reasons(here, IMAGES, {}, settings)) == []
    assert list(library_reasons(CONFIG, IMAGES, {}, settings)) == [], "it had none"
    gone = replace(CONFIG, origin=replace(ORIGIN, library="5" * 64))
    [reason] = library_reasons(gone, IMAGES, {}, settings)
    assert "5" * 64 in reason
    assert list(library_reasons(here, IMAGES, {}, Config({"gpu.preloaded": "/none"}))) != []
    images = Path(settings.text("gpu.preloaded"), "..").resolve()
    preload.carry(settings.text("gpu.preloaded"), digest, str(images))
    assert list(library_reasons(here, images, {}, Config({"gpu.preloaded": "/none"}))) == []
    judged(gone, replace(ORIGIN, library=digest))  # no part of what the two are compared by


def test_memory_that_only_the_library_can_move(kept: tuple[Config, str]) -> None:
    """Who goes without has another snapshot, or none: the driver cannot bring that memory back."""
    settings, digest = kept
    region = GpuRegion(1, 2 << 20, 0, "GPU-old")
    with_library = replace(
        ON_GPU,
        origin=replace(ORIGIN, library=digest),
        gpu=CudaState([CudaProcess(7, regions=[region])], ["GPU-old"]),
    )
    by_driver = replace(with_library, gpu=ON_GPU.gpu)
    without: dict[str, str] = {"thaw.dev/gpu-memory": "driver"}
    assert list(library_reasons(with_library, IMAGES, {}, settings)) == []
    assert list(library_reasons(by_driver, IMAGES, without, settings)) == []
    [reason] = library_reasons(with_library, IMAGES, without, settings)
    assert "driver alone" in reason
    off = settings.overridden({"gpu.memory": "driver"})
    assert list(library_reasons(with_library, IMAGES, {}, off)) == [reason]
    # With several GPUs a pod need not say so: what has begun with the library can do with it.
    several = replace(with_library, host=replace(HOST, gpus=[replace(KIND, count=2)]))
    assert list(library_reasons(several, IMAGES, {}, settings)) == []


@pytest.mark.parametrize(
    "live",
    [
        # What does no harm is no reason.
        replace(
            ORIGIN,
            capabilities={
                "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_TIME"],
                "effective": ["CAP_KILL"],
                "ambient": ["CAP_KILL"],
            },
        ),
        replace(ORIGIN, image="registry/worker:moved"),  # the digest decides
        replace(ORIGIN, image_digest=""),  # nobody could be asked: the name decides
        replace(ORIGIN, env=["PATH"], namespace="other", service_account=""),  # policy's affair
    ],
)
def test_pods_that_fit_all_the_same(live: Origin) -> None:
    judged(live=live)


def test_a_pod_that_allows_more_privileges_than_the_worker_had() -> None:
    judged(live=replace(ORIGIN, no_new_privileges=False))


@pytest.mark.parametrize(
    "host",
    [
        replace(HOST, cpu_features=[*HOST.cpu_features, "amx"]),
        replace(HOST, kernel="7.0"),
        replace(HOST, kernel_features=[*HOST.kernel_features, "new"]),
        replace(HOST, gpus=[Gpu("H100", 80 << 30, "550.54", 2)]),
        replace(HOST, criu=""),
    ],
)
def test_machines_that_fit_all_the_same(host: Host) -> None:
    judged(host=host)


def test_a_container_that_was_named_outright() -> None:
    live = replace(ORIGIN, container="sidecar")
    with pytest.raises(OtherContainer) as refused:
        judged(live=live)
    assert refused.value.hint == "thaw.dev/snapshot.sidecar names one outright"
    judged(live=live, outright=True)
    with pytest.raises(Unfit):
        judged(live=replace(live, cwd="/x"), outright=True)


def test_all_reasons_at_once() -> None:
    live = replace(ORIGIN, cwd="/x", read_only=True, container="sidecar")
    found = list(reasons(CONFIG, live, replace(HOST, cgroup=1)))
    assert len(found) == 3
    assert found[0].startswith("made on cgroup")
    assert list(reasons(CONFIG, ORIGIN, HOST)) == []


def test_what_never_fits() -> None:
    assert list(never_fits(ORIGIN)) == []
    assert len(list(never_fits(replace(ORIGIN, namespaces=spaces(pid="host"))))) == 1
    assert len(list(never_fits(replace(ORIGIN, namespaces=spaces(network="host"))))) == 1
