"""Whose service account it is, from a place that the pod has a say in."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.host import open_fds
from hypothesis import given
from hypothesis import strategies as st

from shim.snapshot.token import PLACE, service_account

NAMED = {"kubernetes.io": {"serviceaccount": {"name": "worker.sa-1", "uid": "x"}}}


def token_of(claims: object) -> bytes:
    """A token as kubelet projects it; its signature is nobody's."""
    parts = [b'{"alg":"RS256"}', json.dumps(claims).encode(), b"signature"]
    return b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)


def volume_of(folder: Path, token: bytes, kind: str = "kubernetes.io~projected") -> Path:
    """A volume as kubelet writes it, by two links."""
    volume = folder / "volumes" / kind / "kube-api-access-x"
    (volume / "..2026").mkdir(parents=True)
    (volume / "..2026" / "token").write_bytes(token)
    (volume / "..data").symlink_to("..2026")
    (volume / "token").symlink_to("..data/token")
    return volume


def account(volume: Path) -> str:
    mount = {"destination": f"{PLACE}/", "source": str(volume), "options": ["rbind", "ro"]}
    return service_account({"mounts": [mount]})


def test_by_the_links_that_kubelet_makes(tmp_path: Path) -> None:
    assert account(volume_of(tmp_path, token_of(NAMED))) == "worker.sa-1"
    assert account(tmp_path / "kubernetes.io~projected" / "gone") == ""
    assert service_account({}) == ""


def test_another_volume_in_its_place_is_not_looked_into(tmp_path: Path) -> None:
    volume = volume_of(tmp_path, token_of(NAMED), "kubernetes.io~empty-dir")
    assert account(volume) == ""


def another_token(volume: Path) -> None:
    (volume / "token").unlink()
    (volume / "token").symlink_to(volume / "..2026" / "token")


def a_file(volume: Path) -> None:
    (volume / "..2026" / "token").rename(volume / "new")
    (volume / "token").unlink()
    (volume / "new").rename(volume / "token")


def another_date(target: str) -> Callable[[Path], None]:
    def relink(volume: Path) -> None:
        (volume / "..data").unlink()
        (volume / "..data").symlink_to(target)

    return relink


def another_kind(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def remake(volume: Path) -> None:
        (volume / "..2026" / "token").unlink()
        make(volume / "..2026" / "token")

    return remake


@pytest.mark.parametrize(
    "spoil",
    [
        another_token,
        a_file,
        another_date(".."),
        another_date("."),
        another_date("../kube-api-access-x/..2026"),
        another_date("/"),
        another_date("token"),
        another_kind(os.mkfifo),
        another_kind(Path.mkdir),
        another_kind(lambda path: path.symlink_to("/dev/zero")),
        another_kind(lambda path: os.mknod(path, 0o020666, os.makedev(1, 5))),
    ],
)
def test_no_other_link_is_followed_and_nothing_else_opened(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    volume = volume_of(tmp_path, token_of(NAMED))
    spoil(volume)
    before = open_fds()
    assert account(volume) == ""
    assert open_fds(before) == set()


@pytest.mark.parametrize(
    "claims",
    [
        *(None, 1, [], {}, "x", {"kubernetes.io": []}, {"kubernetes.io": {"serviceaccount": 1}}),
        *(
            {"kubernetes.io": {"serviceaccount": {"name": name}}}
            for name in (1, "", "a b", "A/../")
        ),
        {"kubernetes.io": {"serviceaccount": {"name": "a" * 300}}},
    ],
)
def test_a_token_that_names_nobody(tmp_path: Path, claims: object) -> None:
    assert account(volume_of(tmp_path, token_of(claims))) == ""


@given(st.binary(max_size=100) | st.binary(max_size=60).map(lambda b: b"a." + b + b".c"))
def test_a_token_that_is_none(token: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert account(volume_of(Path(folder), token)) == ""
