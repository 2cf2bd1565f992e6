"""A registry in this process that can misbehave: OCI distribution API over plain HTTP."""

from __future__ import annotations

import hashlib
import re
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fakes.settled import eventually

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
BLOB = re.compile(r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})")
UPLOAD = re.compile(r"/v2/(.+)/blobs/uploads/(.*)")
NAMED = re.compile(r"/v2/(.+)/manifests/(.+)")


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry:
    """What it holds, what it was asked, and how it misbehaves."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.uploads: dict[str, bytearray] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.sent = 0  # bytes of blobs
        self._counting = threading.Lock()
        # Asked first, with the request; one that answers it itself says True.
        self.play: Callable[[Request], bool] = lambda _: False
        self.cut = 0  # bytes after which a blob's connection is cut; 0: never
        self.ranges = True
        self.receive = 0  # bytes after which an upload's connection is cut, once
        self.resumable = True
        self.server = _Server(("127.0.0.1", 0), Request)
        self.server.registry = self

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"

    def count(self, method: str, what: str = "") -> int:
        return sum(m == method and what in path for m, path, _ in self.asked)

    def count_sent(self, size: int) -> None:
        """Of several connections at a time."""
        with self._counting:
            self.sent += size

    def forget(self) -> None:
        """What it was asked and has sent until now.

        Whoever has given up has perhaps asked something that is only read a while later.
        """
        eventually(self.server.at_rest)
        self.asked.clear()
        self.sent = 0

    def new_upload(self) -> str:
        """The name of one that begins: of several at a time each has one of its own."""
        with self._counting:
            name = str(len(self.uploads))
            self.uploads[name] = bytearray()
        return name

    def put(self, name: str, manifest: bytes) -> str:
        digest = digest_of(manifest)
        self.manifests[name] = self.manifests[digest] = manifest
        return digest


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    registry: Registry

    def __init__(self, *args: Any) -> None:
        self._lock = threading.Lock()
        self._connections = 0
        super().__init__(*args)

    def at_rest(self) -> bool:
        """Whether there is no connection, and none that waits to be accepted."""
        with self._lock:
            return not self._connections and not select.select([self.socket], [], [], 0)[0]

    def get_request(self) -> tuple[socket.socket, Any]:
        with self._lock:
            found = super().get_request()
            self._connections += 1
            return found

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._lock:
            self._connections -= 1

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that goes away is part of the play


class Request(BaseHTTPRequestHandler):
    """One connection's requests."""

    protocol_version = "HTTP/1.1"
    server: _Server

    @property
    def registry(self) -> Registry:
        return self.server.registry

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(20)

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        fields.setdefault("Content-Length", str(len(body)))
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def hang_up(self) -> None:
        self.close_connection = True

    def do_GET(self) -> None:
        self.registry.asked.append((self.command, self.path, dict(self.headers.items())))
        if self.registry.play(self):
            return
        if found := BLOB.fullmatch(self.path):
            self._blob(self.registry.blobs.get(found[2]))
        elif found := NAMED.fullmatch(self.path):
            self._manifest(found[2])
        elif (found := UPLOAD.fullmatch(urlsplit(self.path).path)) and self.registry.resumable:
            there = len(self.registry.uploads[found[2]])
            self.answer(204, Location=self.path, Range=f"0-{max(there - 1, 0)}")
        else:
            self.answer(404)

    do_HEAD = do_GET  # noqa: N815 - the name is of http.server

    def do_POST(self) -> None:
        self.registry.asked.append((self.command, self.path, dict(self.headers.items())))
        if self.registry.play(self):
            return
        found = UPLOAD.fullmatch(self.path)
        assert found
        name = self.registry.new_upload()
        self.answer(202, Location=f"/v2/{found[1]}/blobs/uploads/{name}?state=1")

    def do_PATCH(self) -> None:
        self.registry.asked.append((self.command, self.path, dict(self.headers.items())))
        if self.registry.play(self):
            return
        found = UPLOAD.fullmatch(urlsplit(self.path).path)
        assert found
        first = int(self.headers["Content-Range"].partition("-")[0])
        if first != len(self.registry.uploads[found[2]]):
            self.answer(416)
        elif self._receive(self.registry.uploads[found[2]]):
            self.answer(202, Location=self.path)

    def do_PUT(self) -> None:
        self.registry.asked.append((self.command, self.path, dict(self.headers.items())))
        if self.registry.play(self):
            return
        parts = urlsplit(self.path)
        if found := NAMED.fullmatch(parts.path):
            data = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(201, Docker_Content_Digest=self.registry.put(found[2], data))
            return
        found = UPLOAD.fullmatch(parts.path)
        assert found
        blob = self.registry.uploads[found[2]]
        if not self._receive(blob):
            return
        digest = parse_qs(parts.query)["digest"][0]
        if digest_of(bytes(blob)) != digest:
            self.answer(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"no match"}]}')
            return
        self.registry.blobs[digest] = bytes(blob)
        self.answer(201, Docker_Content_Digest=digest)

    def _receive(self, into: bytearray) -> bool:
        left = int(self.headers["Content-Length"])
        while left:
            most = self.registry.receive - len(into) if self.registry.receive else left
            block = self.rfile.read(min(left, most, 65536))
            into += block
            left -= len(block)
            if self.registry.receive and len(into) >= self.registry.receive:
                self.registry.receive = 0
                self.hang_up()
                return False
        return True

    def _manifest(self, name: str) -> None:
        data = self.registry.manifests.get(name)
        if data is None:
            self.answer(404)
        else:
            self.answer(200, data, Content_Type=MANIFEST, Docker_Content_Digest=digest_of(data))

    def _blob(self, data: bytes | None) -> None:
        if data is None:
            self.answer(404, b'{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}')
            return
        first = 0
        wanted = self.headers.get("Range", "")
        if wanted and self.registry.ranges:
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        if self.command == "HEAD":
            return
        last = first + self.registry.cut if self.registry.cut else len(data)
        self.registry.count_sent(len(data[first:last]))
        self.wfile.write(data[first:last])
        if last < len(data):
            self.hang_up()


@contextmanager
def running() -> Iterator[Registry]:
    registry = Registry()
    thread = threading.Thread(target=registry.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield registry
    finally:
        registry.server.shutdown()
        thread.join()
        registry.server.server_close()
