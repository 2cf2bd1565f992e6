"""A process's standard streams: from the container's pipes or terminal to where containerd wants.

Every scheme gives the container plain pipes (or a terminal): CRIU can dump those, but not a
host's FIFO or file, and `runc restore` re-attaches pipes by name.

    fifo://  (default)  copied by the loop into the FIFOs that containerd made
    file://             copied into a file, appended
    binary://           read by a logging program of the operator's (binary-v2:// must say ready)

An output FIFO is opened for reading as well as writing, so that the container neither blocks nor
gets SIGPIPE while containerd restarts (containerd's TestDaemonReconnectsToShimIOPipesOnRestart).
"""

from __future__ import annotations

import os
import stat
import time

from shim.errors import InvalidArgument
from shim.task.copying import CHUNK, Copies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from shim.loop import Loop
    from shim.task.binaryio import LoggingProgram
    from shim.task.reaper import Reaper

# Bytes that whoever is held back can write before it has to wait: what a pipe may have without more
# being allowed (fs.pipe-max-size). Only for a while, as all pipes of a user count together.
_MOST = 1 << 20
_PAUSE = 0.005  # seconds between two looks whether something was read


class Streams:
    """Where a process's streams shall go, as the request names them (URIs or FIFO paths)."""

    __slots__ = ("stderr", "stdin", "stdout", "terminal")

    def __init__(self, stdin: str, stdout: str, stderr: str, terminal: bool) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = "" if terminal else stderr
        self.terminal = terminal

    @property
    def null(self) -> bool:
        """Nothing is wanted of this process's streams."""
        return not (self.stdin or self.stdout or self.stderr)


