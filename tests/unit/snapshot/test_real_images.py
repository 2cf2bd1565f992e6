"""Indexes of what CRIU really dumps: a plain `criu restore` of the skeleton, and what is filled.

What fills is a stand-in of a few lines, so that this tests the index alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.bare import CACHED, Criu, Failed, end, tree
from fakes import sleeper
from memory.compare import Process, differences, picture

from shim.snapshot.index import Index
from shim.snapshot.indexing import make, survey
from shim.snapshot.layout import BULK, NO_TASK

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="CRIU needs root"),
    pytest.mark.skipif(not CACHED.exists(), reason="no CRIU in the cache: see tests/run.sh"),
]

SLEEPER = sleeper.__file__
FILLER = """\
import ctypes, os, sys
if os.environ["CRTOOLS_SCRIPT_ACTION"] != "post-restore":
    sys.exit()
from array import array
from pathlib import Path
from shim.snapshot.index import Index
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
libc = ctypes.CDLL(None)
index = Index.open(Path(sys.argv[1]), Path(sys.argv[2]))
words, halves, quarters = (array(code, index.extents) for code in "QIH")
for n in range(index.count):
    size = halves[8 * n + 4]
    source = index.images / index.sources[quarters[16 * n + 14]].name
    with open(source, "rb") as file:
        file.seek(words[4 * n + 1])
        data = file.read(size)
    there = Vector(words[4 * n], size)
    here = Vector(ctypes.cast(data, ctypes.c_void_p), size)
    task = index.tasks[halves[8 * n + 6]]
    done = libc.process_vm_writev(task, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    assert done == size
"""


class Dumped:
    """A worker with memory of many kinds that CRIU has dumped and that is gone."""

    def __init__(self, folder: Path) -> None:
        self.images = folder / "images"
        self.images.mkdir()
        self.index = folder / "index"
        self._folder = folder
        self._criu = Criu(CACHED)
        self.pid = self._start()
        pids = tree(self.pid)
        self.before: dict[int, Process] = picture(self.pid)
        self.private = private_kib(pids)
        self._criu.dump(self.pid, self.images)
        end(pids)

    def _start(self) -> int:
        said = self._folder / "said"
        with open(said, "wb") as out:
            worker = subprocess.Popen(
                [sys.executable, "-IS", SLEEPER, str(self._folder / "mapped")],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                # Without the area that the kernel writes a processor's number into now and then.
                env={"GLIBC_TUNABLES": "glibc.pthread.rseq=0"},
            )
        ends = time.monotonic() + 60
        while said.read_text() != "ready\n":
            assert worker.poll() is None, said.read_text()
            assert time.monotonic() < ends
            time.sleep(0.01)
        worker.returncode = 0  # CRIU ends it, and end() reaps it
        return worker.pid

    def restore(self, program: str = FILLER) -> list[int]:
        """Restore it through the index; its pids."""
        links = self._folder / "links"
        Index.open(self.index, self.images).link(links)
        code = self._folder / "fill.py"
        code.write_text(program)
        script = self._folder / "fill.sh"
        script.write_text(f"#!/bin/sh\nexec {sys.executable} {code} {self.index} {self.images}\n")
        script.chmod(0o700)
        self._criu.restore(links, self._folder, ["--action-script", str(script)])
        return tree(self.pid)


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dumped]:
    folder = tmp_path_factory.mktemp("real")
    made = Dumped(folder)
    yield made
    end([made.pid])
    shutil.rmtree(folder)


def private_kib(pids: list[int]) -> int:
    """The private memory of processes, shared pages counted once in all."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                total += int(line.split()[1])
    return total


def test_everything_comes_back(dumped: Dumped) -> None:
    """Every page of every process, whatever kind of memory it is, and nothing is multiplied."""
    index = make(dumped.images, dumped.index)
    assert index.reason == ""
    index.check_files()
    assert index.sizes["extents"] > 10 << 20
    assert index.sizes["zero"] > 1 << 20
    pids = dumped.restore()
    try:
        assert differences(dumped.before, picture(dumped.pid)) == []
        assert private_kib(pids) < dumped.private + 1024, "what was shared still is"
    finally:
        end(pids)


def test_a_fill_that_fails_ends_it(dumped: Dumped) -> None:
    """CRIU heeds the script at this stage: nothing half-filled ever runs."""
    make(dumped.images, dumped.index)
    with pytest.raises(Failed, match="criu restore failed"):
        dumped.restore(FILLER + '    assert os.environ["CRTOOLS_SCRIPT_ACTION"] == "another"\n')
    # CRIU restored it as a child of ours, and does not wait for what it has killed.
    _, status = os.waitpid(dumped.pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_the_layout_of_real_images(dumped: Dumped) -> None:
    """Every page that CRIU wrote is in one run, and can be read where the run says."""
    layout = survey(dumped.images)
    assert [os.stat(dumped.images / blob.name).st_size for blob in layout.sources] == [
        blob.size for blob in layout.sources
    ]
    covered = [0] * len(layout.sources)
    for run in layout.runs:
        assert run.offset == covered[run.source]
        covered[run.source] += run.length
    assert covered == [blob.size for blob in layout.sources]
    assert {run.task for run in layout.runs} == {0, 1, NO_TASK}
    assert not any(run.flags & BULK for run in layout.runs if run.task == NO_TASK)


def test_the_same_index_every_time(dumped: Dumped) -> None:
    make(dumped.images, dumped.index, threads=1)
    first = {path.name: path.read_bytes() for path in dumped.index.iterdir()}
    make(dumped.images, dumped.index, threads=3)
    assert first == {path.name: path.read_bytes() for path in dumped.index.iterdir()}
