"""ttrpc frames: a ten-byte header and a body of at most 4 MiB.

Header, big-endian: u32 length of the body, u32 stream, u8 kind, u8 flags. What a body means is
left to the session and the client.
"""

from __future__ import annotations

import struct

from shim.errors import ThawError

HEADER = struct.Struct(">IIBB")
MAX_BODY = 4 << 20  # bytes; upstream's limit, which both sides enforce
REQUEST, RESPONSE, DATA = 1, 2, 3


class FrameTooBig(ThawError):
    """A message of more than MAX_BODY bytes; gRPC's RESOURCE_EXHAUSTED."""

    code = 8
    reason = "FrameTooBig"


class Frame:
    """One frame as received; `body` is None if it was too big and has been discarded."""

    __slots__ = ("body", "flags", "kind", "length", "stream")

    def __init__(self, length: int, stream: int, kind: int, flags: int) -> None:
        self.length = length
        self.stream = stream
        self.kind = kind
        self.flags = flags
        self.body: bytes | None = None


def pack(stream: int, kind: int, body: bytes, flags: int = 0) -> bytes:
    """Return header and body as they go over the wire; FrameTooBig if they may not."""
    if len(body) > MAX_BODY:
        raise FrameTooBig(too_big(len(body)))
    return HEADER.pack(len(body), stream, kind, flags) + body


def too_big(length: int) -> str:
    """Return the sentence that refuses a body of `length` bytes."""
    return f"a message of {length} bytes exceeds the limit of {MAX_BODY}"


class Reader:
    """Turns received bytes, however they were split, into frames.

    A frame that is too big is dropped as it streams in, and reported once it is past: only then
    is the connection at the next header.
    """

    __slots__ = ("_buffer", "_dropping", "_left")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._dropping: Frame | None = None
        self._left = 0  # bytes still to drop

    def feed(self, data: bytes) -> list[Frame]:
        """Take more bytes; return the frames that are complete now."""
        self._buffer += data
        frames = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _next(self) -> Frame | None:
        if self._dropping is not None:
            return self._drop(self._dropping)
        if len(self._buffer) < HEADER.size:
            return None
        frame = Frame(*HEADER.unpack_from(self._buffer))
        if frame.length > MAX_BODY:
            del self._buffer[: HEADER.size]
            self._dropping, self._left = frame, frame.length
            return self._drop(frame)
        end = HEADER.size + frame.length
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            frame.body = bytes(view[HEADER.size : end])
        del self._buffer[:end]
        return frame

    def _drop(self, frame: Frame) -> Frame | None:
        count = min(self._left, len(self._buffer))
        del self._buffer[:count]
        self._left -= count
        if self._left:
            return None
        self._dropping = None
        return frame
