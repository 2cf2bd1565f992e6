"""Which image a container was made from: only containerd knows, and it is asked over gRPC."""

from __future__ import annotations

from collections.abc import Callable

from shim.errors import Unavailable
from shim.proto.containerd_pb import (
    GetContainerRequest,
    GetContainerResponse,
    GetImageRequest,
    GetImageResponse,
)
from shim.snapshot.unary import Connection, Unanswered

TIMEOUT = 5.0  # seconds for one question


def image_of(address: str, namespace: str, container_id: str) -> tuple[str, str]:
    """The image's name and the digest of its manifest or index; ("", "") without a containerd.

    A tag can be moved, so it is the digest that decides whether two containers have one image.
    """
    if not address:
        return "", ""
    metadata = {"containerd-namespace": namespace}
    try:
        with Connection(address, TIMEOUT) as quick:
            return _ask(container_id, lambda method, data: quick.call(method, data, metadata))
    except Unanswered:
        return _by_library(address, metadata, container_id)


def _by_library(address: str, metadata: dict[str, str], container_id: str) -> tuple[str, str]:
    import grpc

    with grpc.insecure_channel(f"unix://{address}") as channel:

        def call(method: str, data: bytes) -> bytes:
            call = channel.unary_unary(method)  # bytes go and come as they are
            answer: bytes = call(data, timeout=TIMEOUT, metadata=list(metadata.items()))
            return answer

        try:
            return _ask(container_id, call)
        except grpc.RpcError as error:
            raise Unavailable(
                f"containerd does not say which image {container_id} has: {error.details()}",
                hint=f"is it listening at {address}?",
            ) from error


def _ask(container_id: str, call: Callable[[str, bytes], bytes]) -> tuple[str, str]:
    wanted = GetContainerRequest(id=container_id).encode()
    answer = call("/containerd.services.containers.v1.Containers/Get", wanted)
    found = GetContainerResponse.decode(answer)
    name = found.container.image if found.container else ""
    if not name:
        return "", ""
    answer = call("/containerd.services.images.v1.Images/Get", GetImageRequest(name=name).encode())
    image = GetImageResponse.decode(answer)
    target = image.image.target if image.image else None
    return name, target.digest if target else ""
