"""The example model server (../example/server.py) in a container, and how it is asked.

Its Python environment is too big for a test image: it lies in the cache and is mounted read-only at
its own path, with the host's /usr for Debian's Python.
"""

from __future__ import annotations

import json
import os
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from bed.environment import environment
from bed.images import HOST_IMAGE
from bed.pod import Container, Mount, Pod

EXAMPLE = Path(__file__).resolve().parent.parent / "example"
PORT = 8000
NAME = "server"
_START_SECONDS = 180.0


class Answer(NamedTuple):
    """What the model said."""

    tokens: list[int]
    text: str


def model_environment() -> Path:
    """The server's Python environment in the cache (1.2 GB; made once).

    THAW_TORCH_INDEX names an extra package index to take PyTorch from, such as one that has its
    CPU build: the default index may give the build for GPUs, which works too and is much bigger.
    """
    arguments = ["-r", str(EXAMPLE / "requirements.txt")]
    index = os.environ.get("THAW_TORCH_INDEX", "")
    if index:
        arguments += ["--extra-index-url", index]
    return environment("model-env", arguments, (EXAMPLE / "requirements.txt").read_text() + index)


def model_server(pod: Pod, name: str = NAME, **more: Any) -> Container:
    """Create the server's container, always with the same specification, so that a restore fits."""
    place = model_environment()
    mounts = [
        Mount("/usr", "/usr"),
        Mount(place, str(place)),
        Mount(EXAMPLE, "/app"),
    ]
    # No byte code is written: /app is read-only. The home folder is the container's own.
    settings = {"HOME": "/root", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(place / "bin/python"), "/app/server.py"]
    return pod.container(name, HOST_IMAGE, command, env=settings, mounts=mounts, **more)


def wait_until_healthy(address: str, seconds: float = _START_SECONDS) -> None:
    """Return when the server at an address answers its health check."""
    ends = time.monotonic() + seconds
    while True:
        try:
            if _request(address, "GET", "/health")[0] == 200:
                return
        except (OSError, HTTPException) as error:
            if time.monotonic() > ends:
                raise TimeoutError(f"no answer from {address}:{PORT} in {seconds} s") from error
        time.sleep(0.01)


def ask(address: str, prompt: str | list[int], count: int = 32) -> Answer:
    """The completion of a prompt by the server at an address."""
    status, body = _request(
        address, "POST", "/v1/completions", {"prompt": prompt, "max_tokens": count}
    )
    if status != 200:
        raise RuntimeError(f"{address} answered {status}: {body}")
    choice = body["choices"][0]
    return Answer(choice["token_ids"], choice["text"])


def _request(address: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = HTTPConnection(address, PORT, timeout=60)
    try:
        connection.request(method, path, json.dumps(body) if body else None)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()
