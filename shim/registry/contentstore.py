"""Manifests and blobs that containerd on this node has already: asked for over gRPC.

Nothing is believed because it comes from there: it is hashed as what comes from a registry is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from shim.errors import Damaged
from shim.proto.containerd_pb import GetImageRequest, GetImageResponse
from shim.proto.content_pb import (
    InfoRequest,
    InfoResponse,
    ReadContentRequest,
    ReadContentResponse,
)
from shim.reference import Reference
from shim.registry.transport import Interrupted
from shim.snapshot.manifest import LARGEST_MANIFEST

NAMESPACE = "k8s.io"
TIMEOUT = 10.0  # seconds for one question
READ_SECONDS = 600.0  # for a blob of at most a GiB


class ContentStore:
    """The content of one namespace of a containerd."""

    def __init__(self, address: str, namespace: str = NAMESPACE) -> None:
        self._channel = grpc.insecure_channel(f"unix://{address}")
        self._metadata = [("containerd-namespace", namespace)]

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def manifest(self, reference: Reference) -> bytes | None:
        """The manifest that a reference leads to here; None if there is none, or no containerd."""
        digest = reference.digest or self._target(reference.text)
        size = self._size(digest) if digest.startswith("sha256:") else None
        if size is None or size > LARGEST_MANIFEST:
            return None
        try:
            with self.blob(digest, size, 0) as (_, blocks):
                found = b"".join(blocks)
        except Interrupted:
            return None
        if f"sha256:{hashlib.sha256(found).hexdigest()}" != digest:
            raise Damaged(f"containerd's content {digest} is damaged", hint="remove it there")
        return found

    def has(self, digest: str, size: int) -> bool:
        """Whether a blob of that size is here."""
        return self._size(digest) == size

    @contextmanager
    def blob(self, digest: str, size: int, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """The bytes of a blob from `start` on."""
        call = self._channel.unary_stream(
            "/containerd.services.content.v1.Content/Read",
            request_serializer=lambda message: message.encode(),
            response_deserializer=ReadContentResponse.decode,
        )
        request = ReadContentRequest(digest=digest, offset=start)
        try:
            answers = call(request, timeout=READ_SECONDS, metadata=self._metadata)
        except ValueError as error:  # closed by another thread
            raise Interrupted("the connection to containerd is closed") from error
        try:
            yield start, self._blocks(answers, start)
        finally:
            answers.cancel()

    def _blocks(self, answers: Any, position: int) -> Iterator[bytes]:
        try:
            for answer in answers:
                if answer.offset != position:
                    raise Interrupted("containerd does not give the content in order")
                position += len(answer.data)
                yield answer.data
        except grpc.RpcError as error:
            raise Interrupted(f"containerd does not give its content: {error.details()}") from error

    def _target(self, name: str) -> str:
        request = GetImageRequest(name=name)
        found = self._ask("images.v1.Images/Get", request, GetImageResponse)
        return found.image.target.digest if found and found.image and found.image.target else ""

    def _size(self, digest: str) -> int | None:
        found = self._ask("content.v1.Content/Info", InfoRequest(digest=digest), InfoResponse)
        return found.info.size if found and found.info else None

    def _ask(self, method: str, request: Any, response: Any) -> Any:
        """The answer, or None if there is none: then it is the registry that is asked."""
        call = self._channel.unary_unary(
            f"/containerd.services.{method}",
            request_serializer=lambda message: message.encode(),
            response_deserializer=response.decode,
        )
        try:
            return call(request, timeout=TIMEOUT, metadata=self._metadata)
        except (grpc.RpcError, ValueError):  # a ValueError: closed by another thread
            return None
