"""Blobs from a containerd that has them: all, some, or other ones than it says."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes.artifacts import Artifact
from fakes.registry import Registry, digest_of
from fakes.settled import PATIENCE

from shim.config import Config
from shim.errors import Damaged, NoSuchSnapshot, RegistryFailed
from shim.proto.containerd_pb import Descriptor, GetImageRequest, GetImageResponse, Image
from shim.proto.content_pb import (
    Info,
    InfoRequest,
    InfoResponse,
    ReadContentRequest,
    ReadContentResponse,
)
from shim.reference import Reference, parse
from shim.registry import contentstore, pull
from shim.registry.contentstore import ContentStore
from shim.registry.transport import Interrupted
from shim.snapshot.store import Store


class Containerd:
    """The two services that are asked, in the namespace k8s.io."""

    def __init__(self, address: Path) -> None:
        self.address = str(address)
        self.images: dict[str, str] = {}
        self.content: dict[str, bytes] = {}
        self.read: list[tuple[str, int]] = []
        self.cut = 0  # bytes after which a stream fails
        self.server = grpc.server(ThreadPoolExecutor(4))
        one, many = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        services = {
            "images.v1.Images": {"Get": one(self._image, GetImageRequest.decode, _encoded)},
            "content.v1.Content": {
                "Info": one(self._info, InfoRequest.decode, _encoded),
                "Read": many(self._read, ReadContentRequest.decode, _encoded),
            },
        }
        for name, handlers in services.items():
            whole = f"containerd.services.{name}"
            handler = grpc.method_handlers_generic_handler(whole, handlers)
            self.server.add_generic_rpc_handlers((handler,))
        self.server.add_insecure_port(f"unix://{address}")
        self.server.start()

    def _image(self, request: GetImageRequest, context: Any) -> GetImageResponse:
        if ("containerd-namespace", "k8s.io") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.NOT_FOUND, "not in this namespace")
        if request.name not in self.images:
            context.abort(grpc.StatusCode.NOT_FOUND, "no image")
        target = Descriptor(digest=self.images[request.name])
        return GetImageResponse(image=Image(name=request.name, target=target))

    def _info(self, request: InfoRequest, context: Any) -> InfoResponse:
        if request.digest not in self.content:
            context.abort(grpc.StatusCode.NOT_FOUND, "no content")
        size = len(self.content[request.digest])
        return InfoResponse(info=Info(digest=request.digest, size=size))

    def _read(self, request: ReadContentRequest, context: Any) -> Iterator[ReadContentResponse]:
        self.read.append((request.digest, request.offset))
        data = self.content[request.digest]
        last = min(request.offset + self.cut, len(data)) if self.cut else len(data)
        for first in range(request.offset, last, 65536):
            part = data[first : min(first + 65536, last)]
            yield ReadContentResponse(offset=first, data=part)
        if last < len(data):
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarted")


def _encoded(message: Any) -> bytes:
    return bytes(message.encode())


@pytest.fixture
def containerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Containerd]:
    # Who answers too late is taken for one that has nothing.
    monkeypatch.setattr(contentstore, "TIMEOUT", PATIENCE)
    containerd = Containerd(tmp_path / "containerd.sock")
    yield containerd
    containerd.server.stop(None).wait()


@pytest.fixture
def full(containerd: Containerd, artifact: Artifact, reference: Reference) -> Containerd:
    """A containerd that has the artifact."""
    containerd.images[reference.text] = artifact.digest
    containerd.content = {**artifact.blobs, artifact.digest: artifact.manifests["1"]}
    return containerd


def test_nothing_else_is_asked(
    there: Store,
    reference: Reference,
    config: Config,
    registry: Registry,
    artifact: Artifact,
    full: Containerd,
) -> None:
    id = pull(there, reference, config, containerd=full.address)
    assert there.snapshot(id).digest == artifact.digest
    by_digest = parse(f"{reference.registry}/any/where@{artifact.digest}")
    assert pull(there, by_digest, config, containerd=full.address) == id
    assert registry.asked == []


def test_what_it_has_not_comes_from_the_registry(
    there: Store,
    reference: Reference,
    config: Config,
    registry: Registry,
    pushed: str,
    full: Containerd,
) -> None:
    missing = sorted(registry.blobs)[::2]
    for digest in missing:
        del full.content[digest]
    id = pull(there, reference, config, containerd=full.address)
    assert there.snapshot(id).digest == pushed
    assert sorted(path.rpartition("/")[2] for _, path, _ in registry.asked) == missing


def test_it_does_not_know_the_tag(
    there: Store,
    reference: Reference,
    config: Config,
    registry: Registry,
    pushed: str,
    full: Containerd,
) -> None:
    full.images.clear()
    id = pull(there, reference, config, containerd=full.address)
    assert there.snapshot(id).digest == pushed
    (manifest, *blobs) = registry.asked
    assert manifest[:2] == ("GET", "/v2/team/worker/manifests/1")
    # It need not be this repository's what containerd has.
    assert sorted((method, path.rpartition("/")[2]) for method, path, _ in blobs) == [
        ("HEAD", digest) for digest in sorted(registry.blobs)
    ]


def test_what_it_has_need_not_be_of_the_repository(
    there: Store,
    reference: Reference,
    config: Config,
    registry: Registry,
    pushed: str,
    full: Containerd,
) -> None:
    full.images.clear()
    digest = max(registry.blobs, key=lambda digest: len(registry.blobs[digest]))
    del registry.blobs[digest]
    with pytest.raises(RegistryFailed, match=f"{digest}.*missing"):
        pull(there, reference, config, containerd=full.address)
    assert digest not in {read for read, _ in full.read}


def test_it_is_in_another_namespace(
    there: Store, reference: Reference, config: Config, full: Containerd
) -> None:
    with pytest.raises(NoSuchSnapshot):  # nor is it in the registry
        pull(there, reference, config, containerd=full.address, namespace="moby")


def test_nobody_is_there(
    there: Store, reference: Reference, config: Config, pushed: str, tmp_path: Path
) -> None:
    dead = tmp_path / "dead.sock"
    dead.touch()
    for address in (dead, tmp_path / "none.sock"):
        id = pull(there, reference, config, containerd=str(address))
        assert there.snapshot(id).digest == pushed


def test_it_is_closed_meanwhile(full: Containerd, artifact: Artifact) -> None:
    content = ContentStore(full.address)
    assert content.has(artifact.digest, len(artifact.manifests["1"]))
    content.close()
    assert not content.has(artifact.digest, len(artifact.manifests["1"]))
    with pytest.raises(Interrupted, match="closed"), content.blob(artifact.digest, 1, 0):
        pass


def test_it_is_interrupted(
    there: Store,
    reference: Reference,
    config: Config,
    registry: Registry,
    artifact: Artifact,
    full: Containerd,
) -> None:
    full.cut = 100_000
    id = pull(there, reference, config, containerd=full.address)
    assert there.snapshot(id).digest == artifact.digest
    assert 100_000 in {offset for _, offset in full.read}
    assert registry.asked == []


def test_other_bytes_than_it_says(
    there: Store,
    reference: Reference,
    config: Config,
    registry: Registry,
    pushed: str,
    full: Containerd,
) -> None:
    digest = max(full.content, key=lambda digest: len(set(full.content[digest])))
    full.content[digest] = bytes(len(full.content[digest]))
    id = pull(there, reference, config, containerd=full.address)
    assert there.snapshot(id).digest == pushed
    assert [path.rpartition("/")[2] for _, path, _ in registry.asked] == [digest]


def test_another_manifest_than_it_says(
    there: Store, reference: Reference, config: Config, full: Containerd, artifact: Artifact
) -> None:
    full.content[artifact.digest] = b"{}"
    with pytest.raises(Damaged, match=artifact.digest):
        pull(there, reference, config, containerd=full.address)
    assert digest_of(b"{}") != artifact.digest
