"""The tables of GPU memory that is moved past the driver."""

from __future__ import annotations

from typing import Any

import pytest
from gpu.cells import GIB
from gpu.figures import by_driver, moved, on_gpu, parts
from gpu.lane import fields
from gpu.memory_figures import alone, beside, kept, moving, overhead, rounds
from gpu.report import report

RESTORED = fields(
    "level=info msg=restored container=c1 seconds=1.000 "
    'timeline="plan=0.100 criu=0.300 device=0.500" cuda="restore=0.250 unlock=0.001" '
    'gpu="gib=24.000 stored=8.000 rate=60.0 make=0.100 fill=0.400 filled=0.150 give=0.050"'
)
SAID = fields('msg="GPU memory dumped" container=c1 gib=24.000 stored=8.000 rate=48.0')
REGIONS = [
    {"id": 1, "size": 16 * GIB, "device": 0, "gpu": "GPU-1"},
    {"id": 2, "size": 8 * GIB, "device": 0, "gpu": "GPU-1"},
]


def restore(answered: float, cache: str = "warm", told: Any = None) -> dict[str, Any]:
    times = {"pod": 0.25, "created": 0.5, "started": answered - 0.5, "answered": answered}
    return {"cache": cache, **times, "restored": RESTORED if told is None else told}


def worker(regions: list[dict[str, Any]], *answered: float) -> dict[str, Any]:
    process = {"pid": 1, "regions": regions, "left": {"small": 3 << 20, "pool": 1 << 20}}
    return {
        "thaw": {
            "cold": {"answered": 20.0},
            "snapshot": {
                "seconds": 4.0,
                "steps": {"hold": 0.1, "export": 0.2, "lock": 0.1, "device": 0.6, "copy": 0.5},
                "bytes": 10 * GIB,
                "gpu": {"memory": {"GPU-1": GIB}, "processes": [process]},
                "said": SAID,
            },
            "restores": [restore(seconds) for seconds in answered],
        }
    }


FOUND: dict[str, Any] = {
    "ceilings": {"disk": 2.0, "pinned": 50.0, "pinned back": 40.0},
    "workers": {
        "8b": {
            **worker(REGIONS, 2.0, 1.5, 1.25),
            "stock": {"restores": [restore(30.0)], "bytes": 26 * GIB},
        },
        "8b-driver": worker([], 6.0),
        "alone": worker(REGIONS[:1], 1.0),
    },
    "overhead": {
        "driver": {"alloc 2": 100.0, "launch": 2.0, "memory": 100 << 20, "to": 0.0},
        "library": {"alloc 2": 150.0, "launch": 2.1, "memory": 101 << 20, "to": 1.0},
    },
}


def test_what_is_moved_and_what_is_not() -> None:
    thaw = FOUND["workers"]["8b"]["thaw"]
    assert (moved(thaw), by_driver(thaw), on_gpu(thaw)) == (24 * GIB, GIB, 25 * GIB)
    assert (moved({}), by_driver({}), on_gpu({})) == (0, None, None)


def test_it_stands_beside_the_driver_and_stock() -> None:
    _, first, second = beside(FOUND)
    assert first[:6] == ("8b", "20.00", "-", "1.50", "6.00", "30.00")
    assert first[6:] == ("4.0 \u00d7", "20.0 \u00d7")
    assert second == ("alone", "20.00", "-", "1.00", "-", "-", "-", "-")


def test_the_node_s_cache_is_what_is_compared() -> None:
    told = {**RESTORED, "seconds": 0.75, "gpu": {**RESTORED["gpu"], "fill": 0.25}}
    found = {"workers": {"8b": worker(REGIONS, 2.0), "8b-driver": worker([], 6.0)}}
    found["workers"]["8b"]["thaw"]["restores"].append(restore(1.0, "held", told))
    _, row = beside(found)
    assert row == ("8b", "20.00", "1.00", "2.00", "6.00", "-", "6.0 \u00d7", "-")
    _, row, _ = moving(found)
    assert row[5:7] == ("32.0", "20.0")


def test_the_restore_alone() -> None:
    """Without pods, and without the first answer."""
    stock = {"cache": "warm", "criu": 18.0, "restore": 5.75, "unlock": 0.25, "answered": 25.0}
    one = worker(REGIONS, 2.0)
    for cache, took in (("held", 1.0), ("later", 0.5)):
        told = {**RESTORED, "seconds": took}
        one["thaw"]["restores"].append(restore(2.0, cache, told))
    found = {"workers": {"8b": {**one, "stock": {"restores": [stock]}}, "without": one, "warm": {}}}
    _, first, second = alone(found)
    assert first == ("8b", "24.00", "1.00", "24.0 \u00d7", "0.50", "48.0 \u00d7")
    assert second == ("without", "-", "1.00", "-", "0.50", "-")


def test_how_fast_it_is() -> None:
    _, row, _, top = moving(FOUND)
    assert row[:4] == ("8b", "24.0", "8.0", "1.00")
    assert row[4:] == ("16.0 (40%)", "-", "20.0 (40%)", "-", "0.15", "0.05")
    assert top == ("ceiling", "-", "-", "-", "40.0", "50.0", "50.0", "2.0", "-", "-")


def test_what_is_stored() -> None:
    _, row, _ = kept(FOUND)
    assert row[:6] == ("8b", "25.0", "24.0", "8.0", "10.0", "26.0")
    assert row[6:] == ("1.0", "3 MiB small, 1 MiB pool")


def test_in_a_row() -> None:
    made = [{"restored": 1.5, "snapshot": 3.0}, {"restored": 1.0, "snapshot": 4.0}]
    told = {"workers": {"8b": {"thaw": {"rounds": made}}, "other": {}}}
    assert rounds(told)[1:] == [("8b", "2", "yes", "1.00 to 1.50", "3.00 to 4.00")]


def test_what_a_program_pays() -> None:
    assert overhead(FOUND)[1:] == [
        ("alloc 2 MiB, µs", "100.0", "150.0", "1.500"),
        ("launch, µs", "2.0", "2.1", "1.050"),
        ("a model's memory, MiB", "100.0", "101.0", "1.010"),
        ("pinned → GPU, GiB/s", "0.0", "1.0", "-"),
    ]


def test_it_is_a_phase_of_a_restore() -> None:
    told = dict(parts(restore(3.0)))
    assert told["GPU memory"] == pytest.approx(0.2)
    assert sum(told.values()) == pytest.approx(3.0)


def test_a_document_of_before() -> None:
    """One without any of it has no table of it."""
    text = "\n".join(report({"workers": {"8b-driver": FOUND["workers"]["8b-driver"]}}))
    assert "moved" not in text
    assert "8b-driver" in text
    everything = "\n".join(report(FOUND))
    assert "GPU memory moved" in everything
    assert "of a program" in everything
