"""Files of an image that CRIU would make or truncate when it opens them, as root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes.images import image

from shim.errors import Damaged
from shim.proto import criu_pb as pb
from shim.restore.descriptors import check_flags
from shim.snapshot.images import FILES


def folder(path: Path, *flags: int) -> Path:
    files = [
        pb.File(id=n, reg=pb.RegularFile(id=n, name=b"/data/model", flags=flag))
        for n, flag in enumerate(flags)
    ]
    (path / "files.img").write_bytes(image(FILES, pb.File(id=99, type=5), *files))
    return path


def test_what_the_kernel_writes(tmp_path: Path) -> None:
    flags = (os.O_RDONLY, os.O_RDWR | os.O_APPEND | os.O_NONBLOCK, os.O_PATH, 0o100000)
    check_flags(folder(tmp_path, *flags))


@pytest.mark.parametrize("flag", [os.O_TRUNC, os.O_CREAT, os.O_CREAT | os.O_EXCL])
def test_what_it_does_not(tmp_path: Path, flag: int) -> None:
    with pytest.raises(Damaged, match=r"files.img: opening '/data/model' would make or truncate"):
        check_flags(folder(tmp_path, os.O_RDWR, os.O_WRONLY | flag))


@pytest.mark.parametrize("data", [b"", b"x" * 20, image(FILES, b"\xff\xff")])
def test_no_image(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(Damaged, match=r"files\.img"):
        check_flags(tmp_path)
    (tmp_path / "files.img").write_bytes(data)
    with pytest.raises(Damaged, match=r"files\.img"):
        check_flags(tmp_path)
