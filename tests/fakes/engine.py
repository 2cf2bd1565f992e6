"""An engine process that does as the request's `play` says; reads descriptor 3 as the real one.

    {"play": "reply", "reply": {…}}    answer that; with "after": PATH, not before there is PATH
    {"play": "die"}                    end without an answer
    {"play": "hang", "child": PATH}    start a child, write its pid to PATH, wait for ever
    {"play": "half"}                   break off in the middle of an answer
    {"play": "restore", "args": […]}   start that as init of a container and answer its pid
    {"play": "fds", "write": TEXT}     write into every descriptor that came along; with "ran" a
                                       worker, without it a runtime that complains

Without `play`, the file `PLAYS/VERB.json` (environment variable FAKE_ENGINE) is the answer.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any


def main() -> None:
    daemon = socket.socket(fileno=3)
    while serve(daemon):  # having waited, it is asked to dump
        pass


def serve(daemon: socket.socket) -> bool:
    """Answer one request; whether there may be another."""
    line = b""
    fds: list[int] = []
    request: dict[str, Any] = {"verb": "read-ahead"}
    while request.get("verb") == "read-ahead":  # wants no answer
        while b"\n" not in line:
            more, new, _, _ = socket.recv_fds(daemon, 1 << 16, 8)
            if not more:
                return False
            line, fds = line + more, fds + new
        first, _, line = line.partition(b"\n")
        request = json.loads(first)
    play = play_of(request)
    mark(request, play)
    while "after" in play and not os.path.exists(play["after"]):
        time.sleep(0.005)
    if play["play"] == "die":
        os._exit(3)
    if play["play"] == "hang":
        hang(daemon, play["child"])
    if play["play"] == "half":
        daemon.sendall(b'{"pid": ')
        return False
    if play["play"] == "restore":
        play["reply"] = {"pid": launch(play["args"], fds), "timeline": {"criu": 0.5}}
        play["reply"]["memory"] = {"memory": "native"}
        play["reply"].update(identity={}, warnings=[])
    for fd in fds if play["play"] == "fds" else ():
        os.write(fd, play["write"].encode())
    reply = play.get("reply", {"fds": len(fds), "request": request})
    daemon.sendall(json.dumps(reply).encode() + b"\n")
    return request.get("verb") == "await"


def mark(request: dict[str, Any], play: dict[str, Any]) -> None:
    """As the real one: a restore that is refused has touched nothing; the others leave a mark."""
    refused = play.get("reply", {}).get("error", {}).get("class") in ("Unfit", "NoSuchSnapshot")
    if request.get("verb") == "restore" and not refused:
        for name in ("restoring", "restored") if "ran" in play else ("restoring",):
            with open(f"{request['folder']}/{name}", "w"):
                pass


def play_of(request: dict[str, Any]) -> dict[str, Any]:
    if "play" in request:
        return request
    folder = os.environ["FAKE_ENGINE"]
    with open(f"{folder}/seen", "a") as file:
        file.write(json.dumps(request) + "\n")
    with open(f"{folder}/{request['verb']}.json") as file:
        play: dict[str, Any] = json.load(file)
        return play


def launch(args: list[str], fds: list[int]) -> int:
    """Start it; when this returns it runs, in a group of its own that does not end with ours."""
    runs, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for number, fd in enumerate(fds, 1):
            os.dup2(fd, number)
        os.execvp(args[0], args)
    os.close(tell)
    os.read(runs, 1)  # its end of the pipe is closed by the exec
    os.close(runs)
    return pid


def hang(daemon: socket.socket, path: str) -> None:
    """As the real engine does while runc works: a child, and a lifeline that ends both."""
    child = os.fork()
    if child == 0:
        daemon.close()
        while True:
            os.read(os.pipe()[0], 1)
    with open(f"{path}.new", "w") as file:
        file.write(str(child))
    os.rename(f"{path}.new", path)
    daemon.recv(1)
    os.killpg(0, 9)


if __name__ == "__main__":
    main()
    sys.exit(0)
