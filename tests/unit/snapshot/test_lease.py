"""Leases: one holder at a time, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fakes.settled import eventually

from shim.errors import BadName
from shim.snapshot.lease import FOLDER, Lease

SHORT = 0.4  # seconds; renewed four times in these
OLD = 1  # when it was last renewed
HOLDER = """
import sys, time
from pathlib import Path
from shim.snapshot.lease import Lease
lease = Lease.take(Path(sys.argv[1]), "warm", float(sys.argv[2]))
print("held" if lease else "busy", flush=True)
time.sleep(60)
"""


def holder(store: Path) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", HOLDER, str(store), str(SHORT)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def grow_old(store: Path) -> None:
    """As if nobody had renewed it for long."""
    os.utime(store / FOLDER / "warm", (OLD, OLD))


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_one_has_it(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path, "warm")
    assert lease is not None
    assert lease.held
    assert Lease.take(tmp_path, "warm") is None
    with Lease.take(tmp_path, "other") or pytest.fail("another name is another lease"):
        pass
    lease.release()
    assert os.listdir(tmp_path / FOLDER) == [], "nothing is left"
    again = Lease.take(tmp_path, "warm")
    assert again is not None
    again.release()


def test_it_is_renewed_as_long_as_it_is_held(tmp_path: Path) -> None:
    with Lease.take(tmp_path, "warm", SHORT) or pytest.fail("free"):
        for _ in range(3):
            grow_old(tmp_path)
            eventually(lambda: (tmp_path / FOLDER / "warm").stat().st_mtime > OLD)
            assert Lease.take(tmp_path, "warm") is None


def test_a_killed_holder_loses_it_in_time(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        assert Lease.take(tmp_path, "warm") is None
    finally:
        end(process)

    def taken() -> bool:
        lease = Lease.take(tmp_path, "warm", SHORT)
        if lease is not None:
            lease.release()
        return lease is not None

    eventually(taken)
    assert os.listdir(tmp_path / FOLDER) == []


def test_a_holder_that_was_stopped_for_long_knows(tmp_path: Path) -> None:
    """It comes back to life when somebody else has it: it neither has it nor takes it away."""
    process = holder(tmp_path)
    try:
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        grow_old(tmp_path)
        successor = Lease.take(tmp_path, "warm")
        assert successor is not None
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(SHORT)
        assert successor.held
        successor.release()
    finally:
        end(process)


def test_of_many_who_find_it_stale_one_gets_it(tmp_path: Path) -> None:
    for _ in range(20):
        path = tmp_path / FOLDER / "warm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"of somebody who died")
        grow_old(tmp_path)
        got: list[Lease | None] = []
        barrier = threading.Barrier(4)

        def take(got: list[Lease | None] = got, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            got.append(Lease.take(tmp_path, "warm"))

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = [lease for lease in got if lease is not None and lease.held]
        assert len(held) <= 1
        for lease in got:
            if lease is not None:
                lease.release()


def test_an_empty_one_is_stale(tmp_path: Path) -> None:
    """A full disk or a crash may leave a file without its token."""
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "warm").touch()
    with Lease.take(tmp_path, "warm") or pytest.fail("nobody has it"):
        pass


def test_its_name_is_a_name(tmp_path: Path) -> None:
    with pytest.raises(BadName):
        Lease.take(tmp_path, "../warm")
