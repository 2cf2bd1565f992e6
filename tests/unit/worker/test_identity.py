"""Who a worker is: two are never the same, and what is theirs comes from the live pod."""

from __future__ import annotations

import json
import os
import socket
import uuid
from datetime import UTC, datetime
from pathlib import Path

from fakes.inmates import inmate
from fakes.namespaces import Network

from shim.worker import identity

NOTES = {
    "io.kubernetes.cri.sandbox-name": "pod-1",
    "io.kubernetes.cri.sandbox-namespace": "team",
    "io.kubernetes.cri.sandbox-uid": "f00",
    "io.kubernetes.cri.container-name": "worker",
}


def test_an_identity() -> None:
    made = identity.make(
        NOTES, container="c1", hostname="h", ips=["10.0.0.1"], snapshot="warm", restored=True
    )
    told = json.loads(identity.encode(made))
    assert uuid.UUID(told.pop("generation")).version == 4
    assert len(bytes.fromhex(told.pop("entropy"))) == 64
    age = datetime.now(UTC) - datetime.fromisoformat(told.pop("time"))
    assert age.total_seconds() < 10
    assert told == {
        "pod": "pod-1",
        "namespace": "team",
        "uid": "f00",
        "ips": ["10.0.0.1"],
        "hostname": "h",
        "node": socket.gethostname(),
        "container": "worker",
        "snapshot": "warm",
        "restored": True,
    }


def test_no_two_are_twins() -> None:
    one, other = (identity.make({}, container="c", hostname="", ips=[]) for _ in range(2))
    assert one["generation"] != other["generation"]
    assert one["entropy"] != other["entropy"]
    assert (one["container"], one["restored"]) == ("c", False)


def test_entropy_is_not_told() -> None:
    made = identity.make({}, container="c", hostname="", ips=[])
    assert "entropy" not in identity.public(made)
    assert identity.public(made)["generation"] == made["generation"]


def test_an_introduction(tmp_path: Path) -> None:
    mount = {"destination": "/snapshot-control", "source": str(tmp_path), "options": ["rbind"]}
    spec = {"annotations": NOTES, "mounts": [mount]}
    made = identity.introduce(spec, container="c", pid=os.getpid(), hostname="h", snapshot="warm")
    assert json.loads((tmp_path / "identity.json").read_text()) == made
    assert (made["pod"], made["hostname"], made["restored"]) == ("pod-1", "h", False)
    identity.introduce({}, container="c", pid=os.getpid(), hostname="h")


def test_addresses() -> None:
    with Network() as network:
        pod = network.pod(1)
        assert identity.addresses(os.getpid()) != [pod.address4, pod.address6]
        with inmate(pod.path) as process:
            assert identity.addresses(process.pid) == [pod.address4, pod.address6]
