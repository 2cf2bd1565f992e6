"""Which nodes a worker's memory goes to, on machines that we do not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim.restore.numa import choose, nodes_for, parse_list


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("", set()),
        ("\n", set()),
        ("0", {0}),
        ("0-3,8\n", {0, 1, 2, 3, 8}),
        ("1,3,5-6", {1, 3, 5, 6}),
    ],
)
def test_lists(text: str, numbers: set[int]) -> None:
    assert parse_list(text) == numbers


NODES = {0: {0, 1}, 1: {2, 3}, 2: set()}  # the last one is memory without processors


@pytest.mark.parametrize(
    ("memory", "processors", "chosen"),
    [
        ({0, 1, 2}, {0, 1, 2, 3}, [0, 1]),
        ({0, 1, 2}, {3}, [1]),
        ({1}, {0, 1}, [1]),  # it runs far from the memory that it may use: follow the memory
        ({2}, {0}, []),
        (set(), {0}, []),
    ],
)
def test_a_choice(memory: set[int], processors: set[int], chosen: list[int]) -> None:
    assert choose(NODES, memory, processors) == chosen


def machine(folder: Path, nodes: dict[int, str]) -> str:
    (folder / "online").write_text(",".join(map(str, nodes)))
    for node, processors in nodes.items():
        (folder / f"node{node}").mkdir()
        (folder / f"node{node}" / "cpulist").write_text(processors + "\n")
    return str(folder)


def process(folder: Path, memory: str, processors: str) -> str:
    (folder / "7").mkdir()
    text = f"Name:\tx\nCpus_allowed_list:\t{processors}\nMems_allowed_list:\t{memory}\n"
    (folder / "7" / "status").write_text(text)
    return str(folder)


def test_two_nodes_of_which_one_is_allowed(tmp_path: Path) -> None:
    proc = process(tmp_path, "1", "0-7")
    assert nodes_for(7, machine(tmp_path, {0: "0-3", 1: "4-7"}), proc) == [1]


def test_one_node_is_no_question(tmp_path: Path) -> None:
    assert nodes_for(7, machine(tmp_path, {0: "0-3"}), str(tmp_path)) == []


def test_a_process_that_has_gone(tmp_path: Path) -> None:
    assert nodes_for(7, machine(tmp_path, {0: "0-3", 1: "4-7"}), str(tmp_path / "no")) == []
