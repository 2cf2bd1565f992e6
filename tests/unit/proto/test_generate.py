"""The generated modules are up to date, and agree with real protobuf on every message."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
pytest.importorskip("grpc_tools")

from google.protobuf import descriptor_pool, message, message_factory  # noqa: E402

from shim.proto import generate, wire  # noqa: E402

SET = generate.descriptors()
FACTORY = message_factory.GetMessageClassesForFiles
POOL = descriptor_pool.DescriptorPool()
for file in SET.file:
    POOL.Add(file)
THEIRS = FACTORY([file.name for file in SET.file], POOL)


def our_classes() -> dict[str, type[wire.Message]]:
    return {
        cls.TYPE: cls
        for name in generate.MODULES
        for cls in vars(importlib.import_module(f"shim.proto.{name}")).values()
        if isinstance(cls, type) and issubclass(cls, wire.Message) and cls.TYPE
    }


OURS = our_classes()
TYPES = sorted(OURS)
INTEGERS = {
    wire.INT64: (-(1 << 63), (1 << 63) - 1),
    wire.UINT64: (0, (1 << 64) - 1),
    wire.INT32: (-(1 << 31), (1 << 31) - 1),
    wire.UINT32: (0, (1 << 32) - 1),
    wire.ENUM: (-(1 << 31), (1 << 31) - 1),
    wire.SINT32: (-(1 << 31), (1 << 31) - 1),
}
PARTS = {child.TYPE for cls in OURS.values() for _, _, _, child in cls.FIELDS if child is not None}


def test_the_modules_are_up_to_date(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["generate", "--check"])
    assert generate.main() == 0, capsys.readouterr().out


def test_a_stale_module_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["generate", "--check"])
    monkeypatch.setattr(generate, "modules", lambda: {"known_pb.py": "old"})
    assert generate.main() == 1
    assert capsys.readouterr().out == "known_pb.py is out of date\n"


def test_every_proto_file_belongs_to_a_module() -> None:
    listed = {name for names in generate.MODULES.values() for name in names}
    assert listed == {path.name for path in generate.HERE.glob("*.proto")}


def test_every_message_has_a_class() -> None:
    names = {f"{file.package}.{message.name}" for file in SET.file for message in file.message_type}
    assert set(OURS) == names


def test_constants_are_those_of_the_enums() -> None:
    for module, names in generate.MODULES.items():
        ours = importlib.import_module(f"shim.proto.{module}")
        for file in SET.file:
            for enum in file.enum_type if file.name in names else ():
                for value in enum.value:
                    assert getattr(ours, value.name) == value.number


def single(kind: int, child: type[wire.Message] | None) -> st.SearchStrategy[Any]:
    if child is not None:
        return messages(child)
    if kind in INTEGERS:
        low, high = INTEGERS[kind]
        return st.integers(low, high) | st.integers(max(low, -2), 300)
    return {
        wire.DOUBLE: st.floats(allow_nan=False),
        wire.BOOL: st.booleans(),
        wire.STRING: st.text(max_size=20),
        wire.BYTES: st.binary(max_size=20),
    }[kind]


def messages(cls: type[wire.Message]) -> st.SearchStrategy[Any]:
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for _, name, kind, child in cls.FIELDS:
        if kind == wire.MAP:
            fields[name] = st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3)
        elif kind & wire.REPEATED:
            fields[name] = st.lists(single(kind & 31, child), max_size=3)
        else:
            fields[name] = single(kind & 31, child)
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: cls(**values))


def to_theirs(ours: wire.Message) -> message.Message:
    theirs = THEIRS[ours.TYPE]()
    for _, name, kind, _ in ours.FIELDS:
        value = getattr(ours, name)
        if kind == wire.MAP:
            getattr(theirs, name).update(value)
        elif kind == wire.MESSAGE | wire.REPEATED:
            getattr(theirs, name).extend([to_theirs(item) for item in value])
        elif kind & wire.REPEATED:
            getattr(theirs, name).extend(value)
        elif kind == wire.MESSAGE and value is not None:
            getattr(theirs, name).CopyFrom(to_theirs(value))
        elif kind != wire.MESSAGE and value is not None:
            setattr(theirs, name, value)
    return theirs


# Parts are read and written as parts of others.
@pytest.mark.parametrize("name", sorted(OURS.keys() - PARTS))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_protobuf_reads_and_writes_the_same(name: str, data: st.DataObject) -> None:
    ours = data.draw(messages(OURS[name]))
    theirs = to_theirs(ours)
    assert THEIRS[name].FromString(ours.encode()) == theirs
    assert OURS[name].decode(theirs.SerializeToString()) == ours


def agree(name: str, data: bytes) -> None:
    """Both read the same from `data`, or neither reads anything."""
    try:
        theirs = THEIRS[name].FromString(data)
    except message.DecodeError:
        with pytest.raises(wire.WireError):
            OURS[name].decode(data)
        return
    theirs.DiscardUnknownFields()
    try:
        ours = OURS[name].decode(data)
    except wire.WireError as error:
        # Python's protobuf drops bits beyond the 64th. Go's, containerd's, refuses: so do we.
        if "exceeds 64 bits" not in error.message:
            raise
        return
    assert THEIRS[name].FromString(ours.encode()) == theirs


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(TYPES), st.binary(max_size=60))
def test_noise_is_read_as_protobuf_reads_it(name: str, data: bytes) -> None:
    agree(name, data)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_messages_are_read_as_protobuf_reads_them(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(TYPES))
    good = bytearray(data.draw(messages(OURS[name])).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        if good:
            place = data.draw(st.integers(0, len(good) - 1))
            good[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    agree(name, bytes(good))