class Stdio:
    """The open streams of one process. `child_fds` go to runc; the rest is copied by the loop."""

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        streams: Streams,
        env: Mapping[str, str],
        owner: tuple[int, int] = (0, 0),
        *,
        held: bool = False,
    ) -> None:
        self.streams = streams
        self.child_fds: dict[int, int] = {}
        self._reaper = reaper
        self._env = env
        self._owner = owner
        self._copies = Copies(loop)
        # Outputs that are not opened before `release`. A containerd that restarts meanwhile
        # deletes the task, but waits for the end of its streams first: a writer there would hang
        # it for good.
        self._held: list[tuple[int, str]] | None = [] if held else None
        self._logger: LoggingProgram | None = None
        self._stdin_keeper: int | None = None  # a writer of ours on the input FIFO
        self._console: int | None = None
        try:
            if streams.terminal:
                self._open_logger()
            elif not streams.null:
                self._open_pipes()
        except BaseException:
            self.close()
            raise

    def started(self) -> None:
        """runc has the child's ends now; keep only ours."""
        for fd in self.child_fds.values():
            os.close(fd)
        self.child_fds = {}
        if self._logger is not None:
            self._logger.close_pipes()

    def release(self) -> None:
        """Pass on what the process writes, if that was held back until it runs."""
        while self._held:
            read, name = self._held[0]
            sink = self._open_output(name)
            _resize(read, CHUNK)
            self._copies.add(read, sink, output=True)
            del self._held[0]
        self._held = None

    def deliver(self, seconds: float) -> None:
        """Pass on what was held back, and wait until it was taken, at most `seconds`.

        containerd opens its end in a thread that only wakes when we open ours. Should it hear of a
        failed Start before that thread has come to it, it closes the FIFO unread.
        """
        ends = time.monotonic() + seconds
        fifos: list[int] = []
        try:
            for _, name in self._held or ():
                fifos.append(self._open_output(name))
            self.release()
        finally:
            self.drain(seconds)
            while any(map(_is_unread, fifos)) and time.monotonic() < ends:
                time.sleep(_PAUSE)
            for fd in fifos:
                os.close(fd)

    def withheld(self, most: int) -> bytes:
        """The end of what was held back, out of each stream at most so many bytes."""
        from shim.worker.readable import rest_of

        # No more than a pipe holds: a process that cannot be ended may write for ever.
        return b"".join(rest_of(read, _MOST)[-most:] for read, _ in self._held or ())

    def attach_console(self, master: int) -> None:
        """Copy between a terminal's master end and the named streams; takes the descriptor."""
        self._console = master
        if self.streams.stdin:
            self._copies.add(self._open_input(self.streams.stdin), os.dup(master))
        if self._logger is not None:
            self._copies.add(os.dup(master), self._logger.take_stdout(), output=True)
        elif self.streams.stdout:
            self._copies.add(os.dup(master), self._open_output(self.streams.stdout), output=True)

    def resize(self, width: int, height: int) -> None:
        """Tell the terminal its size in characters; without a terminal, nothing happens."""
        if self._console is not None:
            import fcntl
            import struct
            import termios

            fcntl.ioctl(self._console, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def close_stdin(self) -> None:
        """The process sees the end of its input once every client has closed its own end too."""
        if self._stdin_keeper is not None:
            os.close(self._stdin_keeper)
            self._stdin_keeper = None

    def drain(self, seconds: float) -> None:
        """Wait until all output has been passed on, at most `seconds`; not on the loop thread."""
        self._copies.drain(seconds)

    def close(self) -> None:
        """Let go of everything, delivered or not."""
        self.started()
        self.close_stdin()
        held, self._held = self._held, None
        for read, _ in held or ():
            os.close(read)
        self._copies.close()
        if self._console is not None:
            os.close(self._console)
            self._console = None
        if self._logger is not None:
            self._logger.close()
            self._logger = None

    def _open_pipes(self) -> None:
        streams = self.streams
        if self._open_logger():
            assert self._logger is not None
            self.child_fds = self._logger.child_fds()
            return
        if streams.stdin:
            source = self._open_input(streams.stdin)  # first: a failure leaves no pipe behind
            self.child_fds[0], sink = self._pipe()
            self._copies.add(source, sink)
        for number, name in ((1, streams.stdout), (2, streams.stderr)):
            if name and self._held is not None:
                read, self.child_fds[number] = self._pipe()
                _resize(read, _MOST)
                self._held.append((read, name))
            elif name:
                sink = self._open_output(name)
                read, self.child_fds[number] = self._pipe()
                self._copies.add(read, sink, output=True)

    def _open_logger(self) -> bool:
        from shim.task.binaryio import LoggingProgram, is_binary

        if not is_binary(self.streams.stdout):
            return False
        self._logger = LoggingProgram(
            self._reaper, self.streams.stdout, self._env, terminal=self.streams.terminal
        )
        return True

    def _open_input(self, name: str) -> int:
        # A client that goes away (containerd that restarts, `ctr` that detaches) is not the end
        # of the input: with a writer of ours that comes with CloseIO.
        path, _ = _path_of(name)
        source = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._stdin_keeper = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return source

    def _open_output(self, name: str) -> int:
        path, is_file = _path_of(name)
        if is_file:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            return os.open(path, flags | os.O_CLOEXEC, 0o644)
        if stat.S_ISFIFO(os.stat(path).st_mode):
            return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def _pipe(self) -> tuple[int, int]:
        read, write = os.pipe2(os.O_CLOEXEC)
        if self._owner != (0, 0):
            for fd in (read, write):
                os.fchown(fd, *self._owner)
        return read, write


def _resize(pipe: int, size: int) -> None:
    """Let a pipe hold so many bytes; as it is if that is not allowed, or more is in it."""
    import fcntl

    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)
    except OSError:
        pass


def _is_unread(fd: int) -> bool:
    """Whether there is something in a FIFO; in anything else there never is."""
    import fcntl
    import termios

    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return False
    return any(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))


def _path_of(name: str) -> tuple[str, bool]:
    """The path in a stream's name and whether it is a file:// one."""
    scheme, separator, rest = name.partition("://")
    if not separator:
        return name, False
    if scheme in ("fifo", "file"):
        return rest.partition("?")[0], scheme == "file"
    raise InvalidArgument(
        f"unknown scheme in stream {name!r}", hint="use fifo, file, binary or binary-v2"
    )
