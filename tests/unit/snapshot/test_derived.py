"""The name of `auto`: equal for equal containers, and telling nobody anything."""

from __future__ import annotations

import copy
import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.host import open_fds
from fakes.snapshots import HOST, ORIGIN

from shim.errors import FailedPrecondition
from shim.gpu import preload
from shim.names import KEY
from shim.reference import check_name
from shim.snapshot.config import Gpu, Host, Origin
from shim.snapshot.derived import key_of, name_of

SECRET = b"k" * 32
SPEC: dict[str, Any] = {
    "hostname": "worker-7d9f",
    "annotations": {"io.kubernetes.cri.sandbox-name": "worker-7d9f-x2x"},
    "process": {"env": ["MODEL=qwen3", "TOKEN=hush", "HOSTNAME=worker-7d9f"]},
    "linux": {"resources": {"memory": {"limit": 1 << 30}, "devices": [{"allow": False}]}},
}


def named(
    spec: dict[str, Any] = SPEC, origin: Origin = ORIGIN, host: Host = HOST, key: bytes = SECRET
) -> str:
    return name_of(spec, origin, host, key)


def with_env(*entries: str) -> dict[str, Any]:
    return {**SPEC, "process": {"env": list(entries)}}


def test_it_is_a_name() -> None:
    assert re.fullmatch(r"auto-worker-[0-9a-f]{20}", named())
    assert check_name(named()) == named()
    odd = replace(ORIGIN, container="Ünder_score" + "x" * 99)
    assert check_name(named(origin=odd))
    assert re.fullmatch(r"auto-[0-9a-f]{20}", named(origin=replace(ORIGIN, container="")))


def test_gpus_of_one_kind_are_as_good_as_others() -> None:
    """The device plugin says which it has chosen; another kind, or more of them, are others."""
    one = Gpu("H100", 80 << 30, "580.159.04", 1)
    plain = with_env("MODEL=qwen3")
    chosen = [
        with_env("MODEL=qwen3", f"NVIDIA_VISIBLE_DEVICES={word}") for word in ("GPU-1", "all")
    ]
    host = replace(HOST, gpus=[one])
    assert len({named(spec, host=host) for spec in (plain, *chosen)}) == 1
    kinds: list[list[Gpu]] = [[], [one], [replace(one, model="A100")], [replace(one, count=2)]]
    assert len({named(chosen[0], host=replace(HOST, gpus=gpus)) for gpus in kinds}) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"image_digest": "sha256:bb"},
        {"args": ["python3", "other.py"]},
        {"cwd": "/"},
        {"user": [0, 0]},
        {"terminal": True},
        {"namespace": "elsewhere"},
        {"container": "another"},
        {"seccomp": ""},
        {"mounts": ORIGIN.mounts[:-1]},
        {"capabilities": {}},
    ],
)
def test_another_container_has_another_name(change: dict[str, Any]) -> None:
    assert named(origin=replace(ORIGIN, **change)) != named()


def test_so_have_other_environments_limits_and_machines() -> None:
    others = [
        named(with_env("MODEL=qwen3", "TOKEN=other")),
        named(with_env("MODEL=qwen3")),
        named({**SPEC, "linux": {"resources": {"memory": {"limit": 2 << 30}}}}),
        named(host=replace(HOST, cpu_features=["sse2"])),
        named(host=replace(HOST, architecture="aarch64")),
        named(key=b"o" * 32),
    ]
    assert len({named(), *others}) == len(others) + 1


def test_what_tells_pods_apart_does_not_count() -> None:
    assert named({**SPEC, "hostname": "another"}) != "", "its value is in no variable"
    env = SPEC["process"]["env"]
    more = [
        *("POD_NAME=worker-1", "POD_IP=10.0.0.9", "MY_NODE_NAME=n", "WHO=worker-7d9f-x2x"),
        *("REDIS_SERVICE_HOST=10.1.1.1", "REDIS_SERVICE_PORT=1", "REDIS_SERVICE_PORT_MAIN=1"),
        *("REDIS_PORT=tcp://10.1.1.1:1", "REDIS_PORT_1_TCP_ADDR=x", "REDIS_PORT_1_TCP=y"),
    ]
    assert named(with_env(*env, *more)) == named()
    assert named(with_env(*reversed(env))) == named()
    devices = {"memory": {"limit": 1 << 30}, "devices": [{"allow": True}]}
    assert named({**SPEC, "linux": {"resources": devices}}) == named()


def test_the_gpu_memory_library() -> None:
    """Whichever version it is: an upgrade makes no snapshot anew. Who goes without is another."""
    found = set()
    for digit in "01":
        spec = copy.deepcopy(SPEC)
        preload.give(spec, preload.path_of("/libraries", digit * 64))
        found.add(named(spec, replace(ORIGIN, library=digit * 64)))
    assert len(found) == 1
    assert named() not in found
    theirs = with_env(*SPEC["process"]["env"], "LD_PRELOAD=/lib/jemalloc.so")
    assert named(theirs) != named()


