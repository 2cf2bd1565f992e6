"""Pids inside and outside, of real processes in a pid namespace of their own."""

from __future__ import annotations

import os
import subprocess

import pytest

from shim.processes import processes_below

TREE = "sleep 1000 & (sleep 1000 & echo ready; wait) & wait"


def test_our_own_namespace() -> None:
    with subprocess.Popen(["sh", "-c", TREE], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        shell.stdout.readline()
        found = processes_below(shell.pid)
        assert found[shell.pid] == shell.pid
        assert len(found) == 4
        assert all(inside == outside for inside, outside in found.items())
        for pid in found:
            os.kill(pid, 9)


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace needs root")
def test_a_namespace_of_its_own() -> None:
    argv = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", TREE]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as unshare:
        assert unshare.stdout is not None
        unshare.stdout.readline()
        with open(f"/proc/{unshare.pid}/task/{unshare.pid}/children") as file:
            init = int(file.read())
        found = processes_below(init)
        assert found[1] == init
        assert sorted(found) == [1, 2, 3, 4]
        assert len(set(found.values())) == 4
        os.kill(init, 9)


def test_a_process_that_is_gone() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert processes_below(gone.pid) == {}
