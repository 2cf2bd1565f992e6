"""The only module that runs runc: one method per runc command.

runc writes its errors as JSON lines to a log of its own, because with a detached container its
stdout and stderr are the container's. The last error there becomes ours.
"""

from __future__ import annotations

import os

from shim.errors import NotFound, RuntimeFailed
from shim.lean import jsons
from shim.spawn import Completed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from shim.config import Config

    Run = Callable[[Sequence[str], Mapping[str, str], Mapping[int, int] | None], Completed]

# How runc 1.1 to 1.5 say that the process or the container is not there (any more).
_GONE = ("container not running", "does not exist", "process already finished", "no such process")


class Runc:
    """runc for one container. `run` starts a program and waits for it."""

    def __init__(
        self, config: Config, namespace: str, container_id: str, log: str, run: Run
    ) -> None:
        self.id = container_id
        self.env = runtime_env(config)
        self._log = log
        self._run = run
        base = config.text("Root") or "/run/containerd/runc"
        self._state = f"{base}/{namespace}/{container_id}"
        self._command = [
            config.text("BinaryName") or "runc",
            "--root",
            f"{base}/{namespace}",
            "--log",
            log,
            "--log-format",
            "json",
        ]
        if config.flag("SystemdCgroup"):
            self._command.append("--systemd-cgroup")
        self._no_pivot = ["--no-pivot"] if config.flag("NoPivotRoot") else []
        self._no_keyring = ["--no-new-keyring"] if config.flag("NoNewKeyring") else []

    @property
    def command(self) -> Sequence[str]:
        """The program with its global options, as every call begins."""
        return self._command

    def create(
        self, bundle: str, pid_file: str, fds: Mapping[int, int], console_socket: str = ""
    ) -> None:
        """Create the container; `fds` become its standard streams."""
        self._detached(
            [
                *("create", "--bundle", bundle, "--pid-file", pid_file),
                *self._no_pivot,
                *self._no_keyring,
                *_console(console_socket),
            ],
            fds,
        )

    def start(self) -> None:
        """Let a created container run its program."""
        self._call(["start", self.id], with_id=False)

    def exec(
        self, spec_file: str, pid_file: str, fds: Mapping[int, int], console_socket: str = ""
    ) -> None:
        """Start another process in the container from a JSON Process in `spec_file`."""
        self._detached(
            [
                *("exec", "--process", spec_file, "--detach", "--pid-file", pid_file),
                *_console(console_socket),
            ],
            fds,
        )

    @property
    def folder(self) -> str:
        """The container's bundle, which goes with it."""
        return os.path.dirname(self._log)

    def inside(self, command: Sequence[str], pid_file: str) -> list[str]:
        """The call that runs a command in the container, as its user; see worker/command.py."""
        return [*self._command, "exec", "--pid-file", pid_file, self.id, *command]

    def restore(
        self,
        bundle: str,
        pid_file: str,
        fds: Mapping[int, int],
        options: Sequence[str],
        console_socket: str = "",
    ) -> None:
        """Create the container from CRIU images, already running."""
        self._detached(
            [
                *("restore", "--detach", "--bundle", bundle, "--pid-file", pid_file),
                *self._no_pivot,
                *_console(console_socket),
                *options,
            ],
            fds,
        )

    def kill(self, signal: int, *, everyone: bool = False) -> None:
        """Signal init, or everyone in the container. Raises NotFound if it is not running."""
        everyone_flag = ["--all"] if everyone else []
        self._call(["kill", *everyone_flag, self.id, str(signal)], with_id=False)

    def delete(self, *, force: bool = False) -> None:
        """Remove the container's cgroups and state; one that does not exist is no error."""
        if force and os.path.isdir(self._state):
            from shim.mount import unmount_all

            unmount_all(self._state)  # a killed `runc restore` leaves the rootfs bound there
        try:
            self._call(["delete", "--force"] if force else ["delete"])
        except NotFound:
            pass

    def pause(self) -> None:
        """Freeze every process of the container."""
        self._call(["pause"])

    def resume(self) -> None:
        """Thaw every process of the container."""
        self._call(["resume"])

    def update(self, resources_file: str) -> None:
        """Change the limits to the JSON LinuxResources in `resources_file`."""
        self._call(["update", "--resources", resources_file])

    def checkpoint(self, options: Sequence[str]) -> None:
        """Dump the container with CRIU."""
        self._call(["checkpoint", *options])

    def features(self) -> bytes:
        """`runc features` as JSON, or nothing if this runtime has no such command."""
        try:
            done = self._run([self._command[0], "features"], self.env, None)
        except OSError:
            return b""  # CRI asks as it starts: a node comes up without its runtime too
        return done.output if done.status == 0 else b""

    def version(self) -> str:
        """The first line of `runc --version`."""
        done = self._run([self._command[0], "--version"], self.env, None)
        return done.text.partition("\n")[0]

    def let_change(self, bundle: str) -> None:
        """Have NVIDIA's runtime change the bundle's spec as at `create`, and make nothing.

        It does so if any word is `create`, be it a container's name, to the bundle in the folder
        that it stands in (internal/oci/args.go of NVIDIA's container toolkit). What runc is asked
        is for the state of that container. Raises RuntimeFailed if it cannot be run.
        """
        program, root, folder = self._command[:3]
        step = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', bundle]
        try:
            done = self._run([*step, program, root, folder, "state", "create"], self.env, None)
        except OSError as error:
            raise RuntimeFailed(f"cannot run {program}: {error.strerror}") from error
        if not any(word in done.text for word in _GONE):
            said = done.text.strip()[-300:] or f"exit status {done.status}"
            raise RuntimeFailed(f"{program} state create: {said}")

    def _detached(self, words: Sequence[str], fds: Mapping[int, int]) -> None:
        self._check([*self._command, *words, self.id], words[0], fds)

    def _call(self, words: Sequence[str], *, with_id: bool = True) -> None:
        argv = [*self._command, *words, *([self.id] if with_id else [])]
        self._check(argv, words[0], None)

    def _check(self, argv: Sequence[str], verb: str, fds: Mapping[int, int] | None) -> None:
        mark = _size(self._log)
        try:
            done = self._run(argv, self.env, fds)
        except OSError as error:
            raise RuntimeFailed(
                f"cannot run {argv[0]}: {error.strerror}", hint="see BinaryName and PATH"
            ) from error
        if done.status == 0:
            return
        said = _last_error(self._log, mark) or done.text or f"exit status {done.status}"
        if any(word in said for word in _GONE):
            raise NotFound(f"{verb} {self.id}: {said}")
        raise RuntimeFailed(f"{os.path.basename(argv[0])} {verb} {self.id}: {said}")


def runtime_env(config: Config) -> dict[str, str]:
    """The environment for runc: ours, with the configured criu's folder first in PATH."""
    env = dict(os.environ)
    path = env.get("PATH") or "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    criu = config.text("criu")
    env["PATH"] = f"{os.path.dirname(criu)}:{path}" if criu else path
    return env


def _console(socket: str) -> list[str]:
    return ["--console-socket", socket] if socket else []


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _last_error(log: str, since: int) -> str:
    """The last error that runc logged after byte `since`."""
    try:
        with open(log, "rb") as file:
            file.seek(since)
            lines = file.read().splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            entry = jsons.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal"):
            return str(entry.get("msg", ""))
    return ""
