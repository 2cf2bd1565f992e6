"""What a container has used, as containerd's Metrics: imported when somebody asks.

Which file gives which field follows containerd's own cgroups library, so that kubelet, cAdvisor
and metrics-server see the same numbers as from its runc shim. A controller that is missing leaves
its part out; a group that is gone is NotFound.

Two numbers are never zero while a process lives, CPU time and memory in use: metrics-server throws
away a container that has neither. Where the kernel does not account them they come from /proc.
"""

from __future__ import annotations

import errno
import os

from shim.errors import NotFound
from shim.proto import cgroups_v1_pb as v1
from shim.proto import cgroups_v2_pb as v2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.cgroup import Cgroup
    from shim.proto.wire import Message

_MAX = (1 << 64) - 1
_NS_PER_TICK = 10_000_000  # USER_HZ is 100 on every architecture that has containers
_GONE = (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.EINVAL)
_HUGEPAGES = "/sys/kernel/mm/hugepages"
# memory.stat's own names of version 1, where containerd's differ.
_V1_NAMES = {
    "hierarchical_swap_limit": "hierarchical_memsw_limit",
    "pg_pg_in": "pgpgin",
    "pg_pg_out": "pgpgout",
    "pg_fault": "pgfault",
    "pg_maj_fault": "pgmajfault",
}
_V2_MEMORY_FILES = {
    "usage": "memory.current",
    "usage_limit": "memory.max",
    "max_usage": "memory.peak",
    "swap_usage": "memory.swap.current",
    "swap_limit": "memory.swap.max",
    "swap_max_usage": "memory.swap.peak",
}


def read(cgroup: Cgroup) -> v1.Metrics | v2.Metrics:
    """Read everything there is. Raises NotFound if the group is gone."""
    metrics = _read_v2(cgroup) if cgroup.version == 2 else _read_v1(cgroup)
    if not cgroup.exists():  # asked last: what is gone reads as missing
        raise NotFound(f"control group {cgroup.main} is gone")
    return metrics


# Version 1


def _read_v1(cgroup: Cgroup) -> v1.Metrics:
    paths = cgroup.paths
    metrics = v1.Metrics(cpu=_v1_cpu(paths.get("cpu", ""), paths.get("cpuacct", "")))
    if "pids" in paths:
        metrics.pids = v1.PidsStat(
            current=_number(f"{paths['pids']}/pids.current"),
            limit=_number(f"{paths['pids']}/pids.max", unlimited=0),
        )
    if "memory" in paths:
        metrics.memory = _v1_memory(paths["memory"])
        metrics.memory_oom_control = v1.MemoryOomControl()
        _fill(metrics.memory_oom_control, _table(f"{paths['memory']}/memory.oom_control"))
    if "blkio" in paths:
        metrics.blkio = _v1_blkio(paths["blkio"])
    if "hugetlb" in paths:
        metrics.hugetlb = [_v1_hugetlb(paths["hugetlb"], size) for size in _huge_page_sizes()]
    _never_nothing_v1(metrics, cgroup)
    return metrics


def _v1_cpu(cpu: str, cpuacct: str) -> v1.CPUStat:
    throttled = _table(f"{cpu}/cpu.stat")
    ticks = _table(f"{cpuacct}/cpuacct.stat")
    return v1.CPUStat(
        usage=v1.CPUUsage(
            total=_number(f"{cpuacct}/cpuacct.usage"),
            kernel=ticks.get("system", 0) * _NS_PER_TICK,
            user=ticks.get("user", 0) * _NS_PER_TICK,
            per_cpu=[int(ns) for ns in _text(f"{cpuacct}/cpuacct.usage_percpu").split()],
        ),
        throttling=v1.Throttle(
            periods=throttled.get("nr_periods", 0),
            throttled_periods=throttled.get("nr_throttled", 0),
            throttled_time=throttled.get("throttled_time", 0),
        ),
    )


def _v1_memory(folder: str) -> v1.MemoryStat:
    memory = v1.MemoryStat(
        usage=_v1_entry(f"{folder}/memory"),
        swap=_v1_entry(f"{folder}/memory.memsw"),
        kernel=_v1_entry(f"{folder}/memory.kmem"),
        kernel_tcp=_v1_entry(f"{folder}/memory.kmem.tcp"),
    )
    _fill(memory, _table(f"{folder}/memory.stat"), _v1_name)
    return memory


