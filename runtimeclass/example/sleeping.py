"""An example server that knows nothing of Thaw, but can be put to sleep as vLLM can.

sleeping.py                     listens on 0.0.0.0:8000 (PORT); --mib N: so much "cache"
GET  /health                    200
POST /sleep?level=1             drops the cache (2: and the weights); 200
POST /wake_up                   takes them back; 200
GET  /is_sleeping               {"is_sleeping": true or false}
POST /v1/completions            200 and a text that depends on the prompt; 503 while it sleeps
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PORT = int(os.environ.get("PORT", "8000"))
MIB = 1 << 20


class Engine:
    """What sleeps: weights from a fixed seed, and a cache."""

    def __init__(self, mib: int) -> None:
        self._mib = mib
        self._lock = threading.Lock()
        self.level = 0
        self.wake_up()

    def sleep(self, level: int) -> None:
        """Let go of the cache, at level 2 of the weights too."""
        with self._lock:
            self.level, self._cache = level, b""
            if level > 1:
                self._weights = b""

    def wake_up(self) -> None:
        """Be as before."""
        with self._lock:
            self._weights = hashlib.shake_256(b"weights").digest(MIB)
            self._cache = os.urandom(self._mib * MIB)
            self.level = 0

    def complete(self, prompt: str) -> str | None:
        """A text, the same for the same prompt; None while it sleeps."""
        with self._lock:
            if self.level:
                return None
            return hashlib.sha256(self._weights + prompt.encode()).hexdigest()[:16]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    engine: Engine

    def do_GET(self) -> None:
        """Health and state."""
        if self.path == "/health":
            self._answer(200, {})
        elif self.path == "/is_sleeping":
            self._answer(200, {"is_sleeping": self.engine.level > 0})
        else:
            self._answer(404, {"error": "no such path"})

    def do_POST(self) -> None:
        """Actions and completions."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        if url.path == "/sleep":
            self.engine.sleep(int(parse_qs(url.query).get("level", ["1"])[0]))
            self._answer(200, {})
        elif url.path == "/wake_up":
            self.engine.wake_up()
            self._answer(200, {})
        elif url.path == "/v1/completions":
            text = self.engine.complete(str(json.loads(body).get("prompt", "")))
            if text is None:
                self._answer(503, {"error": "sleeping"})
            else:
                self._answer(200, {"choices": [{"index": 0, "text": text}]})
        else:
            self._answer(404, {"error": "no such path"})

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def server(port: int, mib: int = 1) -> ThreadingHTTPServer:
    """A server on that port of all addresses."""
    handler = type("Bound", (Handler,), {"engine": Engine(mib)})
    return ThreadingHTTPServer(("0.0.0.0", port), handler)  # noqa: S104 - the pod's address


def main(arguments: list[str]) -> None:
    """Serve."""
    made = server(PORT, int(arguments[1]) if arguments[:1] == ["--mib"] else 1)
    print("ready", flush=True)
    made.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
