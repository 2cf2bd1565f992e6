"""What a running containerd says of itself: who it is, its version, and CRI's configuration.

The messages are the few fields that are needed here of containerd's api/services/version/v1 and of
the CRI's runtime/v1/api.proto.
"""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path
from typing import Any, TypeVar

from shim.proto.wire import BOOL, MAP, STRING, Message

TIMEOUT = 10.0  # seconds for one question
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class _Nothing(Message):
    __slots__ = ()


class _Version(Message):
    __slots__ = ("version",)
    FIELDS = ((1, "version", STRING, None),)

    def __init__(self) -> None:
        self.version = ""


class _Ask(Message):
    __slots__ = ("verbose",)
    FIELDS = ((1, "verbose", BOOL, None),)

    def __init__(self) -> None:
        self.verbose = True


class _Status(Message):
    __slots__ = ("info",)
    FIELDS = ((2, "info", MAP, None),)

    def __init__(self) -> None:
        self.info: dict[str, str] = {}


_Answer = TypeVar("_Answer", bound=Message)


class Daemon:
    """The process that listens at a socket. Raises OSError if there is none."""

    def __init__(self, address: str) -> None:
        self.address = address
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(address)
            found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.pid: int = _CREDENTIALS.unpack(found)[0]

    def version(self) -> str:
        """Its version. Raises OSError."""
        return self._ask(
            "containerd.services.version.v1.Version/Version", _Nothing(), _Version
        ).version

    def cri(self) -> dict[str, Any]:
        """The configuration that CRI runs with. Raises OSError, or ValueError if it tells none."""
        status = self._ask("runtime.v1.RuntimeService/Status", _Ask(), _Status)
        found = json.loads(status.info.get("config", ""))
        if not isinstance(found, dict):
            raise ValueError("CRI's configuration is no JSON object")
        return found

    def search_path(self) -> list[str]:
        """The folders in which it looks for shims: its own PATH."""
        for entry in Path(f"/proc/{self.pid}/environ").read_bytes().split(b"\0"):
            name, _, value = entry.partition(b"=")
            if name == b"PATH":
                return [folder for folder in value.decode(errors="replace").split(":") if folder]
        return []

    def _ask(self, method: str, request: Message, kind: type[_Answer]) -> _Answer:
        import grpc  # slow, and needed by few checks

        with grpc.insecure_channel(f"unix://{self.address}") as channel:
            call = channel.unary_unary(
                f"/{method}",
                request_serializer=lambda message: message.encode(),
                response_deserializer=kind.decode,
            )
            try:
                answer = call(request, timeout=TIMEOUT)
            except grpc.RpcError as error:
                raise OSError(0, f"{method}: {error.details()}", self.address) from error
        assert isinstance(answer, kind)
        return answer