def _v1_name(field: str) -> str:
    total = "total_" if field.startswith("total_") else ""
    name = field.removeprefix("total_")
    return total + _V1_NAMES.get(name, name)


def _v1_entry(prefix: str) -> v1.MemoryEntry:
    return v1.MemoryEntry(
        limit=_number(f"{prefix}.limit_in_bytes"),
        usage=_number(f"{prefix}.usage_in_bytes"),
        max=_number(f"{prefix}.max_usage_in_bytes"),
        failcnt=_number(f"{prefix}.failcnt"),
    )


def _v1_blkio(folder: str) -> v1.BlkIOStat:
    """The throttling layer's counters; CFQ's own went with Linux 5.0."""
    devices = _device_names()
    return v1.BlkIOStat(
        io_service_bytes_recursive=_v1_entries(
            f"{folder}/blkio.throttle.io_service_bytes", devices
        ),
        io_serviced_recursive=_v1_entries(f"{folder}/blkio.throttle.io_serviced", devices),
    )


def _v1_entries(path: str, devices: dict[str, str]) -> list[v1.BlkIOEntry]:
    entries = []
    for words in _lines(path):
        if len(words) == 3:  # "8:0 Read 4096"; the last line is "Total 4096"
            major, _, minor = words[0].partition(":")
            entries.append(
                v1.BlkIOEntry(
                    op=words[1],
                    device=devices.get(words[0], ""),
                    major=int(major),
                    minor=int(minor),
                    value=int(words[2]),
                )
            )
    return entries


def _v1_hugetlb(folder: str, size: str) -> v1.HugetlbStat:
    prefix = f"{folder}/hugetlb.{size}"
    return v1.HugetlbStat(
        usage=_number(f"{prefix}.usage_in_bytes"),
        max=_number(f"{prefix}.max_usage_in_bytes"),
        failcnt=_number(f"{prefix}.failcnt"),
        pagesize=size,
    )


def _never_nothing_v1(metrics: v1.Metrics, cgroup: Cgroup) -> None:
    assert metrics.cpu is not None
    assert metrics.cpu.usage is not None
    if metrics.memory is None:
        metrics.memory = v1.MemoryStat()
    if metrics.memory.usage is None:
        metrics.memory.usage = v1.MemoryEntry()
    if metrics.cpu.usage.total and metrics.memory.usage.usage:
        return
    pids = cgroup.pids()
    if pids:
        metrics.cpu.usage.total = metrics.cpu.usage.total or _cpu_ns(pids)
        metrics.memory.usage.usage = metrics.memory.usage.usage or _resident(pids)


# Version 2


