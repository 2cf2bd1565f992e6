"""Which image a container was made from: only containerd knows, and it is asked over gRPC."""

from __future__ import annotations

from shim.errors import Unavailable
from shim.proto.containerd_pb import (
    GetContainerRequest,
    GetContainerResponse,
    GetImageRequest,
    GetImageResponse,
)

TIMEOUT = 5.0  # seconds for one question


def image_of(address: str, namespace: str, container_id: str) -> tuple[str, str]:
    """The image's name and the digest of its manifest or index; ("", "") without a containerd.

    A tag can be moved, so it is the digest that decides whether two containers have one image.
    """
    if not address:
        return "", ""
    import grpc

    with grpc.insecure_channel(f"unix://{address}") as channel:

        def ask(service: str, request: object, response: type) -> object:
            call = channel.unary_unary(
                f"/containerd.services.{service}/Get",
                request_serializer=lambda message: message.encode(),
                response_deserializer=response.decode,  # type: ignore[attr-defined]
            )
            return call(request, timeout=TIMEOUT, metadata=[("containerd-namespace", namespace)])

        try:
            wanted = GetContainerRequest(id=container_id)
            found = ask("containers.v1.Containers", wanted, GetContainerResponse)
            assert isinstance(found, GetContainerResponse)
            name = found.container.image if found.container else ""
            if not name:
                return "", ""
            image = ask("images.v1.Images", GetImageRequest(name=name), GetImageResponse)
            assert isinstance(image, GetImageResponse)
        except grpc.RpcError as error:
            raise Unavailable(
                f"containerd does not say which image {container_id} has: {error.details()}",
                hint=f"is it listening at {address}?",
            ) from error
    target = image.image.target if image.image else None
    return name, target.digest if target else ""
