"""What a program pays for the library: told by runs with it and without, the better of two."""

from __future__ import annotations

from pathlib import Path

import pytest
from bed.lane import Installation
from gpu.machine import Machine
from gpu.overheads import measured

PRODUCT = "#!/bin/sh\necho libm.so.6\n"  # where the library is; any will do
PROGRAM = """#!/bin/sh
[ "$*" = "-m gpu.overhead cpu" ] || exit 3
echo "a warning"
echo "${LD_PRELOAD:-none}" >> FOLDER/ran
echo "{\\"launch\\": $(($(wc -l < FOLDER/ran) + 1)), \\"to\\": $(wc -l < FOLDER/ran)}"
"""


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_first_goes_last_too_and_the_better_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    program(tmp_path / "python", PRODUCT)
    worker = program(tmp_path / "worker", PROGRAM.replace("FOLDER", str(tmp_path)))
    machine = Machine(str(worker), (tmp_path,), None)
    found = measured(machine, Installation(tmp_path), "cpu")
    assert (tmp_path / "ran").read_text().split() == ["none", "libm.so.6", "libm.so.6", "none"]
    # The nth run tells n + 1 microseconds of a launch, and n GiB/s.
    assert found == {"driver": {"launch": 2.0, "to": 4.0}, "library": {"launch": 3.0, "to": 3.0}}
    with pytest.raises(RuntimeError, match="exit 3"):
        measured(machine, Installation(tmp_path), "cuda")
