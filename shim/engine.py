"""The engine process: one request on its socket, one answer, and it is over.

    engine.py             the request comes on descriptor 3, with the container's streams
    engine.py undo FILE   remove what an engine that died had made (see work.Work.remember)

It may import what it likes and take the memory it needs. It ends, with everything it has started,
when the daemon closes the socket or dies.
"""

import sys

if __name__ == "__main__":
    sys.path.insert(0, __file__.rpartition("/")[0].rpartition("/")[0])

import json
import os
import signal
import socket
import threading
import traceback
from collections.abc import Mapping
from typing import Any

from shim.errors import ThawError
from shim.work import Work

SOCKET_FD = 3
STREAMS = 8  # descriptors that may come with a request


def main(arguments: list[str]) -> int:
    """Serve the one request; the exit status says whether it went well."""
    if arguments[:1] == ["undo"]:
        with open(arguments[1]) as file:
            request = json.load(file)
        return 0 if "error" not in _answer(request, ()) else 1
    # runc and CRIU inherit it on purpose: should we be killed over a dump, the daemon hears of
    # it when CRIU, too, is done, and does not thaw what CRIU has frozen.
    daemon = socket.socket(fileno=SOCKET_FD)
    _preload()
    request, fds = _receive(daemon)
    threading.Thread(target=_end_with, args=(daemon,), daemon=True).start()
    answer = _answer(request, fds)
    daemon.sendall(json.dumps(answer).encode() + b"\n")
    return 1 if "error" in answer else 0


def _preload() -> None:
    """Pay for the imports while the request is still on its way."""
    import grpc  # noqa: F401 - a tenth of a second

    import shim.checkpoint.engine
    import shim.restore.engine  # noqa: F401


def _receive(daemon: socket.socket) -> tuple[dict[str, Any], tuple[int, ...]]:
    line, fds, _, _ = socket.recv_fds(daemon, 65536, STREAMS)
    while not line.endswith(b"\n"):
        chunk = daemon.recv(65536)
        if not chunk:
            sys.exit(0)  # the daemon did not need us after all
        line += chunk
    for fd in fds:
        os.set_inheritable(fd, False)
    return json.loads(line), tuple(fds)


def _end_with(daemon: socket.socket) -> None:
    """The socket is our lifeline: when it closes, we and all that we started go."""
    try:
        daemon.recv(1)
    except OSError:
        pass
    os.killpg(0, signal.SIGKILL)


def _answer(request: Mapping[str, Any], fds: tuple[int, ...]) -> dict[str, Any]:
    from shim.checkpoint.engine import checkpoint
    from shim.restore.engine import restore, undo

    verbs = {"checkpoint": checkpoint, "restore": restore, "undo": undo}
    try:
        return verbs[request["verb"]](Work.parse(request, fds))
    except ThawError as error:
        return _error(type(error).__name__, error.message, error.hint)
    except OSError as error:
        return _error("Unknown", str(error), "")
    except Exception as error:  # noqa: BLE001 - the daemon must hear of everything
        return _error("Unknown", f"{type(error).__name__}: {error}", traceback.format_exc(limit=-6))


def _error(leaf: str, message: str, hint: str) -> dict[str, Any]:
    return {"error": {"class": leaf, "message": message, "hint": hint}}


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # the daemon has its answer; taking gRPC down would take longer than the work