@pytest.mark.parametrize(
    "setting",
    [
        *("SERVER_PORT=9000", "REDIS_PORT=6379", "DB_SERVICE_HOST=test", "KUBERNETES_MODE=x"),
        *("REDIS_PORT=tcp://10.1.1.1:1", "POD_FLAVOUR=x", "HOSTNAME=chosen", "A_SERVICE_PORT=1"),
    ],
)
def test_what_only_looks_like_a_service_counts(setting: str) -> None:
    env = SPEC["process"]["env"]
    assert named(with_env(*env, setting)) != named()
    other = f"{setting}0"
    assert named(with_env(*env, setting)) != named(with_env(*env, other))


def mounted(source: Path | str, destination: str = "/data") -> dict[str, Any]:
    return {**SPEC, "mounts": [{"destination": destination, "source": str(source)}]}


def kubelets(folder: Path, uid: str, kind: str, **contents: str) -> Path:
    """A volume as kubelet writes it."""
    volume = folder / "pods" / uid / "volumes" / f"kubernetes.io~{kind}" / "volume"
    (volume / "..2026").mkdir(parents=True)
    for name, text in contents.items():
        (volume / "..2026" / name).write_text(text)
    (volume / "..data").symlink_to("..2026")
    return volume


def of_pod(spec: dict[str, Any], uid: str) -> dict[str, Any]:
    notes = {**SPEC["annotations"], "io.kubernetes.cri.sandbox-uid": uid}
    return {**spec, "annotations": notes}


def test_what_is_mounted_counts_by_where_it_is_from() -> None:
    assert named(mounted("/srv/a")) != named(mounted("/srv/b"))
    assert named(mounted("/srv/a")) == named(mounted("/srv/a"))
    own = (mounted(f"/pods/{n}/etc-hosts", "/etc/hosts") for n in (1, 2))
    assert len({named(spec) for spec in own}) == 1, "kubelet's own"


def test_volumes_of_one_pod_and_of_another(tmp_path: Path) -> None:
    one = kubelets(tmp_path, "1111", "empty-dir")
    two = kubelets(tmp_path, "2222", "empty-dir")
    assert named(of_pod(mounted(one), "1111")) == named(of_pod(mounted(two), "2222"))


@pytest.mark.parametrize("kind", ["configmap", "secret"])
def test_contents_of_config_maps_and_secrets_count(tmp_path: Path, kind: str) -> None:
    one = kubelets(tmp_path, "1111", kind, model="a", key="k")
    same = kubelets(tmp_path, "2222", kind, model="a", key="k")
    other = kubelets(tmp_path, "3333", kind, model="b", key="k")
    moved = kubelets(tmp_path, "4444", kind, modelk="ey", a="k")
    names = [
        named(of_pod(mounted(volume), uid))
        for volume, uid in ((one, "1111"), (same, "2222"), (other, "3333"), (moved, "4444"))
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_a_volume_that_is_not_as_kubelet_makes_it(tmp_path: Path) -> None:
    volume = kubelets(tmp_path, "1111", "secret", key="k")
    (volume / "..2026" / "key").unlink()
    (volume / "..2026" / "key").symlink_to("/dev/zero")
    (volume / "..data").unlink()
    before = open_fds()
    assert named(mounted(volume))
    (volume / "..data").symlink_to("..2026")
    assert named(mounted(volume)), "and no link is read"
    assert open_fds(before) == set()


def test_without_a_digest_there_is_no_name() -> None:
    with pytest.raises(FailedPrecondition, match="from which image"):
        named(origin=replace(ORIGIN, image_digest=""))


def test_the_key_is_made_once(tmp_path: Path) -> None:
    store = tmp_path / "store"
    key = key_of(store)
    assert len(key) == 32
    assert key_of(store) == key
    assert stat.S_IMODE((store / KEY).stat().st_mode) == 0o600
    assert os.listdir(store) == [KEY]
    assert key_of(tmp_path / "other") != key


def test_a_key_that_is_none(tmp_path: Path) -> None:
    (tmp_path / KEY).write_bytes(b"short")
    with pytest.raises(FailedPrecondition, match="no key of ours"):
        key_of(tmp_path)


def test_the_control_directory_is_every_containers_own() -> None:
    """It is named for the container's id."""

    def with_control(source: str) -> dict[str, Any]:
        mount = {"destination": "/snapshot-control", "type": "bind", "source": source}
        return {**SPEC, "mounts": [*(SPEC.get("mounts") or []), mount]}

    assert named(with_control("/run/thaw/k8s.io/1/control")) == named(with_control("/run/2"))