def _read_v2(cgroup: Cgroup) -> v2.Metrics:
    folder = cgroup.main
    cpu = v2.CPUStat(psi=_pressure(f"{folder}/cpu.pressure"))
    _fill(cpu, _table(f"{folder}/cpu.stat"))
    memory = _v2_memory(folder)
    if not (cpu.usage_usec and memory.usage):
        pids = cgroup.pids()
        if pids:
            cpu.usage_usec = cpu.usage_usec or max(1, _cpu_ns(pids) // 1000)
            memory.usage = memory.usage or _resident(pids)
    return v2.Metrics(
        pids=v2.PidsStat(
            current=_number(f"{folder}/pids.current"), limit=_number(f"{folder}/pids.max")
        ),
        cpu=cpu,
        memory=memory,
        io=v2.IOStat(usage=_v2_io(folder), psi=_pressure(f"{folder}/io.pressure")),
        hugetlb=[_v2_hugetlb(folder, size) for size in _huge_page_sizes()],
        memory_events=_v2_memory_events(folder),
    )


def _v2_memory(folder: str) -> v2.MemoryStat:
    memory = v2.MemoryStat()
    stat = _table(f"{folder}/memory.stat")
    if stat:
        memory.psi = _pressure(f"{folder}/memory.pressure")
        _fill(memory, stat)
        for field, file in _V2_MEMORY_FILES.items():
            setattr(memory, field, _number(f"{folder}/{file}"))
    return memory


def _v2_memory_events(folder: str) -> v2.MemoryEvents | None:
    table = _table(f"{folder}/memory.events")
    if not table:
        return None
    events = v2.MemoryEvents()
    _fill(events, table)
    return events


def _v2_io(folder: str) -> list[v2.IOEntry]:
    entries = []
    for device, *counters in _lines(f"{folder}/io.stat"):
        major, colon, minor = device.partition(":")
        if not colon or not counters:  # a device without counters has a line of its own
            continue
        entry = v2.IOEntry(major=int(major), minor=int(minor))
        pairs = [counter.partition("=") for counter in counters]
        _fill(entry, {name: int(value) for name, _, value in pairs if value.isdigit()})
        entries.append(entry)
    return entries


def _v2_hugetlb(folder: str, size: str) -> v2.HugeTlbStat:
    prefix = f"{folder}/hugetlb.{size}"
    return v2.HugeTlbStat(
        current=_number(f"{prefix}.current"),
        max=_number(f"{prefix}.max"),
        pagesize=size,
        failcnt=_table(f"{prefix}.events").get("max", 0),
    )


def _pressure(path: str) -> v2.PSIStats | None:
    lines = _lines(path)
    if not lines:
        return None
    stats = v2.PSIStats()
    for kind, *values in lines:
        data = dict(value.split("=", 1) for value in values)
        psi = v2.PSIData(
            avg10=float(data["avg10"]),
            avg60=float(data["avg60"]),
            avg300=float(data["avg300"]),
            total=int(data["total"]),
        )
        if kind == "some":
            stats.some = psi
        else:
            stats.full = psi
    return stats


# Files


def _text(path: str) -> str:
    """A file's contents; empty if its controller is absent, off, or the group is gone."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError as error:
        if error.errno in _GONE:
            return ""
        raise


def _lines(path: str) -> list[list[str]]:
    return [words for line in _text(path).splitlines() if (words := line.split())]


def _table(path: str) -> dict[str, int]:
    """A file of `name value` lines."""
    return {words[0]: _value(words[1]) for words in _lines(path) if len(words) == 2}


def _number(path: str, unlimited: int = _MAX) -> int:
    """A file of one number, `max` being `unlimited`; zero if it is not there."""
    text = _text(path).strip()
    return unlimited if text == "max" else _value(text or "0")


def _value(text: str) -> int:
    return max(0, int(text))  # some counters go below zero for a moment


def _same(field: str) -> str:
    return field


def _fill(message: Message, values: dict[str, int], name: Callable[[str], str] = _same) -> None:
    """Set each number of a message that `values` has, under the name that the kernel gives it."""
    for _, field, _, _ in message.FIELDS:
        value = values.get(name(field))
        # Only numbers: version 1's memory.stat also has a `swap`, which is a message here.
        if value is not None and isinstance(getattr(message, field), int):
            setattr(message, field, value)


def _huge_page_sizes() -> list[str]:
    """Sizes as hugetlb's file names have them, for example 2MB and 1GB."""
    try:
        names = sorted(os.listdir(_HUGEPAGES))
    except FileNotFoundError:
        return []
    return [_size(int(name[len("hugepages-") : -len("kB")])) for name in names]


def _size(kib: int) -> str:
    for shift, unit in ((20, "GB"), (10, "MB")):
        if kib >= 1 << shift:
            return f"{kib >> shift}{unit}"
    return f"{kib}KB"


def _device_names() -> dict[str, str]:
    """Block devices by MAJOR:MINOR."""
    names: dict[str, str] = {}
    for words in _lines("/proc/partitions"):
        if len(words) == 4 and words[0].isdigit():
            names.setdefault(f"{words[0]}:{words[1]}", f"/dev/{words[3]}")
    return names


def _cpu_ns(pids: list[int]) -> int:
    """CPU time of living processes, at least one nanosecond."""
    total = 0
    for pid in pids:
        fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if fields:
            total += (int(fields[11]) + int(fields[12])) * _NS_PER_TICK  # utime, stime
    return max(1, total)


def _resident(pids: list[int]) -> int:
    """Resident bytes of living processes, at least one page; shared pages count for each."""
    page = os.sysconf("SC_PAGE_SIZE")
    fields = [_text(f"/proc/{pid}/statm").split() for pid in pids]
    return max(page, sum(int(words[1]) * page for words in fields if words))
