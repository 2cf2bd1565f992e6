"""The HTTP side of the workers here: one answer at a time, in JSON. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = Callable[[str, dict[str, str]], dict[str, Any]]


def serve(port: int, answer: Answer) -> None:
    """Answer GET /health with nothing, and everything else with what `answer` makes of it.

    It is given the path, and the query as names and values.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            query = {name: texts[-1] for name, texts in parse_qs(asked.query).items()}
            told = {} if asked.path == "/health" else answer(asked.path, query)
            content = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.do_GET()  # without a body: what is asked for stands in the path

        def log_message(self, *_: Any) -> None:
            pass

    # Not http.server's own, which asks for its name: where there is no DNS that takes its time.
    TCPServer.allow_reuse_address = True
    with TCPServer(("0.0.0.0", port), Handler) as server:
        print("ready", flush=True)
        server.serve_forever()
