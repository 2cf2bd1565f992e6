"""The config document is untrusted input: whatever is in it, Unfit is all that may come of it."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest
from fakes.snapshots import CONFIG, crc32c, file_of
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import Damaged, Unfit
from shim.snapshot.config import (
    FORMAT,
    DeviceNode,
    Origin,
    SnapshotConfig,
    canonical,
)
from shim.snapshot.cuda import CONTEXT, CudaProcess, CudaState, GpuRegion, Staging

TEXT = CONFIG.to_json()
DOCUMENT: dict[str, Any] = json.loads(TEXT)
DOCUMENT.pop("checksum")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in the document."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *(found for key, item in inner for found in paths(item, (*path, key)))]


PLACES = paths(DOCUMENT)


def with_value(place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    document = json.loads(TEXT)
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return document


def signed(document: Any) -> str:
    """As somebody would write it who wants it to be believed."""
    if isinstance(document, dict):
        document = {key: value for key, value in document.items() if key != "checksum"}
        document["checksum"] = crc32c(canonical(document))
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def read(document: Any) -> SnapshotConfig:
    return SnapshotConfig.from_json(signed(document), "/s/config.json")


def test_what_is_written_is_read() -> None:
    assert SnapshotConfig.from_json(TEXT, "x") == CONFIG
    assert SnapshotConfig.from_json(TEXT.encode(), "x") == CONFIG
    assert read(DOCUMENT) == CONFIG


def test_a_byte_that_was_flipped() -> None:
    """Every one of them, spaces too, in one bit that depends on the place."""
    for place in range(len(TEXT)):
        data = bytearray(TEXT.encode())
        data[place] ^= 1 << place % 8
        with pytest.raises(Unfit):
            SnapshotConfig.from_json(bytes(data), "x")


@given(st.integers(0, len(TEXT) - 1), st.integers(1, 255))
def test_a_byte_that_is_another(place: int, change: int) -> None:
    data = bytearray(TEXT.encode())
    data[place] ^= change
    with pytest.raises(Unfit):
        SnapshotConfig.from_json(bytes(data), "x")


@given(st.integers(0, len(TEXT) - 1), st.integers(1, 64), st.binary(max_size=64))
def test_a_part_that_is_another(place: int, length: int, other: bytes) -> None:
    data = TEXT.encode()
    changed = data[:place] + other + data[place + length :]
    if changed == data:
        return
    with pytest.raises(Unfit):
        SnapshotConfig.from_json(changed, "x")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_another_encoding(encoding: str) -> None:
    with pytest.raises(Damaged):
        SnapshotConfig.from_json(TEXT.encode(encoding), "x")


@pytest.mark.parametrize("checksum", [0, "0", None, True, 1.0, [], -1, 1 << 40])
def test_a_wrong_checksum(checksum: Any) -> None:
    text = json.dumps({**DOCUMENT, "checksum": checksum}, indent=1, sort_keys=True) + "\n"
    with pytest.raises(Damaged, match="checksum"):
        SnapshotConfig.from_json(text, "x")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 5000])
def test_numbers_that_are_none(text: str) -> None:
    document = TEXT.replace("0.25", text)
    assert document != TEXT
    with pytest.raises(Damaged):
        SnapshotConfig.from_json(document, "x")


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_noise(noise: bytes | str) -> None:
    with pytest.raises(Damaged, match=r"/s/config\.json"):
        SnapshotConfig.from_json(noise, "/s/config.json")


@given(JSON)
def test_any_json(value: Any) -> None:
    with pytest.raises(Unfit):
        SnapshotConfig.from_json(json.dumps(value), "x")


@given(st.sampled_from(PLACES), JSON)
def test_another_value_anywhere(place: tuple[Any, ...], value: Any) -> None:
    """Either it is refused, or everything in it has the type that is declared."""
    try:
        config = read(with_value(place, value))
    except Unfit:
        return
    except ValueError:
        assert "nan" in repr(value) or "inf" in repr(value), "it could not even be signed"
        return
    again = json.loads(config.to_json())
    assert same_shape(again, DOCUMENT), (place, value)
    assert read(again) == config


def same_shape(one: Any, other: Any) -> bool:
    if isinstance(other, dict) and all(isinstance(k, str) for k in other):
        return isinstance(one, dict)
    return type(one) is type(other)


@pytest.mark.parametrize("name", sorted(DOCUMENT))
def test_a_missing_field_is_named(name: str) -> None:
    document = {key: value for key, value in DOCUMENT.items() if key != name}
    with pytest.raises(Unfit, match=name) as refused:
        read(document)
    assert refused.value.hint


@pytest.mark.parametrize("name", [field.name for field in fields(Origin)])
def test_a_missing_field_further_in(name: str) -> None:
    origin = {key: value for key, value in DOCUMENT["origin"].items() if key != name}
    with pytest.raises(Unfit, match=rf"origin: expected a field '{name}'"):
        read({**DOCUMENT, "origin": origin})


def test_devices() -> None:
    node = {"path": "/dev/a", "type": "c", "major": 195, "minor": 1, "mode": 438, "uid": 0}
    origin = {**DOCUMENT["origin"], "devices": [{**node, "gid": 44}]}
    config = read({**DOCUMENT, "origin": origin})
    assert config.origin.devices == [DeviceNode("/dev/a", "c", 195, 1, 0o666, 0, 44)]
    assert SnapshotConfig.from_json(config.to_json(), "x") == config
    with pytest.raises(Unfit, match="origin: devices: expected a field 'gid'"):
        read({**DOCUMENT, "origin": {**origin, "devices": [node]}})


def test_fields_of_a_later_version_are_passed_over() -> None:
    assert read({**DOCUMENT, "later": {"a": 1}}) == CONFIG


def test_a_document_that_knew_nothing_of_gpus() -> None:
    """Whatever else it says of them: what made it did not check it."""
    old = {key: value for key, value in DOCUMENT.items() if key not in ("gpu", "verified")}
    origin = {key: value for key, value in old["origin"].items() if key != "devices"}
    odd = {"gpu": {"a": 1}, "verified": 1, "origin": {**origin, "devices": [{"a": 1}]}}
    for document in ({**old, "origin": origin}, {**old, **odd}):
        config = read({**document, "format": 2})
        assert (config.format, config.gpu) == (2, CudaState())
        assert (config.origin.devices, config.verified) == ([], "")
        assert SnapshotConfig.from_json(config.to_json(), "x") == config


UUID = "GPU-" + "-".join(["0123abcd", "4567", "89ab", "cdef", "0123456789ab"])
OTHER = UUID.replace("0123", "ffff")
GPU = {
    "processes": [
        {"pid": 1, "staging": [], "regions": [], "left": {}, "reason": "it is small"},
        {
            "pid": 7,
            "staging": [{"address": 0, "length": 8192}],
            "regions": [{"id": 3, "size": 4 << 20, "device": 0, "gpu": UUID, "rdma": True}],
            "left": {"pool": 4096},
            "reason": "",
        },
    ],
    "uuids": [UUID, OTHER],
    "memory": {UUID: 1 << 30},
}


def test_what_was_on_gpus() -> None:
    state = read({**DOCUMENT, "gpu": GPU}).gpu
    assert state.pids == [1, 7]
    assert state.processes[1].staging == [Staging(0, 8192)]
    assert (state.uuids, state.memory) == ([UUID, OTHER], {UUID: 1 << 30})
    assert state.regions == [GpuRegion(3, 4 << 20, 0, UUID, rdma=True)]
    assert state.needed == {UUID: (1 << 30) + CONTEXT + (4 << 20)}
    assert [process.reason for process in state.processes] == ["it is small", ""]


def test_a_document_that_knew_nothing_of_regions() -> None:
    """All GPU memory was the driver's."""
    processes = [{"pid": 1, "staging": [], "regions": 7}, {"pid": 7, "staging": []}]
    config = read({**DOCUMENT, "format": 3, "gpu": {**GPU, "processes": processes}})
    assert config.gpu.processes == [CudaProcess(1), CudaProcess(7)]
    assert config.origin.library == ""
    assert SnapshotConfig.from_json(config.to_json(), "x") == config


