"""What GPUs can take up what others had: every rule on its own, the pairs, the wait for memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from fakes.clock import Clock
from fakes.nvml import A100, GIB, H100, machine, numbered

from shim.errors import Unfit
from shim.gpu import rules
from shim.gpu.given import place_of
from shim.gpu.nvml import Gpu
from shim.gpu.rules import kinds, pairs, reasons, successors, unsupported, wait_for_memory
from shim.snapshot.config import Gpu as Kind

ONE = machine(H100)
TWO = machine(H100, H100)
MIXED = sorted(machine(H100, A100, H100), key=place_of)
ELSEWHERE = [numbered(H100, index) for index in range(16, 20)]
OTHERS = [numbered(A100, 32), *ELSEWHERE]


def uuids(gpus: Sequence[Gpu]) -> list[str]:
    return [gpu.uuid for gpu in gpus]


def test_kinds() -> None:
    assert kinds([]) == []
    assert kinds(machine(H100, A100, H100)) == [
        Kind(A100.model, 40 * GIB, "580.159.04", 1),
        Kind(H100.model, 80 * GIB, "580.159.04", 2),
    ]


def test_kinds_stand_in_the_order_of_their_gpus() -> None:
    """That is what makes a snapshot's lists parallel."""
    models = [kind.model for kind in kinds(MIXED) for _ in range(kind.count)]
    assert models == [gpu.model for gpu in MIXED]


@pytest.mark.parametrize(
    ("then", "here"),
    [
        ([], []),
        ([], [replace(H100, mig=True)]),  # it used none
        (ONE, ONE),
        (ONE, ELSEWHERE),
        (TWO, ELSEWHERE),
        (MIXED, OTHERS),
        (ONE, [replace(H100, driver="590.1")]),
        (ONE, [replace(H100, driver="580.12")]),  # of the same branch
        (ONE, [replace(H100, memory=79 * GIB)]),  # what matters is what is needed
        (ONE, [replace(H100, free=0)]),  # that is waited for
    ],
)
def test_what_fits(then: list[Gpu], here: list[Gpu]) -> None:
    assert list(reasons(kinds(then), here)) == []
    assert list(reasons(kinds(then), here, [20 * GIB] * len(then))) == []


@pytest.mark.parametrize(
    ("then", "here", "needed", "reason"),
    [
        (ONE, [], [], "made with GPUs: 1 NVIDIA H100 80GB HBM3; the container has none"),
        (
            ONE,
            machine(A100),
            [],
            "made with GPUs: 1 NVIDIA H100 80GB HBM3; the container has 1 NVIDIA A100-SXM4-40GB",
        ),
        (
            TWO,
            ONE,
            [],
            "made with GPUs: 2 NVIDIA H100 80GB HBM3; the container has 1 NVIDIA H100 80GB HBM3",
        ),
        (
            MIXED,
            ELSEWHERE,
            [],
            "made with GPUs: 1 NVIDIA A100-SXM4-40GB; the container has 4 NVIDIA H100 80GB HBM3",
        ),
        (
            TWO,
            [ELSEWHERE[0], OTHERS[0]],
            [],
            (
                "made with GPUs: 2 NVIDIA H100 80GB HBM3; "
                "the container has 1 NVIDIA A100-SXM4-40GB, 1 NVIDIA H100 80GB HBM3"
            ),
        ),
        (
            ONE,
            [replace(H100, mig=True)],
            [],
            "GPU 0 (NVIDIA H100 80GB HBM3) is divided into instances (MIG)",
        ),
        (
            ONE,
            [replace(H100, virtual=True)],
            [],
            "GPU 0 (NVIDIA H100 80GB HBM3) is a virtual one (vGPU)",
        ),
        (
            ONE,
            [replace(H100, driver="570.211.01")],
            [],
            "made with driver 580.159.04, this is 570.211.01: an older branch",
        ),
        (
            ONE,
            [replace(H100, driver="")],
            [],
            "made with driver 580.159.04, this is unknown: an older branch",
        ),
        (
            ONE,
            [replace(H100, memory=40 * GIB)],
            [60 * GIB],
            "GPU 0 (NVIDIA H100 80GB HBM3) has 40.0 GiB of memory, 60.0 GiB are needed",
        ),
        (
            ONE,
            [replace(H100, memory=0, free=0)],
            [GIB],
            "GPU 0 (NVIDIA H100 80GB HBM3) does not say how much memory it has",
        ),
        (
            TWO,
            TWO,
            [GIB],
            "it says what it needs on 1 GPUs, and was made with 2",
        ),
    ],
)
def test_what_does_not(then: list[Gpu], here: list[Gpu], needed: list[int], reason: str) -> None:
    assert list(reasons(kinds(then), here, needed)) == [reason]


def test_all_reasons_are_told() -> None:
    here = [replace(A100, mig=True, driver="565.1")]
    assert len(list(reasons(kinds(TWO), here))) == 3


def test_needs_are_held_against_their_own_model() -> None:
    """The A100's need comes first, as the A100 does; 60 GiB are too much for it alone."""
    assert list(reasons(kinds(MIXED), OTHERS, [30 * GIB, 60 * GIB, 70 * GIB])) == []
    (reason,) = reasons(kinds(MIXED), OTHERS, [60 * GIB, 30 * GIB, 70 * GIB])
    assert reason.endswith("(NVIDIA A100-SXM4-40GB) has 40.0 GiB of memory, 60.0 GiB are needed")


def test_what_is_not_supported() -> None:
    assert list(unsupported(MIXED)) == []
    assert len(list(unsupported([replace(H100, mig=True, virtual=True), H100]))) == 2


