"""What tests/gpu asks of a worker, and when it is the one that it was."""

from __future__ import annotations

from typing import Any

import pytest
from gpu.subject import Wrong, compare, pytorch, transformers

ANSWER: dict[str, Any] = {"memory": [1, 2], "graph": [3], "answers": 1, "pid": 1}
SUBJECT = pytorch(8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"memory": [1, 3]}, "another memory than"),
        ({"memory": [], "graph": [4]}, "another memory and another graph"),
        ({"answers": 1}, "started anew"),
    ],
)
def test_a_worker_that_is_not_what_it_was(change: dict[str, Any], words: str) -> None:
    assert compare("it", SUBJECT, ANSWER, {**ANSWER, "answers": 2})
    with pytest.raises(Wrong, match=words):
        compare("it", SUBJECT, ANSWER, {**ANSWER, "answers": 2, **change})


def test_names_are_those_of_snapshots() -> None:
    assert pytorch(0.5).name == "pytorch-0.5g"
    assert transformers("0.6B", 16).name == "transformers-0.6b"
