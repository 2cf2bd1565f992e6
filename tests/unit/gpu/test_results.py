"""The driver's answers in words: there is one for each, and it can be read in an error."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from shim.gpu import results
from shim.gpu.results import RESULTS, result

# A cuda.h of a toolkit, if there is one: of 13.5 at best, which the table was made after.
HEADER = Path(os.environ.get("THAW_CUDA_HEADER", "/usr/local/cuda/include/cuda.h"))


def test_the_table_is_in_order() -> None:
    assert list(RESULTS) == sorted(RESULTS)
    names = [known.name for known in RESULTS.values()]
    assert len(set(names)) == len(names)
    assert len(RESULTS) == 106


@pytest.mark.parametrize("number", RESULTS)
def test_an_answer_can_be_read(number: int) -> None:
    name, sentence, hint = RESULTS[number]
    assert re.fullmatch(r"CUDA_SUCCESS|CUDA_ERROR_[A-Z][A-Z_]+[A-Z]", name)
    assert re.fullmatch(r"[A-Za-z'][^\n]{8,98}[^\s.]", sentence)
    assert sentence[0].islower() or sentence.startswith(("CUDA", "GPU", "MPS", "NVLink", "OpenGL"))
    assert len(hint) <= 110
    assert not hint.endswith(".")


def test_sentences_tell_answers_apart() -> None:
    sentences = [known.sentence for known in RESULTS.values()]
    assert len(set(sentences)) == len(sentences)


def test_the_names_that_code_uses() -> None:
    constants = {name: value for name, value in vars(results).items() if isinstance(value, int)}
    assert len(constants) >= 9
    for name, value in constants.items():
        assert RESULTS[value].name in (f"CUDA_{name}", f"CUDA_ERROR_{name}")


def test_an_answer_that_is_not_in_the_table() -> None:
    name, sentence, hint = result(12345)
    assert (name, hint) == ("CUresult 12345", "")
    assert "newer" in sentence


def test_hints_of_calls() -> None:
    plain, restore = result(801), result(801, "cuCheckpointProcessRestore")
    assert plain == RESULTS[801] == result(801, "cuCheckpointProcessLock")
    assert restore[:2] == plain[:2]
    assert "imported" in restore.hint


def test_hints_are_for_calls_that_there_are() -> None:
    from fakes.cuda import CALLS, STORAGE

    for call, number in results._HINTS:
        assert call in (*CALLS, STORAGE)
        assert number in RESULTS


def test_the_header_has_no_others() -> None:
    if not HEADER.exists():
        pytest.skip(f"no {HEADER}; THAW_CUDA_HEADER may name one")
    text = HEADER.read_text()
    enumeration = text[text.index("typedef enum cudaError_enum") : text.index("} CUresult;")]
    found = re.findall(r"(CUDA_\w+)\s*=\s*(\d+)", enumeration)
    assert len(found) > 90
    for name, number in found:
        assert RESULTS[int(number)].name == name
    if "#define CUDA_VERSION 13050\n" in text:
        assert {int(number) for _, number in found} == set(RESULTS)
