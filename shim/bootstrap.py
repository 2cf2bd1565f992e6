"""How containerd starts a shim: flags or BootstrapParams in, the pod's socket out, and the fork.

containerd takes whatever `start` writes, on stdout or stderr, for the address, and waits until
both are closed: so nothing is printed but the answer, and the daemon keeps neither.
"""

from __future__ import annotations

import os
import sys

from shim.errors import InvalidArgument, ThawError
from shim.lean.digests import sha256
from shim.lean.sockets import Socket, stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from shim.proto.known_pb import Any

SOCKET_FOLDER = "/run/containerd/s"
GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")


class Flags:
    """The command line, in Go's flag syntax: `-flag value`, `-flag=value`, one dash or two."""

    VALUES = ("namespace", "address", "publish-binary", "id", "bundle", "socket")
    SWITCHES = ("debug", "v", "info")

    def __init__(self, arguments: Sequence[str]) -> None:
        self.values = dict.fromkeys(self.VALUES, "")
        self.switches: set[str] = set()
        self.action = ""
        words = list(arguments)
        while words and words[0].startswith("-"):
            self._take(words)
        if words:
            self.action = words[0]

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    def _take(self, words: list[str]) -> None:
        name, equals, value = words.pop(0).lstrip("-").partition("=")
        if name in self.SWITCHES:
            if value.lower() not in ("false", "0", "f"):
                self.switches.add(name)
        elif name not in self.VALUES:
            raise InvalidArgument(f"unknown flag -{name}")
        elif equals:
            self.values[name] = value
        elif words:
            self.values[name] = words.pop(0)
        else:
            raise InvalidArgument(f"flag -{name} needs a value")


def main(arguments: Sequence[str]) -> int:
    """Do what containerd asks; the exit status."""
    try:
        flags = Flags(arguments)
        if "v" in flags.switches:
            return _version()
        if "info" in flags.switches:
            from shim.info import print_info

            return print_info()
        if flags.action == "start":
            return start(flags)
        if flags.action == "delete":
            from shim.deletion import delete

            return delete(flags)
        raise InvalidArgument(
            f"unknown action {flags.action!r}", hint="containerd runs this program; use `thaw`"
        )
    except (ThawError, OSError) as error:
        print(f"containerd-shim-thaw-v1: {error}", file=sys.stderr)
        return 1


def start(flags: Flags) -> int:
    """Join the pod's shim or become it; print its address."""
    params = Parameters(flags, sys.stdin.buffer.read())
    path = socket_path(params.socket_folder, flags["address"], flags["namespace"], group(flags))
    listener = listen(path)
    if listener is not None:
        try:
            become_daemon(flags, params, listener, path)
        except BaseException:
            os.unlink(path)
            raise
    from shim.bundle import write_atomically

    write_atomically("address", f"unix://{path}".encode())
    sys.stdout.buffer.write(params.answer(f"unix://{path}"))
    sys.stdout.flush()
    os._exit(0)  # nothing of the interpreter's is worth tearing down


class Parameters:
    """What came on stdin: nothing, an Any with the options, or (2.3 on) BootstrapParams.

    The two messages parse as each other, so BootstrapParams is believed only if it repeats the
    id and namespace of the flags (containerd's own rule, pkg/shim/compat.go).
    """

    def __init__(self, flags: Flags, stdin: bytes) -> None:
        self.socket_folder = SOCKET_FOLDER
        self.options: Any | None = None
        self._bootstrap = False
        if not stdin:
            return
        from shim.proto.bootstrap_pb import BootstrapParams
        from shim.proto.known_pb import Any

        try:
            params = BootstrapParams.decode(stdin)
        except ThawError:
            params = BootstrapParams()
        same = params.instance_id == flags["id"] and params.namespace == flags["namespace"]
        if not (same and flags["id"]):
            self.options = Any.decode(stdin)
            return
        self._bootstrap = True
        self.socket_folder = params.socket_dir or SOCKET_FOLDER
        values = [extension.value for extension in params.extensions if extension.value]
        self.options = next((v for v in values if "Options" in v.type_url), None)

    def answer(self, address: str) -> bytes:
        """What containerd shall read on stdout.

        Version 2 also where 3 is known: with 3, containerd would run `delete` after a crash for
        the sandbox only, and leave the other containers of the pod behind.
        """
        if not self._bootstrap:
            return address.encode()
        from shim.proto.bootstrap_pb import BootstrapResult

        return BootstrapResult(version=2, address=address, protocol="ttrpc").encode()


def group(flags: Flags) -> str:
    """Who shares a shim: the pod's containers, by annotation; otherwise the container alone."""
    from shim.lean import jsons

    try:
        with open("config.json", "rb") as file:
            annotations = jsons.loads(file.read()).get("annotations") or {}
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot read {os.getcwd()}/config.json: {error}") from error
    for key in GROUP_ANNOTATIONS:
        if annotations.get(key):
            return str(annotations[key])
    return flags["id"]


def socket_path(folder: str, address: str, namespace: str, group: str) -> str:
    """The socket of a group's shim, as containerd's own tests compute it."""
    joined = os.path.normpath("/".join(filter(None, (address, namespace, group))))
    return f"{folder}/{sha256(joined.encode())}"


def listen(path: str) -> Socket | None:
    """Bind the pod's socket; None if a living shim has it already."""
    import fcntl

    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # One at a time: between bind(2) and listen(2) a socket looks as a dead shim's does, and
        # of two that find a dead one's, the later would remove the living one of the other.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _listen(path)
    finally:
        os.close(lock)


def _listen(path: str) -> Socket | None:
    for _ in range(3):
        listener = stream()
        before = os.umask(0o177)
        try:
            listener.bind(path)
            listener.listen(128)
            return listener
        except FileExistsError:
            pass
        except OSError as error:
            listener.close()
            if error.errno != 98:  # EADDRINUSE
                raise
        finally:
            os.umask(before)
        listener.close()
        if answers(path):
            return None
        _unlink(path)
    raise InvalidArgument(f"cannot bind {path}", hint="who keeps making that socket?")


def answers(path: str) -> bool:
    """Whether somebody accepts connections at `path`."""
    with stream() as client:
        client.settimeout(0.1)
        try:
            client.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            pass  # too busy to accept, but there
        return True


def become_daemon(flags: Flags, params: Parameters, listener: Socket, path: str) -> None:
    """Fork the daemon, which never returns from here; the parent does, at once."""
    containerd = os.getppid()
    if os.fork():
        listener.close()
        return
    from shim import log

    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.dup2(listener.fileno(), 3)
        listener.detach()
        os.closerange(4, 256)
        log.open_fifo("log")
        os.set_inheritable(3, False)
        listener = Socket(fileno=3)
        from shim.daemon import Daemon

        Daemon(flags, params.options, listener, path, containerd).run()
    except BaseException as error:  # noqa: BLE001 - nobody else will ever hear of it
        log.exception(error, "the shim ends")
    finally:
        os._exit(0)


def _version() -> int:
    from shim import __version__

    print(f"containerd-shim-thaw-v1: {__version__}, Python {sys.version.split()[0]}")
    return 0


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
