"""Talking to a worker over HTTP."""

from __future__ import annotations

import json
import time
from http.client import HTTPConnection, HTTPException
from typing import Any

_START_SECONDS = 180.0
_PAUSE = 0.01


def ask(
    address: str,
    port: int,
    path: str = "/check",
    body: dict[str, Any] | None = None,
    seconds: float = 60.0,
) -> dict[str, Any]:
    """What it answers: to a GET, or to a POST if there is a body; {} if that is nothing.

    Raises RuntimeError unless the answer is 200.
    """
    connection = HTTPConnection(address, port, timeout=seconds)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            kind = {"Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), kind)
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(
                f"{address}:{port}{path} answered {response.status}: {content!r:.400}"
            )
        answer: dict[str, Any] = json.loads(content) if content else {}
        return answer
    finally:
        connection.close()


def wait_until_healthy(
    address: str, port: int, seconds: float = _START_SECONDS, path: str = "/health"
) -> None:
    """Return when it is warm."""
    ends = time.monotonic() + seconds
    while True:
        try:
            ask(address, port, path)
            return
        except (OSError, HTTPException) as error:
            if time.monotonic() > ends:
                raise TimeoutError(f"no answer from {address}:{port} in {seconds} s") from error
            time.sleep(_PAUSE)
