"""Registration by HTTP: a POST of the worker's identity to a URL, and a DELETE of it in the end."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from shim.conduct import Registration
from shim.errors import RegistrationFailed
from shim.registration.backend import Backend
from shim.registration.filling import filled
from shim.registration.place import host_and_port, resolve
from shim.worker.actions import Answer, Timed, ask, own_addresses
from shim.worker.readable import excerpt

_GONE = (404, 410)


class Callback(Backend):
    """One URL, http://HOST or a port of the pod's own; see Registration."""

    def __init__(self, asked: Registration, identity: Mapping[str, Any]) -> None:
        local = not asked.target.startswith("//")
        place, _, path = asked.target.removeprefix("//").partition("/")
        self._tls = asked.kind == "https"
        if local:
            self._host, self._port = "", int(place)
        else:
            self._host, self._port = host_and_port(place, 443 if self._tls else 80)
        self._place = "localhost" if local else place
        self._path = "/" + filled(path, identity, lambda text: quote(text, safe=""))
        self._body = json.dumps(dict(identity)).encode()
        self._what = f"{asked.kind}:{asked.target}"

    def register(self, seconds: float) -> None:
        answer = self._send("POST", seconds)
        if not 200 <= answer.status < 300:
            raise self._failed(answer)

    def deregister(self, seconds: float) -> None:
        answer = self._send("DELETE", seconds)
        if not 200 <= answer.status < 300 and answer.status not in _GONE:
            raise self._failed(answer)

    def _failed(self, answer: Answer) -> RegistrationFailed:
        said = excerpt(answer.body)
        return RegistrationFailed(f"{self._what}: answered {answer.status}: {said}".rstrip(": "))

    def _send(self, method: str, seconds: float) -> Answer:
        ends = time.monotonic() + seconds
        try:
            for connected in self._connections(ends):
                return ask(Timed(connected, ends), self._place, method, self._path, self._body)
        except TimeoutError as error:
            raise RegistrationFailed(f"{self._what}: no answer within {seconds:g} s") from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise RegistrationFailed(f"{self._what}: broke off: {reason}") from error
        except http.client.HTTPException as error:
            reason = type(error).__name__
            raise RegistrationFailed(f"{self._what}: broke off: {reason}") from error
        raise RegistrationFailed(f"{self._what}: nobody listens")

    def _connections(self, ends: float) -> Iterator[socket.socket]:
        def left() -> float:
            return max(ends - time.monotonic(), 0.001)

        hosts = resolve(self._host, self._port, left()) if self._host else own_addresses()
        for address in hosts:
            try:
                connected = socket.create_connection((address, self._port), timeout=left())
            except TimeoutError:
                raise
            except OSError:
                continue
            with connected:
                if self._tls:
                    context = ssl.create_default_context()
                    connected = context.wrap_socket(connected, server_hostname=self._host)
                with connected:
                    yield connected
            return
