"""Talking to a worker over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from typing import Any

_START_SECONDS = 180.0
_PAUSE = 0.01
_LOOK = 1.0  # seconds between two looks at whether it still runs


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
    address: str,
    port: int,
    seconds: float = _START_SECONDS,
    path: str = "/health",
    running: Callable[[], bool] = lambda: True,
) -> None:
    """Return when it is warm. Raises TimeoutError; RuntimeError if it is not running any more."""
    ends = time.monotonic() + seconds
    looked = time.monotonic()
    while True:
        try:
            ask(address, port, path)
            return
        except (OSError, HTTPException) as error:
            if time.monotonic() > ends:
                raise TimeoutError(f"no answer from {address}:{port} in {seconds} s") from error
            if time.monotonic() - looked > _LOOK:
                looked = time.monotonic()
                if not running():
                    raise RuntimeError(f"{address}:{port} ended before it answered") from error
            time.sleep(_PAUSE)