@pytest.mark.parametrize("odd", [{}, [], {"processes": 1}, {"processes": [1]}])
def test_a_document_of_that_format_with_something_else_in_it(odd: Any) -> None:
    with pytest.raises(Damaged, match="gpu: "):
        read({**DOCUMENT, "format": 3, "gpu": odd})


def process(**changes: Any) -> dict[str, Any]:
    """A process with something else in it."""
    return {"pid": 1, "staging": [], "regions": [], "left": {}, "reason": "", **changes}


def with_staging(address: int, length: int) -> dict[str, Any]:
    return {"processes": [process(staging=[{"address": address, "length": length}])]}


def with_regions(*regions: tuple[int, int, int, str]) -> dict[str, Any]:
    names = ("id", "size", "device", "gpu")
    found = [dict(zip(names, region, strict=True)) for region in regions]
    return {"processes": [process(regions=found)]}


@pytest.mark.parametrize(
    "bad",
    [
        {"processes": [process(pid=7), process()]},
        {"processes": [process(pid=7), process(pid=7)]},
        {"processes": [process(pid=0)]},
        with_staging(1, 4096),
        with_staging(0, 4095),
        with_staging(-4096, 4096),
        with_staging(0, 0),
        with_regions((0, 2 << 20, 0, UUID)),
        with_regions((1, 0, 0, UUID)),
        with_regions((1, 1 << 20, 0, UUID)),
        with_regions((1, 2 << 20, -1, UUID)),
        with_regions((1, 2 << 20, 0, UUID.replace("0123", "eeee"))),
        with_regions((2, 2 << 20, 0, UUID), (1, 2 << 20, 0, UUID)),
        with_regions((1, 2 << 20, 0, UUID), (1, 2 << 20, 0, UUID)),
        with_regions((1, 1 << 62, 0, UUID), (2, 1 << 62, 0, UUID)),
        {"processes": [process(left={"pool": -1})]},
        {"uuids": [UUID, UUID]},
        {"uuids": [UUID.upper(), OTHER]},
        {"uuids": ["MIG-" + UUID[4:]], "memory": {}},
        {"uuids": [OTHER]},
        {"memory": {UUID: -1}},
    ],
)
def test_what_can_not_have_been_on_gpus(bad: dict[str, Any]) -> None:
    with pytest.raises(Damaged, match="gpu: "):
        read({**DOCUMENT, "gpu": {**GPU, **bad}})


