"""Talking to the worker (worker.py)."""

from __future__ import annotations

import json
import time
from http.client import HTTPConnection, HTTPException
from typing import Any

_START_SECONDS = 180.0


def ask(address: str, port: int, path: str = "/check") -> dict[str, Any]:
    """What it answers. Raises RuntimeError unless that is 200."""
    connection = HTTPConnection(address, port, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"{address}:{port}{path} answered {response.status}: {body!r:.200}")
        answer: dict[str, Any] = json.loads(body)
        return answer
    finally:
        connection.close()


def wait_until_healthy(address: str, port: int, seconds: float = _START_SECONDS) -> None:
    """Return when it is warm."""
    ends = time.monotonic() + seconds
    while True:
        try:
            ask(address, port, "/health")
            return
        except (OSError, HTTPException) as error:
            if time.monotonic() > ends:
                raise TimeoutError(f"no answer from {address}:{port} in {seconds} s") from error
            time.sleep(0.02)
