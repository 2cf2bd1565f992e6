"""Servers outside of all pods, which see who comes, and how often."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Greeter:
    """Greets who connects, by IPv4 or IPv6, and keeps the connection."""

    def __init__(self) -> None:
        both = socket.has_dualstack_ipv6()
        self._listener = socket.create_server(
            ("::" if both else "0.0.0.0", 0),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
        )
        self.port = int(self._listener.getsockname()[1])
        self.peers: list[str] = []  # their addresses, in the order in which they came
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            self.peers.append(peer[0].removeprefix("::ffff:"))
            self._connections.append(connection)
            connection.sendall(f"hello {len(self.peers)}".encode())

    def close(self) -> None:
        """End all that it has, with its peers; it may be closed already."""
        if self._thread.is_alive():
            self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        for made in (self._listener, *self._connections):
            made.close()


class WebServer(ThreadingHTTPServer):
    """An HTTP server that keeps connections, and says how many it has had: `connection 1`."""

    def __init__(self) -> None:
        super().__init__(("0.0.0.0", 0), _Kept)
        self.port = int(self.server_address[1])
        self.taken: list[socket.socket] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """End all that it has, with its peers; it may be closed already."""
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
            self.server_close()
        for made in self.taken:
            with suppress(OSError):  # it has ended
                made.shutdown(socket.SHUT_RDWR)


class _Kept(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # which keeps connections
    server: WebServer

    def setup(self) -> None:
        super().setup()
        self.server.taken.append(self.connection)
        self._number = len(self.server.taken)

    def do_GET(self) -> None:
        body = f"connection {self._number}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""
