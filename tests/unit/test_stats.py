"""Statistics: a real version 1 group, and version 2 from files as a kernel writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fakes.settled import PATIENCE, asleep, eventually

from shim import cgroup, stats
from shim.cgroup import Cgroup
from shim.errors import NotFound
from shim.proto import cgroups_v1_pb as v1
from shim.proto import cgroups_v2_pb as v2

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX = (1 << 64) - 1
ROOT = Path(cgroup.ROOT)
CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "blkio")
only_v1 = pytest.mark.skipif(
    os.geteuid() != 0 or cgroup.is_unified() or not os.access(ROOT / "memory", os.W_OK),
    reason="needs root and version 1",
)


@pytest.fixture
def group() -> Iterator[Cgroup]:
    name = f"thaw-test-stats-{os.getpid()}"
    real = Cgroup(1, {controller: str(ROOT / controller / name) for controller in CONTROLLERS})
    for path in real.paths.values():
        os.mkdir(path)
    yield real
    assert real.kill(PATIENCE)
    real.remove()


def busy(group: Cgroup) -> subprocess.Popen[bytes]:
    """A process in the group that has used memory and CPU time, and waits."""
    script = (
        "import os; os.read(0, 1)\nx = bytearray(b'x') * 8000000\nprint(flush=True); os.read(0, 1)"
    )
    child = subprocess.Popen(
        [sys.executable, "-IS", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    group.add(child.pid)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"x")
    child.stdin.flush()
    child.stdout.readline()
    eventually(lambda: asleep(child.pid))  # what it uses grows until it waits
    return child


def periods(group: Cgroup) -> int:
    """In which it was looked at whether it has had its share of CPU time."""
    with open(f"{group.paths['cpu']}/cpu.stat") as file:
        return int(dict(map(str.split, file))["nr_periods"])


@only_v1
def test_v1_of_a_living_group(group: Cgroup) -> None:
    Path(group.paths["pids"], "pids.max").write_text("50")
    Path(group.paths["memory"], "memory.limit_in_bytes").write_text("64M")
    Path(group.paths["cpu"], "cpu.cfs_quota_us").write_text("1000")
    with busy(group) as child:
        eventually(lambda: periods(group))  # the first takes 0.1 seconds to end
        metrics = group.stats()
        child.kill()
    assert isinstance(metrics, v1.Metrics)
    assert v1.Metrics.decode(metrics.encode()) == metrics
    assert metrics.pids == v1.PidsStat(current=1, limit=50)
    assert metrics.cpu is not None
    assert metrics.cpu.usage is not None
    assert metrics.cpu.throttling is not None
    assert metrics.cpu.usage.total > 0
    assert sum(metrics.cpu.usage.per_cpu) == metrics.cpu.usage.total
    assert metrics.cpu.throttling.periods > 0
    memory = metrics.memory
    assert memory is not None
    assert memory.usage is not None
    assert memory.usage.limit == memory.hierarchical_memory_limit == 64 << 20
    assert 0 < memory.usage.usage <= memory.usage.max
    assert memory.total_pg_fault == memory.pg_fault > 0
    assert memory.total_rss == memory.rss > 0
    assert memory.kernel is not None
    assert isinstance(memory.swap, v1.MemoryEntry)
    assert metrics.memory_oom_control == v1.MemoryOomControl()
    assert metrics.blkio is not None


@only_v1
def test_v1_without_a_pids_limit(group: Cgroup) -> None:
    metrics = group.stats()
    assert isinstance(metrics, v1.Metrics)
    assert metrics.pids == v1.PidsStat(current=0, limit=0)


def test_v1_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As plain files: since Linux 6.9 the kernel counts only for disks with a limit.
    for name in ("io_serviced", "io_service_bytes"):
        lines = "254:0 Read 7\n254:0 Write 8\n1:1 Read 9\nTotal 24\n"
        (tmp_path / f"blkio.throttle.{name}").write_text(lines)
    monkeypatch.setattr(stats, "_device_names", lambda: {"254:0": "/dev/vda"})
    metrics = Cgroup(1, {"blkio": str(tmp_path)}).stats()
    assert isinstance(metrics, v1.Metrics)
    entries = [
        v1.BlkIOEntry(op="Read", device="/dev/vda", major=254, minor=0, value=7),
        v1.BlkIOEntry(op="Write", device="/dev/vda", major=254, minor=0, value=8),
        v1.BlkIOEntry(op="Read", device="", major=1, minor=1, value=9),
    ]
    assert metrics.blkio == v1.BlkIOStat(
        io_service_bytes_recursive=entries, io_serviced_recursive=entries
    )


def test_v1_huge_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = tmp_path / "sizes"
    (sizes / "hugepages-2048kB").mkdir(parents=True)
    for name, text in (("usage_in_bytes", "1"), ("max_usage_in_bytes", "2"), ("failcnt", "3")):
        (tmp_path / f"hugetlb.2MB.{name}").write_text(text)
    monkeypatch.setattr(stats, "_HUGEPAGES", str(sizes))
    metrics = Cgroup(1, {"hugetlb": str(tmp_path)}).stats()
    assert isinstance(metrics, v1.Metrics)
    assert metrics.hugetlb == [v1.HugetlbStat(usage=1, max=2, failcnt=3, pagesize="2MB")]


def test_device_names_come_from_the_kernels_list() -> None:
    names = stats._device_names()
    assert all(Path(name).name in os.listdir("/sys/class/block") for name in names.values())


@only_v1
def test_v1_of_a_group_that_is_gone() -> None:
    with pytest.raises(NotFound, match="/memory/no-such is gone"):
        Cgroup(1, {"memory": f"{ROOT}/memory/no-such"}).stats()


@only_v1
def test_v1_is_never_nothing_while_a_process_lives(group: Cgroup) -> None:
    few = Cgroup(1, {"pids": group.paths["pids"]})
    empty = few.stats()
    assert isinstance(empty, v1.Metrics)
    assert empty.memory is not None
    assert empty.memory.usage == v1.MemoryEntry()
    with subprocess.Popen(["/bin/sleep", "1000"]) as child:
        few.add(child.pid)
        metrics = few.stats()
        child.kill()
    assert isinstance(metrics, v1.Metrics)
    assert metrics.cpu is not None
    assert metrics.cpu.usage is not None
    assert metrics.cpu.usage.total > 0
    assert metrics.memory is not None
    assert metrics.memory.usage is not None
    assert metrics.memory.usage.usage >= 4096


@pytest.mark.skipif(
    os.geteuid() != 0
    or not cgroup.is_unified()
    or "memory" not in (ROOT / "cgroup.subtree_control").read_text(),
    reason="needs root and version 2",
)
def test_v2_of_a_living_group() -> None:
    group = Cgroup(2, {"": str(ROOT / f"thaw-test-stats-{os.getpid()}")})
    os.mkdir(group.main)
    with busy(group) as child:
        metrics = group.stats()
        child.kill()
    group.remove()
    assert isinstance(metrics, v2.Metrics)
    assert v2.Metrics.decode(metrics.encode()) == metrics
    assert metrics.cpu is not None
    assert metrics.cpu.usage_usec > 0
    assert metrics.memory is not None
    assert metrics.memory.usage >= metrics.memory.anon > 8_000_000
    assert metrics.memory.usage_limit == MAX
    assert metrics.memory.pgfault > 0
    assert metrics.memory_events == v2.MemoryEvents()


PRESSURE = (
    "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
)
V2_FILES = {
    "cgroup.procs": "",
    "pids.current": "3\n",
    "pids.max": "max\n",
    "cpu.stat": "usage_usec 900\nuser_usec 600\nsystem_usec 300\nnice_usec 0\n"
    "core_sched.force_idle_usec 0\nnr_periods 4\nnr_throttled 2\nthrottled_usec 50\n"
    "nr_bursts 1\nburst_usec 5\n",
    "cpu.pressure": PRESSURE,
    "memory.stat": "anon 4096\nfile 8192\nkernel 100\nkernel_stack 10\nsock 1\nshmem 2\n"
    "anon_thp 3\nslab 9\npgfault 11\npgmajfault 12\nworkingset_refault_anon 5\n"
    "inactive_file 6\nthp_fault_alloc 13\n",
    "memory.pressure": PRESSURE,
    "memory.current": "12288\n",
    "memory.max": "max\n",
    "memory.peak": "20480\n",
    "memory.swap.current": "0\n",
    "memory.swap.max": "1048576\n",
    "memory.events": "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n",
    "io.stat": "7:0 \n254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n",
    "io.pressure": PRESSURE,
    "hugetlb.2MB.current": "2097152\n",
    "hugetlb.2MB.max": "max\n",
    "hugetlb.2MB.events": "max 9\n",
}
PSI = v2.PSIStats(
    some=v2.PSIData(avg10=1.5, avg60=0.25, total=77),
    full=v2.PSIData(total=7),
)


@pytest.fixture
def unified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cgroup:
    folder, sizes = tmp_path / "group", tmp_path / "hugepages"
    for path in (folder, sizes / "hugepages-2048kB"):
        path.mkdir(parents=True)
    for name, text in V2_FILES.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(stats, "_HUGEPAGES", str(sizes))
    return Cgroup(2, {"": str(folder)})


def test_v2(unified: Cgroup) -> None:
    assert unified.stats() == v2.Metrics(
        pids=v2.PidsStat(current=3, limit=MAX),
        cpu=v2.CPUStat(
            usage_usec=900,
            user_usec=600,
            system_usec=300,
            nr_periods=4,
            nr_throttled=2,
            throttled_usec=50,
            nr_bursts=1,
            burst_usec=5,
            psi=PSI,
        ),
        memory=v2.MemoryStat(
            anon=4096,
            file=8192,
            kernel_stack=10,
            slab=9,
            sock=1,
            shmem=2,
            anon_thp=3,
            inactive_file=6,
            pgfault=11,
            pgmajfault=12,
            thp_fault_alloc=13,
            usage=12288,
            usage_limit=MAX,
            max_usage=20480,
            swap_limit=1048576,
            psi=PSI,
        ),
        io=v2.IOStat(
            usage=[v2.IOEntry(major=254, minor=0, rbytes=1, wbytes=2, rios=3, wios=4)], psi=PSI
        ),
        hugetlb=[v2.HugeTlbStat(current=2 << 20, max=MAX, pagesize="2MB", failcnt=9)],
        memory_events=v2.MemoryEvents(low=1, high=2, max=3, oom=4, oom_kill=5, oom_group_kill=6),
    )


def test_v2_without_controllers_is_never_nothing(unified: Cgroup) -> None:
    for name in V2_FILES:
        Path(unified.main, name).unlink()
    Path(unified.main, "cgroup.procs").write_text(f"{os.getpid()}\n")
    metrics = unified.stats()
    assert isinstance(metrics, v2.Metrics)
    assert metrics.cpu is not None
    assert metrics.memory is not None
    assert metrics.cpu.usage_usec > 0
    assert metrics.memory.usage > 1 << 20
    assert metrics.memory_events is None
    assert metrics.io == v2.IOStat()
    assert v2.Metrics.decode(metrics.encode()) == metrics


def test_v2_of_a_group_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is gone"):
        Cgroup(2, {"": str(tmp_path / "gone")}).stats()


@pytest.mark.parametrize(
    ("kib", "size"), [(64, "64KB"), (2048, "2MB"), (32768, "32MB"), (1 << 20, "1GB")]
)
def test_huge_page_sizes_are_named_as_the_kernel_does(kib: int, size: str) -> None:
    assert stats._size(kib) == size


def test_counters_below_zero_are_zero(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a -5\nb 18446744073709551615\nno number here\n")
    assert stats._table(str(tmp_path / "file")) == {"a": 0, "b": MAX}
