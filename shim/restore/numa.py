"""On which NUMA nodes a restored worker's memory belongs.

A page lands on the node of the processor that touches it first, and when memory is filled from
outside that is ours. So the filling threads run on the nodes that the worker itself may use:
those of its cpuset's memory that have processors it may run on.
"""

from __future__ import annotations

NODES = "/sys/devices/system/node"


def nodes_for(pid: int, root: str = NODES, proc: str = "/proc") -> list[int]:
    """The nodes for the memory of process `pid`; none if this machine has but one."""
    online = _read_list(f"{root}/online")
    if len(online) < 2:
        return []
    status = _status(f"{proc}/{pid}/status")
    memory = parse_list(status.get("Mems_allowed_list", ""))
    processors = parse_list(status.get("Cpus_allowed_list", ""))
    return choose(
        {node: _read_list(f"{root}/node{node}/cpulist") for node in sorted(online)},
        memory,
        processors,
    )


def choose(nodes: dict[int, set[int]], memory: set[int], processors: set[int]) -> list[int]:
    """Nodes whose memory is allowed, and of these the ones with an allowed processor if any has."""
    allowed = [node for node in nodes if node in memory]
    near = [node for node in allowed if nodes[node] & processors]
    return near or [node for node in allowed if nodes[node]]


def parse_list(text: str) -> set[int]:
    """The numbers of a kernel list such as `0-3,8`."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def _read_list(path: str) -> set[int]:
    try:
        with open(path) as file:
            return parse_list(file.read())
    except OSError:
        return set()


def _status(path: str) -> dict[str, str]:
    try:
        with open(path) as file:
            lines = [line.partition(":") for line in file]
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in lines}