def test_gpus_that_stay_where_they_are() -> None:
    assert successors(uuids(TWO), [*ELSEWHERE, *TWO]) == TWO
    assert pairs(uuids(TWO), TWO) == []
    assert pairs([], []) == []


def test_gpus_that_move() -> None:
    new = successors(uuids(TWO), ELSEWHERE)
    assert new == ELSEWHERE[:2]
    assert pairs(uuids(TWO), new) == [
        (TWO[0].uuid, ELSEWHERE[0].uuid),
        (TWO[1].uuid, ELSEWHERE[1].uuid),
    ]


def test_every_gpu_is_listed_if_one_moves() -> None:
    new = successors(uuids(TWO), [TWO[1], ELSEWHERE[0]])
    assert pairs(uuids(TWO), new) == [
        (TWO[0].uuid, ELSEWHERE[0].uuid),
        (TWO[1].uuid, TWO[1].uuid),
    ]


def test_models_are_kept_apart() -> None:
    new = successors(uuids(MIXED), OTHERS, kinds(MIXED))
    assert [gpu.model for gpu in new] == [gpu.model for gpu in MIXED]
    assert len(set(new)) == len(new)
    reverse = list(reversed(OTHERS))
    assert successors(uuids(MIXED), reverse, kinds(MIXED)) == new


@pytest.mark.parametrize(
    ("old", "here", "made_with", "reason"),
    [
        (uuids(TWO), ONE, [], "no NVIDIA H100 80GB HBM3 is left here to take up"),
        (uuids(ONE), [], [], "no unknown is left here"),
        (uuids(ONE), machine(A100)[:0], kinds(ONE), "no NVIDIA H100 80GB HBM3 is left here"),
        (uuids(TWO), OTHERS, [], "GPUs of several models: NVIDIA A100-SXM4-40GB, NVIDIA H100"),
        (uuids(MIXED), ELSEWHERE, kinds(MIXED), "no NVIDIA A100-SXM4-40GB is left here"),
        (uuids(TWO), ELSEWHERE, kinds(ONE), "2 UUIDs of 1 GPUs"),
        (uuids(ONE) * 2, ELSEWHERE, [], "2 UUIDs of 2 GPUs, 1 of them different"),
        (["GPU-x"], ELSEWHERE, [], "no UUID of a GPU"),
    ],
)
def test_no_pairs(old: list[str], here: list[Gpu], made_with: list[Kind], reason: str) -> None:
    with pytest.raises(Unfit, match=reason):
        pairs(old, successors(old, here, made_with))


class Asked:
    """Answers with one list after the other, the last for ever."""

    def __init__(self, *answers: Sequence[Gpu]) -> None:
        self._answers = answers
        self.times = 0

    def __call__(self) -> Sequence[Gpu]:
        self.times += 1
        return self._answers[min(self.times, len(self._answers)) - 1]


FULL = replace(H100, free=3 * GIB, processes=(41, 42))


def test_memory_that_is_there() -> None:
    asked = Asked(TWO)
    wait_for_memory({TWO[0].uuid: 79 * GIB, TWO[1].uuid: 0}, asked, 0)
    assert asked.times == 1
    wait_for_memory({}, asked, 0)


def test_memory_that_comes() -> None:
    asked = Asked([FULL], [FULL], [H100])
    wait_for_memory({H100.uuid: 22 * GIB}, asked, 60)
    assert asked.times == 3


@pytest.mark.parametrize("seconds", [0, 0.12])
def test_memory_that_does_not_come(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, clock = Asked([FULL, ELSEWHERE[0]]), Clock()
    monkeypatch.setattr(rules, "time", clock)
    with pytest.raises(Unfit) as refused:
        wait_for_memory({H100.uuid: 22 * GIB, ELSEWHERE[0].uuid: GIB}, asked, seconds)
    assert clock.now >= seconds
    assert refused.value.message == (
        "GPU 0 (NVIDIA H100 80GB HBM3) has 3.0 GiB free, 22.0 GiB are needed; "
        f"its processes: 41 42 (after {seconds:g} s)"
    )
    assert "end what else runs there" in refused.value.hint
    assert (asked.times == 1) == (seconds == 0)


def test_who_has_the_memory_is_asked_last() -> None:
    """And it may have come back by then."""
    poor, who = replace(FULL, processes=()), Asked([FULL], [H100])
    with pytest.raises(Unfit, match="its processes: 41 42"):
        wait_for_memory({H100.uuid: 22 * GIB}, Asked([poor]), 0, who)
    wait_for_memory({H100.uuid: 22 * GIB}, Asked([poor]), 0, who)
    assert who.times == 2


def test_all_that_lack_memory_are_named() -> None:
    other = replace(ELSEWHERE[0], free=0)
    with pytest.raises(Unfit, match=r"GPU 0 .*41 42; GPU 16 .* 0.0 GiB free.* processes: unknown"):
        wait_for_memory({FULL.uuid: 22 * GIB, other.uuid: GIB}, Asked([FULL, other]), 0)


@pytest.mark.parametrize(
    ("here", "needed", "reason"),
    [
        ([], GIB, "no GPU 'GPU-00000000-1111-2222-3333-444444444400' any longer"),
        ([H100], 81 * GIB, "has 80.0 GiB of memory, 81.0 GiB are needed"),
        ([replace(H100, memory=0, free=0)], GIB, "does not say how much memory"),
    ],
)
def test_waiting_that_cannot_help(here: list[Gpu], needed: int, reason: str) -> None:
    asked = Asked(here)
    with pytest.raises(Unfit, match=reason):
        wait_for_memory({H100.uuid: needed}, asked, 60)
    assert asked.times == 1
