"""The CRI over one connection: `client.call("RunPodSandbox", request)`, with the answer's own type.

api_pb2.py and api_pb2.pyi are generated and never edited; in runtimeclass/:
    python3 -m grpc_tools.protoc -I . --python_out=. --pyi_out=. bed/cri/api.proto
    sed -i '1i # mypy: disable-error-code="type-arg"' bed/cri/api_pb2.pyi
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc

from bed.cri import api_pb2 as api

# The kubelet's own deadline for every call (runtimeRequestTimeout).
DEADLINE = 120.0

_OPTIONS = [
    ("grpc.enable_http_proxy", 0),  # or a proxy that the environment names would be asked
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]


class Client:
    """A containerd's CRI service, also after a restart; errors arrive as grpc.RpcError."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket}", options=_OPTIONS)

    def close(self) -> None:
        """End the connection; calls under way fail."""
        self._channel.close()

    def call(self, method: str, request: Any, deadline: float = DEADLINE) -> Any:
        """Call a method of the runtime service; the request's name decides the answer's type."""
        return self._unary("RuntimeService", method, request, deadline)

    def start(self, method: str, request: Any, deadline: float = DEADLINE) -> Any:
        """Begin a call and return at once; the answer is the future's result()."""
        return self._method("RuntimeService", method, request).future(request, timeout=deadline)

    def has_image(self, name: str) -> bool:
        """Whether the runtime would find this image without pulling it."""
        request = api.ImageStatusRequest(image=api.ImageSpec(image=name))
        return bool(self._unary("ImageService", "ImageStatus", request, DEADLINE).image.id)

    def ready(self) -> bool:
        """Whether the runtime and its network say that pods can be run."""
        conditions = self.call("Status", api.StatusRequest()).status.conditions
        return all(condition.status for condition in conditions)

    def _unary(self, service: str, method: str, request: Any, deadline: float) -> Any:
        return self._method(service, method, request)(request, timeout=deadline)

    def _method(self, service: str, method: str, request: Any) -> Any:
        answer = getattr(api, type(request).__name__.removesuffix("Request") + "Response")
        return self._channel.unary_unary(
            f"/runtime.v1.{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
