"""Asking containerd which image a container has; a small gRPC server is the containerd."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes.settled import PATIENCE

from shim.errors import Unavailable
from shim.proto import containerd_pb as pb
from shim.snapshot import image
from shim.snapshot.image import image_of


class Containerd:
    """Containers and images by name; counts who asks."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.containers: dict[str, str] = {}
        self.images: dict[str, str] = {}
        self.namespaces: list[str] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        self._serve("containers.v1.Containers", pb.GetContainerRequest, self._container)
        self._serve("images.v1.Images", pb.GetImageRequest, self._image)
        self._server.add_insecure_port(f"unix://{path}")
        self._server.start()

    def _serve(self, service: str, request: Any, answer: Any) -> None:
        handler = grpc.unary_unary_rpc_method_handler(
            answer, request.decode, lambda message: message.encode()
        )
        generic = grpc.method_handlers_generic_handler(
            f"containerd.services.{service}", {"Get": handler}
        )
        self._server.add_generic_rpc_handlers((generic,))

    def _container(self, request: pb.GetContainerRequest, context: Any) -> pb.GetContainerResponse:
        self.namespaces.append(dict(context.invocation_metadata())["containerd-namespace"])
        if request.id not in self.containers:
            context.abort(grpc.StatusCode.NOT_FOUND, f"container {request.id}: not found")
        found = pb.Container(id=request.id, image=self.containers[request.id])
        return pb.GetContainerResponse(container=found)

    def _image(self, request: pb.GetImageRequest, context: Any) -> pb.GetImageResponse:
        if request.name not in self.images:
            context.abort(grpc.StatusCode.NOT_FOUND, f"image {request.name}: not found")
        target = pb.Descriptor(digest=self.images[request.name])
        return pb.GetImageResponse(image=pb.Image(name=request.name, target=target))

    def close(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def containerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Containerd]:
    # Who answers too late is asked once more.
    monkeypatch.setattr(image, "TIMEOUT", PATIENCE)
    made = Containerd(tmp_path / "containerd.sock")
    yield made
    made.close()


def test_name_and_digest(containerd: Containerd) -> None:
    containerd.containers["c"] = "registry/worker:1"
    containerd.images["registry/worker:1"] = "sha256:1"
    assert image_of(containerd.address, "k8s.io", "c") == ("registry/worker:1", "sha256:1")
    assert containerd.namespaces == ["k8s.io"]


def test_a_container_without_an_image(containerd: Containerd) -> None:
    containerd.containers["c"] = ""
    assert image_of(containerd.address, "k8s.io", "c") == ("", "")


@pytest.mark.parametrize("known", [False, True])
def test_what_containerd_does_not_know(containerd: Containerd, known: bool) -> None:
    if known:
        containerd.containers["c"] = "removed"
    with pytest.raises(Unavailable, match=r"which image c has: .*not found") as caught:
        image_of(containerd.address, "k8s.io", "c")
    assert containerd.address in caught.value.hint


def test_without_a_containerd(tmp_path: Path) -> None:
    assert image_of("", "k8s.io", "c") == ("", "")
    with pytest.raises(Unavailable, match="which image c has"):
        image_of(str(tmp_path / "nobody.sock"), "k8s.io", "c")
