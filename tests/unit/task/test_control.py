"""`thaw checkpoint`'s service over a real socket; what it does is in test_checkpointing.py."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from fakes.pod import Pod

from shim.errors import NotFound
from shim.proto.control_pb import CheckpointRequest, CheckpointResponse
from shim.task.control import ControlService
from shim.ttrpc.client import Client
from shim.ttrpc.server import Server


def test_it_is_asked_over_the_shims_socket(pod: Pod) -> None:
    control = ControlService(pod.service)
    services: Any = {control.NAME: control.methods()}
    path = str(pod.folder / "shim.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    server = pod.node.do(lambda: Server(pod.node.loop, listener, services))
    try:
        with Client(path) as client, pytest.raises(NotFound, match="container x not created"):
            client.call(
                "thaw.v1.Control",
                "Checkpoint",
                CheckpointRequest(id="x", name="warm"),
                CheckpointResponse,
                timeout=15.0,
            )
    finally:
        pod.node.do(server.close)
