"""How CRIU is steered through runc: its configuration file, its action-script, its log.

runc tells CRIU to read the file named by the annotation `org.criu.config`, and what stands there
overrides runc's own request. The action-script is a small static program (native/hook.c) that
asks the engine at the stages named in `hook.actions` and makes CRIU go on or abort.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from shim.native import HOOK

CONFIG = "criu.conf"
# Files that were unlinked but are still open or mapped travel in the images; CRIU's own limit
# is 1 MiB, and a worker's shared memory is larger than that. (CRIU knows no suffix beyond G, and
# takes the number alone then.)
GHOST_LIMIT = "1024G"
# In-process, by libnftables; the default would run iptables-restore, which a node need not have.
NETWORK_LOCK = "network-lock nftables"
LOG_TAIL = 12  # lines
INTERESTING = ("Error", "error", "Warn")


class Steering:
    """CRIU's configuration for one run, and the thread that answers its action-script.

    `actions` maps a stage of CRIU's to what is done there: it gets the init pid (0 if CRIU has
    none yet), and CRIU aborts if it raises. The exception is kept in `failure`.
    """

    def __init__(
        self,
        folder: Path,
        options: list[str],
        actions: Mapping[str, Callable[[int], None]],
    ) -> None:
        self._folder = folder
        self._options = options
        self._actions = actions
        self._listener: socket.socket | None = None
        self._server: threading.Thread | None = None
        self.failure: Exception | None = None

    def __enter__(self) -> Self:
        lines = list(self._options)
        if self._actions:
            self._listen()
            lines.append(f"action-script {self._folder}/hook")
        (self._folder / CONFIG).write_text("\n".join(lines) + "\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._listener is not None and self._server is not None:
            # Wakes the thread and waits for what it is about: to close the descriptor under its
            # hands would leave it in accept(), or with another's socket of the same number.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._server.join()
            self._listener.close()
        (self._folder / CONFIG).write_text("")
        for name in ("hook", "hook.sock", "hook.actions"):
            (self._folder / name).unlink(missing_ok=True)

    def _listen(self) -> None:
        (self._folder / "hook.actions").write_text("".join(f"{a}\n" for a in self._actions))
        (self._folder / "hook").unlink(missing_ok=True)
        (self._folder / "hook").symlink_to(HOOK)
        (self._folder / "hook.sock").unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _ShortPath(self._folder) as short:
            self._listener.bind(f"{short}/hook.sock")
        self._listener.listen(4)
        self._server = threading.Thread(target=self._serve, args=(self._listener,), daemon=True)
        self._server.start()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                with connection, connection.makefile() as said:
                    words = said.readline().split()
                    if words:
                        connection.sendall(self._answer(words).encode() + b"\n")
            except OSError:
                continue  # the hook has gone; the next stage's must still be answered

    def _answer(self, words: list[str]) -> str:
        try:
            action = self._actions.get(words[0])
            if action is not None:
                action(int(words[1]))
            return "ok"
        except Exception as error:  # noqa: BLE001 - whatever it is, CRIU must hear "no"
            self.failure = error
            return f"{type(error).__name__}: {error}".replace("\n", " ")


class _ShortPath:
    """A path to a folder that is short enough for a socket address, whatever the folder's is."""

    def __init__(self, folder: Path) -> None:
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def log_tail(path: Path) -> str:
    """The end of a CRIU log: its complaints if it has any, otherwise its last lines."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - (1 << 18)))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    complaints = [line for line in lines if any(word in line for word in INTERESTING)]
    return "\n".join((complaints or lines)[-LOG_TAIL:])
