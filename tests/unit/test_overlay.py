"""Overlay options are shortened without changing what they mean."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidArgument
from shim.overlay import fit, split, unescape

PAGE = os.sysconf("SC_PAGE_SIZE")
DEEP = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"


def data(layers: list[str]) -> str:
    return ",".join(["index=off", "upperdir=/u", "lowerdir=" + ":".join(layers), "workdir=/w"])


def test_short_options_stay_as_they_are() -> None:
    short = data([f"{DEEP}/{number}/fs" for number in range(40)])
    assert fit("overlay", short) == ("", short)


def test_long_options_become_relative() -> None:
    layers = [f"{DEEP}/{number}/fs" for number in range(100)]
    folder, fitted = fit("overlay", data(layers))
    assert folder == DEEP
    assert fitted == data([f"{number}/fs" for number in range(100)])


def test_other_file_systems_stay_as_they_are() -> None:
    text = "lowerdir=" + ":".join([f"/a/{number}" for number in range(600)])
    assert fit("tmpfs", text[: PAGE - 1]) == ("", text[: PAGE - 1])
    with pytest.raises(InvalidArgument, match=f"of {PAGE} bytes"):
        fit("tmpfs", text[:PAGE])


def test_a_layer_inside_another_keeps_a_name() -> None:
    layers = [DEEP, *[f"{DEEP}/{number}/fs" for number in range(60)]]
    folder, fitted = fit("overlay", data(layers))
    assert folder == os.path.dirname(DEEP)
    assert fitted == data(["snapshots", *[f"snapshots/{number}/fs" for number in range(60)]])


def test_data_only_layers_keep_their_double_colons() -> None:
    layers = [*[f"{DEEP}/{number}/fs" for number in range(80)], "", f"{DEEP}/data"]
    _, fitted = fit("overlay", data(layers))
    assert "/fs::data," in fitted


def test_relative_layers_stay_as_they_are() -> None:
    text = data(["x" * 30] * 120)
    assert fit("overlay", text) == ("", text)


def test_layers_without_a_shared_folder() -> None:
    folder, fitted = fit("overlay", data([f"/layer{number}/{'x' * 30}" for number in range(90)]))
    assert folder == "/"
    assert f"lowerdir=layer0/{'x' * 30}:layer1/" in fitted


def test_too_many_layers_even_so() -> None:
    with pytest.raises(InvalidArgument, match="too many or too long layers"):
        fit("overlay", data([f"{DEEP}/{number}/fs" for number in range(900)]))


def test_escapes_go_to_the_folder_without_and_to_the_layers_with() -> None:
    folder, fitted = fit("overlay", data([rf"/a\:b\,c\\d/{n}\:x/fs" for n in range(200)]))
    assert folder == "/a:b,c\\d"
    assert r"lowerdir=0\:x/fs:1\:x/fs:" in fitted


@given(st.lists(st.text(alphabet=":,\\/ab", max_size=6)))
def test_split_undoes_join(parts: list[str]) -> None:
    escaped = [part.replace("\\", "\\\\").replace(":", "\\:") for part in parts] or [""]
    assert split(":".join(escaped), ":") == escaped
    assert [unescape(part) for part in escaped] == (parts or [""])
