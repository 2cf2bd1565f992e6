"""An image's layer as an overlay's upper directory."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from fakes.archives import END, header, member

from shim.errors import Damaged, Unfit
from shim.snapshot.layer import unpack_layer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="devices need root")


def lay(folder: Path, *pieces: bytes) -> Path:
    (folder / "layer").write_bytes(b"".join([*pieces, END]))
    upper = folder / "upper"
    upper.mkdir()
    unpack_layer(folder / "layer", upper)
    return upper


def test_whiteouts(tmp_path: Path) -> None:
    upper = lay(
        tmp_path, header(b"d/", b"5"), member(b"d/.wh.gone"), member(b"d/file", b"new"),
        header(b"e/", b"5"), member(b"e/.wh..wh..opq"), member(b"e/file", b"new"), member(b".wh.x"),
    )  # fmt: skip
    found = sorted(str(path.relative_to(upper)) for path in upper.rglob("*"))
    assert found == ["d", "d/file", "d/gone", "e", "e/file", "x"]
    for name in ("d/gone", "x"):
        info = (upper / name).lstat()
        assert (stat.S_IFMT(info.st_mode), info.st_rdev) == (stat.S_IFCHR, os.makedev(0, 0))
    assert os.getxattr(upper / "e", "trusted.overlay.opaque") == b"y"
    assert os.listxattr(upper / "d") == []


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([member(b"e/.wh..wh..opq")], "in no folder"),
        ([member(b"e"), member(b"e/.wh..wh..opq")], "in no folder"),
        ([member(b"f"), member(b".wh.f")], "comes twice"),
        ([member(b".wh.")], "hides no name"),
        ([member(b".wh...")], "hides no name"),
        ([header(b"d/", b"5"), member(b"d/.wh...")], "hides no name"),
        ([header(b"x", b"4")], "is a device"),
    ],
)
def test_refused(tmp_path: Path, pieces: list[bytes], words: str) -> None:
    with pytest.raises(Unfit, match=words):
        lay(tmp_path, *pieces)
    assert os.listdir(tmp_path / "upper") == []


def test_no_layer(tmp_path: Path) -> None:
    with pytest.raises(Damaged):
        lay(tmp_path, b"nothing of that kind")
