"""Snapshots in a real registry, and in a real containerd's content store."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed import fetch
from bed import registry as bed
from bed.lane import CRI_NAMESPACE, Lane
from fakes.artifacts import files, left, made
from fakes.registry import digest_of

from shim.config import Config
from shim.reference import parse
from shim.registry import pull, push
from shim.registry.progress import Progress
from shim.snapshot.artifact import manifest_of
from shim.snapshot.store import Store


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with bed.running(tmp_path_factory.mktemp("bed") / "registry") as registry:
        yield registry.host


@pytest.fixture
def config(host: str, tmp_path: Path) -> Config:
    return Config(
        {
            "registry.plain_http": host,
            "registry.auth": "",
            "audit.log": str(tmp_path / "audit.log"),
        }
    )


class Counted(Progress):
    """How many bytes came, and of how many."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def begin(self, what: str, total: int) -> None:
        self.total, self.done = total, 0

    def advance(self, count: int) -> None:
        self.done += count


def skopeo(*arguments: str) -> str:
    command = [str(fetch.skopeo()), "--insecure-policy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pushed_and_pulled(host: str, config: Config, tmp_path: Path) -> None:
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    snapshot = made(here)
    reference = parse(f"{host}/team/worker:1")
    counted = Counted()
    digest = push(snapshot, reference, config, counted)
    assert counted.done == counted.total > 0
    assert push(snapshot, parse(f"{host}/team/worker:2"), config) == digest  # nothing is sent

    id = pull(there, reference, config, counted, name="mine")
    assert counted.done == counted.total > 0
    assert files(there.path_of(id)) == files(snapshot.path)
    assert there.snapshot(id).digest == digest
    assert set(there.names()) == {reference.file_name, "mine"}
    assert left(there) == left(here) == []
    assert pull(there, parse(f"{host}/team/worker@{digest}"), config) == id


def test_skopeo_reads_and_writes_what_we_do(host: str, config: Config, tmp_path: Path) -> None:
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    snapshot = made(here, seed=3)
    push(snapshot, parse(f"{host}/team/first:1"), config)
    inner = f"docker://{host}/team/second:1"
    skopeo("copy", "--dest-tls-verify=false", f"oci:{snapshot.path}", inner)
    skopeo("copy", f"oci:{snapshot.path}", f"dir:{tmp_path / 'copy'}")
    raw, manifest = manifest_of(snapshot)
    assert (tmp_path / "copy/manifest.json").read_bytes() == raw
    for blob in manifest.layers:
        assert digest_of((tmp_path / "copy" / blob.hex).read_bytes()) == blob.digest

    id = pull(there, parse(f"{host}/team/second:1"), config)
    assert there.snapshot(id).digest == snapshot.digest
    assert files(there.path_of(id)) == files(snapshot.path)


def test_from_containerd(host: str, config: Config, tmp_path: Path, lane: Lane) -> None:
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    snapshot = made(here, seed=4)
    digest = push(snapshot, parse(f"{host}/team/contained:1"), config)
    archive = tmp_path / "image.tar"
    name = "registry.invalid/team/contained:1"  # nobody could be asked
    skopeo("copy", f"oci:{snapshot.path}", f"oci-archive:{archive}:{name}")
    lane.ctr("images", "import", "--no-unpack", str(archive), namespace=CRI_NAMESPACE)
    try:
        id = pull(there, parse(name), config, containerd=str(lane.places.socket))
        assert there.snapshot(id).digest == digest
        assert files(there.path_of(id)) == files(snapshot.path)
    finally:
        lane.ctr("images", "delete", "--sync", name, namespace=CRI_NAMESPACE)