@pytest.mark.parametrize(
    "format_", [FORMAT + 1, 1, 0, 2.0, str(FORMAT), None, True, float(FORMAT), []]
)
def test_another_format(format_: Any) -> None:
    with pytest.raises(Unfit, match=f"format .* is not {FORMAT}") as refused:
        read({**DOCUMENT, "format": format_})
    assert not isinstance(refused.value, Damaged)
    assert ("newer" in refused.value.hint) == (format_ == FORMAT + 1)


def test_a_newer_format_need_not_have_our_checksum() -> None:
    with pytest.raises(Unfit, match="format 5 is not 4"):
        SnapshotConfig.from_json('{"format": 5}', "x")


@pytest.mark.parametrize(
    ("place", "value", "wanted"),
    [
        (("origin", "user", 0), True, "expected int, found True"),
        (("origin", "user", 0), 1.0, "expected int"),
        (("origin", "args"), "python3 serve.py", "expected a list"),
        (("origin", "capabilities"), [], "expected an object"),
        (("mounts", 0, "options", 0), None, "expected str"),
        (("difference",), 1, "expected bool"),
        (("files", "rootfs.tar.0000"), 4, "expected an object"),
        (("pages", "pages-1.img.0000"), "4", "expected int"),
        (("spans", 0, "seconds"), "0.25", "expected float"),
        (("origin", "cwd"), "\ud800", "expected str"),
        (("host", "cgroup"), 1 << 63, "expected int"),
        pytest.param(("spans", 0, "seconds"), 10**400, "seconds", id="huge"),
    ],
)
def test_a_wrong_type_is_named(place: tuple[Any, ...], value: Any, wanted: str) -> None:
    with pytest.raises(Unfit, match=wanted):
        read(with_value(place, value))


