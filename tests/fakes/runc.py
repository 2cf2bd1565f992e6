#!/usr/bin/python3 -IS
"""A runc whose containers are plain processes: no namespaces, no cgroups, no root needed.

The folder above `--root` holds what a test reads and writes:

    calls        one JSON list per call: the arguments as they came
    fail/VERB    that verb fails with this text, in the JSON log and with exit status 1
    gate/VERB    a FIFO: the verb waits until it has been opened for writing and closed
    gate/VERB-done   the same, after it has done its work
    resources    what `update` was given

Of CRIU there is this much: `restore` runs the action-script that the file named by the spec's
annotation `org.criu.config` has, at two stages, and ends the process that a stage refuses.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys

# It is run a thousand times: what is dear to import, only those verbs import that need it.

VALUES = {
    "--root",
    "--log",
    "--log-format",
    "--bundle",
    "--pid-file",
    "--console-socket",
    "--process",
    "--resources",
    "--image-path",
    "--work-path",
    "--manage-cgroups-mode",
}


class Failure(Exception):
    """What runc would say."""


def main(argv: list[str]) -> int:
    flags, words = parse(argv)
    if not words:  # runc --version, runc features
        print("runc version 1.1.5+fake\ncommit: none")
        return 0
    verb = words[0]
    if verb == "features":
        print('{"ociVersionMin": "1.0.0"}', end="")
        return 0
    base = os.path.dirname(flags["--root"])
    os.makedirs(base, exist_ok=True)
    with open(f"{base}/calls", "a") as file:
        file.write(json.dumps(argv) + "\n")
    place = f"{flags['--root']}/{words[1]}"
    try:
        wait_at(f"{base}/gate/{verb}")
        if os.path.exists(f"{base}/fail/{verb}"):
            with open(f"{base}/fail/{verb}") as file:
                raise Failure(file.read())
        VERBS[verb](flags, words, place)
        wait_at(f"{base}/gate/{verb}-done")
    except Failure as failure:
        with open(flags["--log"], "a") as file:
            file.write(json.dumps({"level": "warning", "msg": "just so"}) + "\n")
            file.write(json.dumps({"level": "error", "msg": str(failure)}) + "\n")
        print(f"runc said: {failure}", file=sys.stderr)
        return 1
    return 0


def parse(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    flags: dict[str, str] = {}
    words = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word in VALUES:
            flags[word] = rest.pop(0)
        elif word.startswith("--"):
            flags[word] = ""
        else:
            words.append(word)
    return flags, words


def wait_at(gate: str) -> None:
    try:
        with open(gate) as file:
            file.read()
    except FileNotFoundError:  # there is none, or it has just been opened
        pass


def create(flags: dict[str, str], _words: list[str], place: str) -> None:
    os.makedirs(place)
    os.mkfifo(f"{place}/exec.fifo")
    launch(flags, spec_of(flags)["process"], place, f"{place}/exec.fifo")


def restore(flags: dict[str, str], _words: list[str], place: str) -> None:
    spec = spec_of(flags)
    os.makedirs(place)
    act(spec, "pre-restore", 0)
    launch(flags, spec["process"], place, "")
    try:
        act(spec, "post-restore", living(place))
    except Failure:
        os.kill(living(place), signal.SIGKILL)
        raise


def act(spec: dict[str, dict[str, object]], stage: str, pid: int) -> None:
    path = spec.get("annotations", {}).get("org.criu.config")
    if not isinstance(path, str) or not os.path.exists(path):
        return
    with open(path) as file:
        words = [line.split() for line in file]
    import subprocess

    for script in [word[1] for word in words if word[0] == "action-script"]:
        environment = {"CRTOOLS_SCRIPT_ACTION": stage, "CRTOOLS_INIT_PID": str(pid)}
        done = subprocess.run([script], env=environment, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise Failure(f"criu failed: type NOTIFY errno 0 ({done.stderr.decode().strip()})")


def exec_(flags: dict[str, str], _words: list[str], place: str) -> None:
    with open(flags["--process"]) as file:
        launch(flags, json.load(file), "", "")


def start(_flags: dict[str, str], _words: list[str], place: str) -> None:
    try:
        fifo = os.open(f"{place}/exec.fifo", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        raise Failure("cannot start a container that has stopped") from None
    os.write(fifo, b"0")


def kill(_flags: dict[str, str], words: list[str], place: str) -> None:
    try:
        os.kill(living(place), int(words[2]))
    except ProcessLookupError:
        raise Failure("container not running") from None


def delete(flags: dict[str, str], _words: list[str], place: str) -> None:
    if not os.path.isdir(place):
        raise Failure("container does not exist")
    try:
        pid = living(place)
        if "--force" not in flags:
            raise Failure("cannot delete container that is not stopped: running")
        os.kill(pid, 9)
    except ProcessLookupError:
        pass
    import shutil

    shutil.rmtree(place)


def nothing(_flags: dict[str, str], _words: list[str], place: str) -> None:
    if not os.path.isdir(place):
        raise Failure("container does not exist")


def update(flags: dict[str, str], words: list[str], place: str) -> None:
    import shutil

    nothing(flags, words, place)
    shutil.copy(flags["--resources"], f"{os.path.dirname(flags['--root'])}/resources")


def checkpoint(flags: dict[str, str], words: list[str], place: str) -> None:
    nothing(flags, words, place)
    with open(f"{flags['--image-path']}/inventory.img", "w") as file:
        file.write("fake")
    if "--leave-running" not in flags:
        os.kill(living(place), 9)


def spec_of(flags: dict[str, str]) -> dict[str, dict[str, object]]:
    with open(f"{flags['--bundle']}/config.json") as file:
        spec: dict[str, dict[str, object]] = json.load(file)
        return spec


def launch(flags: dict[str, str], process: dict[str, object], place: str, fifo: str) -> None:
    args = process.get("args")
    assert isinstance(args, list)
    if not is_there(args[0]):
        raise Failure(f'exec: "{args[0]}": executable file not found in $PATH')
    terminal = -1
    if "--console-socket" in flags:
        import socket

        master, terminal = os.openpty()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(flags["--console-socket"])
            socket.send_fds(client, [b"pty"], [master])
        os.close(master)
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        run(args, terminal, fifo, tell)
    os.close(tell)
    os.read(ready, 1)
    for path in (flags["--pid-file"], f"{place}/pid" if place else ""):
        if path:
            with open(path, "w") as file:
                file.write(str(pid))


def is_there(program: str) -> bool:
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in os.get_exec_path())


def run(args: list[str], terminal: int, fifo: str, tell: int) -> None:
    try:
        os.setsid()
        if terminal >= 0:
            for number in (0, 1, 2):
                os.dup2(terminal, number)
        wake = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) if fifo else -1
        os.close(tell)
        if fifo:
            select.select([wake], [], [])
        os.execvp(args[0], args)
    finally:
        os._exit(127)


def living(place: str) -> int:
    try:
        with open(f"{place}/pid") as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except OSError:
        raise ProcessLookupError from None
    if state in "ZX":
        raise ProcessLookupError
    return pid


VERBS = {
    "create": create,
    "restore": restore,
    "exec": exec_,
    "start": start,
    "kill": kill,
    "delete": delete,
    "pause": nothing,
    "resume": nothing,
    "update": update,
    "checkpoint": checkpoint,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
