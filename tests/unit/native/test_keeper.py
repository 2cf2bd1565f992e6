"""The program that has descriptors as well: it hands everything on as it came, and then ends."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from resource import RLIMIT_NOFILE, prlimit

import pytest

from shim.native import KEEPER
from shim.spawn import exit_status, spawn

NATIVE = Path(__file__).parents[3] / "native"
WARNINGS = "-Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wundef -Werror"
SANITIZED = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
PATIENCE = 30.0  # seconds


class Running:
    """The program; this process is the engine that has started it, and the one after that."""

    def __init__(self, program: str, folder: Path, *, seconds: float = 60.0) -> None:
        self.path = folder / "keeper.sock"
        self.needed = subprocess.Popen(["sleep", "infinity"])
        self._said = os.memfd_create("said")
        self.engine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.engine.settimeout(PATIENCE)
        pidfd = os.pidfd_open(self.needed.pid)
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(self.path))
            listener.listen()
            fds = {2: self._said, 3: theirs.fileno(), 4: listener.fileno(), 5: pidfd}
            self.pid = spawn([program, str(round(seconds * 1000)), "1"], {}, fds)
        os.close(pidfd)
        self._pidfd = os.pidfd_open(self.pid)
        self._status: int | None = None

    def successor(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made.settimeout(PATIENCE)
        try:
            made.connect(str(self.path))
        except OSError:
            made.close()
            raise
        return made

    def kept(self) -> bytes:
        """What it answers when asked for how many."""
        self.engine.send(b"?")
        return self.engine.recv(100)

    def ended(self) -> int:
        """Its exit status, once it has one."""
        if self._status is None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            assert poll.poll(PATIENCE * 1000), "it does not end"
            self._status = exit_status(os.waitpid(self.pid, 0)[1])
        return self._status

    @property
    def said(self) -> str:
        return os.pread(self._said, 1 << 16, 0).decode()

    def close(self) -> str:
        """End it; what it has said."""
        self.needed.kill()
        self.needed.wait()
        self.ended()
        self.engine.close()
        said = self.said
        for fd in (self._pidfd, self._said):
            os.close(fd)
        return said


@pytest.fixture(scope="module", params=["installed", "sanitized"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """It, and one that is compiled here to find its own mistakes."""
    if request.param == "installed":
        return KEEPER
    made = tmp_path_factory.mktemp("keeper") / "keeper"
    command = ["cc", "-std=gnu17", *SANITIZED, *WARNINGS.split(), "-o", str(made)]
    sources = [str(NATIVE / name) for name in ("keeper.c", "fail.c")]
    if subprocess.run([*command, *sources], check=False).returncode:
        pytest.skip("cc has no sanitizers here")
    return str(made)


@pytest.fixture
def start(program: str, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def started(**options: float) -> Running:
        made.append(Running(program, tmp_path, **options))
        return made[0]

    yield started
    # (That for leaks says no more than that it needs descriptors, where there are none.)
    assert not re.search("ERROR: |runtime error", made[0].close())


@pytest.fixture
def keeper(start: Callable[..., Running]) -> Running:
    return start()


Message = tuple[bytes, list[int]]  # and inodes


def keep(keeper: Running) -> list[Message]:
    """Three messages, one of them as large as can be."""
    sent: list[Message] = []
    for number, (length, count) in enumerate([(20, 2), (8000, 64), (1, 0)]):
        fds = [os.memfd_create("kept") for _ in range(count)]
        message = b"k" + bytes([number]) * length
        socket.send_fds(keeper.engine, [message], fds)
        sent.append((message, [os.fstat(fd).st_ino for fd in fds]))
        for fd in fds:
            os.close(fd)
    assert keeper.kept() == b"?66"
    return sent


def received(successor: socket.socket) -> list[Message]:
    """Everything up to the end, which must come."""
    found: list[Message] = []
    while True:
        data, fds, _, _ = socket.recv_fds(successor, 1 << 16, 100)
        if data == b".":
            return found
        assert data, "it was cut off"
        found.append((data, [os.fstat(fd).st_ino for fd in fds]))
        for fd in fds:
            os.close(fd)


def test_it_is_not_needed(keeper: Running) -> None:
    keep(keeper)
    keeper.engine.send(b"d")
    assert (keeper.ended(), keeper.said) == (0, "")


def test_an_engine_that_had_nothing(keeper: Running) -> None:
    assert keeper.kept() == b"?0"
    keeper.engine.close()
    assert (keeper.ended(), keeper.said) == (0, "")


def test_handed_on(keeper: Running) -> None:
    sent = keep(keeper)
    keeper.engine.close()
    with keeper.successor() as successor:
        assert received(successor) == sent
        successor.send(b"d")
        assert (keeper.ended(), keeper.said) == (0, "")


def test_to_nobody_while_there_is_an_engine(keeper: Running) -> None:
    """Whoever comes too early waits."""
    sent = keep(keeper)
    with keeper.successor() as successor:
        assert keeper.kept() == b"?66"
        assert not select.select([successor], [], [], 0)[0]
        keeper.engine.close()
        assert received(successor) == sent
        successor.send(b"d")
        assert keeper.ended() == 0


def test_the_next_one_may_die_too(keeper: Running) -> None:
    """At any moment; there is as much for the one after it."""
    sent = keep(keeper)
    keeper.engine.close()
    with keeper.successor():
        pass
    with keeper.successor() as successor:
        socket.recv_fds(successor, 1 << 16, 100)
    with keeper.successor() as successor:
        assert received(successor) == sent
    with keeper.successor() as successor:
        assert received(successor) == sent
        successor.send(b"d")
        assert keeper.ended() == 0


def test_done_is_heard_by_one_that_is_still_sending(keeper: Running) -> None:
    keep(keeper)
    keeper.engine.close()
    with keeper.successor() as successor:
        successor.send(b"d")
    assert keeper.ended() == 0


@pytest.mark.parametrize("alone", [False, True])
def test_it_ends_with_whom_it_is_for(keeper: Running, alone: bool) -> None:
    keep(keeper)
    if alone:
        keeper.engine.close()
    keeper.needed.send_signal(signal.SIGKILL)
    assert (keeper.ended(), keeper.said) == (0, "")


def test_it_does_not_wait_for_ever(start: Callable[..., Running]) -> None:
    """Its time begins when the engine dies."""
    keeper = start(seconds=0.01)
    keep(keeper)
    select.select([], [], [], 0.05)
    assert keeper.kept() == b"?66"
    keeper.engine.close()
    assert (keeper.ended(), keeper.said) == (0, "")
    with pytest.raises(ConnectionRefusedError):
        keeper.successor()


def test_it_says_so_if_it_cannot_keep_something(keeper: Running) -> None:
    """The other end sees that it has ended."""
    assert keeper.kept() == b"?0"
    prlimit(keeper.pid, RLIMIT_NOFILE, (8, 8))
    fds = [os.memfd_create("kept") for _ in range(10)]
    socket.send_fds(keeper.engine, [b"k"], fds)
    for fd in fds:
        os.close(fd)
    assert keeper.engine.recv(100) == b""
    assert keeper.ended() == 1
    assert "too many descriptors" in keeper.said


@pytest.mark.parametrize(
    ("message", "words"),
    [(b"x", "unknown kind"), (b"k" * 9000, "too long")],
)
def test_nonsense(keeper: Running, message: bytes, words: str) -> None:
    keeper.engine.send(message)
    assert keeper.ended() == 1
    assert words in keeper.said


@pytest.mark.parametrize("words", [["x", "1"], ["5", "9"], ["-1", "0"], ["", "0"], ["5"]])
def test_started_in_another_way(program: str, words: list[str]) -> None:
    ran = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith("thaw-gpu-keeper: ")


STRANGER = """
import os, socket, sys
os.setresuid(65534, 65534, 65534)
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made:
    made.settimeout(30)
    made.connect("keeper.sock")
    print(made.recv(100))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's process is needed")
def test_strangers_get_nothing(keeper: Running) -> None:
    """Not even if they could reach it."""
    sent = keep(keeper)
    keeper.engine.close()
    for path in (keeper.path, keeper.path.parent):
        path.chmod(0o777)
    command = [sys.executable, "-IS", "-c", STRANGER]
    ran = subprocess.run(command, cwd=keeper.path.parent, capture_output=True, check=False)
    assert (ran.stdout, ran.stderr) == (b"b''\n", b"")
    with keeper.successor() as successor:
        assert received(successor) == sent
