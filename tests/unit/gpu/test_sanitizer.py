"""compute-sanitizer's part of tests/gpu: what counts as found, and how a program is asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from bed.lane import Installation
from fakes.cuda import FakeCuda
from fakes.gpu_peer import Peer
from fakes.nvml import H100, numbered
from gpu import away, sanitizer
from gpu.machine import Machine
from gpu.memory_figures import sanitized

from shim.errors import Unfit

MIB = 1 << 20
# Stands for compute-sanitizer: runs what follows its three options, with a log of its own.
TOOL = """#!/bin/sh
log=$6; shift 6
"$@"; status=$?
errors=0; [ -z "$LD_PRELOAD" ] || errors=${WITH:-0}; [ -n "$LD_PRELOAD" ] || errors=${WITHOUT:-0}
[ -n "$QUIET" ] || {
    [ -z "$ASKS" ] || echo "$ASKS"
    echo "========= ERROR SUMMARY: $errors errors"
} > "$log"
exit $status
"""
PROGRAM = """#!/bin/sh
[ "$*" = "-m gpu.sanitized cuda" ] || exit 3
n=0
while read -r line; do
    n=$((n + 1))
    echo "a warning"
    echo "{\\"memory\\": [${CHANGES:+$n}], \\"answers\\": $n, \\"pid\\": 7}"
done
exit ${STATUS:-0}
"""
PRODUCT = """#!/bin/sh
case "$2" in
gpu.away) [ -z "$LOST" ] || { echo lost >&2; exit 1; }; echo 5; echo 6 ;;
*) echo libm.so.6 ;;
esac
"""


def program(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def found(folder: Path, monkeypatch: pytest.MonkeyPatch, given: Mapping[str, str]) -> object:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    program(folder / "python", PRODUCT)
    tool = program(folder / "sanitizer", TOOL)
    machine = Machine(program(folder / "worker", PROGRAM), (folder,), None)
    told = sanitizer.found_by(tool, machine, Installation(folder), "cuda")
    return {name: (one["errors"], one["without"], one["moved"]) for name, one in told.items()}


def test_nothing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = sanitizer.ANSWERS * 11
    assert found(tmp_path, monkeypatch, {}) == dict.fromkeys(sanitizer.LOOKS, (0, 0, moved))


def test_what_is_there_anyway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = found(tmp_path, monkeypatch, {"WITH": "2", "WITHOUT": "2"})
    assert told == dict.fromkeys(sanitizer.LOOKS, (2, 2, sanitizer.ANSWERS * 11))


def test_a_question_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (
        '========= Program hit CUDA_ERROR_INVALID_VALUE (error 1) due to "invalid argument" '
        "on CUDA API call to cuMemExportToShareableHandle."
    )
    told = found(tmp_path, monkeypatch, {"WITH": "1", "ASKS": asked})
    assert told == dict.fromkeys(sanitizer.LOOKS, (0, 0, sanitizer.ANSWERS * 11))
    other = asked.replace("cuMemExport", "cuMemImport")
    words = r"1 errors, 0 without the library: Program hit .*Import"
    with pytest.raises(RuntimeError, match=words):
        found(tmp_path, monkeypatch, {"WITH": "1", "ASKS": other})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"WITH": "2", "WITHOUT": "1"}, "memcheck: 2 errors, 1 without the library"),
        ({"CHANGES": "1"}, "memcheck: other contents than before"),
        ({"STATUS": "4"}, "memcheck: exit 4"),
        ({"LOST": "1"}, "memcheck: lost"),
        ({"QUIET": "1"}, "found nothing to look at"),
    ],
)
def test_what_is_not_as_it_should_be(
    given: Mapping[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match=words):
        found(tmp_path, monkeypatch, given)


def test_a_program_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PROGRAM", "#!/bin/sh\nexit 5\n")
    with pytest.raises(RuntimeError, match="the program has ended: exit 5"):
        found(tmp_path, monkeypatch, {})


def test_no_such_program(tmp_path: Path) -> None:
    machine = Machine("python3", (tmp_path,), None)
    with pytest.raises(RuntimeError, match="no there-is-none here: it comes with the CUDA"):
        sanitizer.found_by("there-is-none", machine, Installation(tmp_path), "cuda")


def test_the_table() -> None:
    one = {"errors": 0, "without": 0, "moved": 3 << 29, "seconds": 1.0}
    assert sanitized({"sanitizer": {"memcheck": one}})[1:] == [("memcheck", "0", "0", "1.5")]
    assert len(sanitized({})) == 1


def test_away_and_back(cuda: FakeCuda, capsys: pytest.CaptureFixture[str]) -> None:
    with Peer([4 * MIB, 2 * MIB], [numbered(H100, 0).uuid_bytes]) as peer:
        peer.write(0, 10, b"there")
        before = peer.digest
        away.main([str(peer.pid), cuda.library, "2"])
        assert peer.digest == before
        assert peer.asked.count("EMPTY") == 2
    assert capsys.readouterr().out == f"{6 * MIB}\n{6 * MIB}\n"


def test_one_without_the_library(cuda: FakeCuda) -> None:
    with pytest.raises(Unfit, match="has no GPU memory library"):
        away.main([str(os.getpid()), cuda.library, "1"])
