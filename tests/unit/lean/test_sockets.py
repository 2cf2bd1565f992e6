from __future__ import annotations

import os
from pathlib import Path

from shim.lean.sockets import pair, receive_fds, send_fds, stream


def test_descriptors_travel_closed_on_exec() -> None:
    one, other = pair()
    read, write = os.pipe()
    with one, other:
        assert send_fds(one, b"x", [read, write]) == 1
        data, fds = receive_fds(other, 10, 4)
        assert data == b"x"
        assert len(fds) == 2
        assert not any(os.get_inheritable(fd) for fd in fds)
        os.write(fds[1], b"hello")
        assert os.read(read, 10) == b"hello"
        for fd in (read, write, *fds):
            os.close(fd)


def test_data_without_descriptors() -> None:
    one, other = pair()
    with one, other:
        send_fds(one, b"abc", [])
        assert receive_fds(other, 10, 4) == (b"abc", [])


def test_accept(tmp_path: Path) -> None:
    with stream() as listener, stream() as client:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        client.connect(str(tmp_path / "s"))
        accepted, _ = listener.accept()
        with accepted:
            client.sendall(b"hi")
            assert accepted.recv(10) == b"hi"
            assert not os.get_inheritable(accepted.fileno())