def test_whole_seconds_are_seconds() -> None:
    assert read(with_value(("spans", 0, "seconds"), 2)).spans[0].seconds == 2.0


BAD_FILES = [
    *("", ".", "..", "/", "criu", "criu/", "criu/..", "criu/../x", "/criu/x.img", "criu//x.img"),
    *("criu/.hidden", "criu/x/y.img", "criu/x.img\n", "criu/x\0.img", "Criu/x.img", "etc/passwd"),
    *(
        "rootfs.tar",
        "rootfs.tar.1",
        "rootfs.tar.00000",
        "rootfs.tar.000\u0660",
        "../rootfs.tar.0000",
    ),
    *("volumes/0.tar", "volumes/../0.tar.0000", "volumes/00.tar.0000", "volumes/x.tar.0000"),
    *("config.json", "log/dump.log", "pages/pages-1.img.0000", "names/one", "criu/" + "x" * 94),
    *("blobs/sha256/aa", "shared", "index.json", "oci-layout"),
]


@pytest.mark.parametrize("name", BAD_FILES)
def test_names_of_files_that_lead_elsewhere(name: str) -> None:
    with pytest.raises(Damaged, match="files: bad name"):
        read(replace_in("files", {name: {"size": 1, "crc32c": 1}}))


@pytest.mark.parametrize(
    "name", [*BAD_FILES[:30], "pages-1.img.1", "pages-0.img.0000", "pages-x.img.0000", "pages-1"]
)
def test_names_of_pieces_that_lead_elsewhere(name: str) -> None:
    with pytest.raises(Damaged, match="pages: bad name"):
        read(replace_in("pages", {name: 4096}))


def replace_in(field: str, value: Any) -> dict[str, Any]:
    return {**DOCUMENT, field: value}


def test_names_of_files_that_are_good() -> None:
    names = ["criu/core-1.img", "criu/descriptors.json", "index/extents", "volumes/17.tar.0003"]
    names += ["rootfs.tar.0012", "criu/" + "x" * 93]
    made = replace(CONFIG, files={name: file_of(b"x") for name in names}, pages={"pages-7.img": 1})
    assert SnapshotConfig.from_json(made.to_json(), "x") == made


@pytest.mark.parametrize(("size", "crc"), [(-1, 1), (1, -1), (1, 1 << 32)])
def test_sizes_and_checksums_that_can_be_none(size: int, crc: int) -> None:
    with pytest.raises(Damaged, match=r"bad size or checksum of rootfs\.tar\.0000"):
        read(replace_in("files", {"rootfs.tar.0000": {"size": size, "crc32c": crc}}))
    if size < 0:
        with pytest.raises(Damaged, match="pages"):
            read(replace_in("pages", {"pages-1.img.0000": size}))


def test_no_value_of_the_environment_is_written() -> None:
    assert DOCUMENT["origin"]["env"] == ["HOME", "TOKEN"]


def test_numbers_are_finite() -> None:
    with pytest.raises(ValueError, match="JSON"):
        replace(CONFIG, spans=[replace(CONFIG.spans[0], seconds=math.inf)]).to_json()


def test_nesting_without_end() -> None:
    with pytest.raises(Unfit):
        SnapshotConfig.from_json("[" * 100_000, "x")


@pytest.mark.parametrize("place", [("format",), ("created",), ("origin", "mounts", 0, "options")])
def test_nesting_that_can_be_read_but_not_be_shown(place: tuple[Any, ...]) -> None:
    before, after = json.dumps(with_value(place, ["@"])).split('"@"')
    for depth in range(800, 1000):
        with pytest.raises(Unfit):
            SnapshotConfig.from_json(f"{before}{'[' * depth}{']' * depth}{after}", "x")


def test_a_long_value_does_not_flood_the_log() -> None:
    with pytest.raises(Unfit) as refused:
        read(with_value(("origin", "user"), "x" * 10_000))
    assert len(refused.value.message) < 300
