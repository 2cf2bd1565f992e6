from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import InvalidArgument
from shim.proto.bootstrap_pb import BootstrapParams
from shim.proto.known_pb import Any, Empty, Timestamp
from shim.proto.task_pb import (
    CreateTaskRequest,
    DeleteResponse,
    Mount,
    PidsResponse,
    UpdateTaskRequest,
)
from shim.proto.wire import (
    BOOL,
    DOUBLE,
    ENUM,
    FIXED32,
    FIXED64,
    FLOAT,
    INT32,
    INT64,
    REPEATED,
    SFIXED32,
    SFIXED64,
    SINT32,
    SINT64,
    UINT32,
    UINT64,
    Message,
    WireError,
)

KINDS = {
    DOUBLE: (st.floats(allow_nan=False), "d"),
    FLOAT: (st.floats(width=32, allow_nan=False), "f"),
    INT64: (st.integers(-(1 << 63), (1 << 63) - 1), "i64"),
    UINT64: (st.integers(0, (1 << 64) - 1), "u64"),
    INT32: (st.integers(-(1 << 31), (1 << 31) - 1), "i32"),
    FIXED64: (st.integers(0, (1 << 64) - 1), "x64"),
    FIXED32: (st.integers(0, (1 << 32) - 1), "x32"),
    BOOL: (st.booleans(), "b"),
    UINT32: (st.integers(0, (1 << 32) - 1), "u32"),
    ENUM: (st.integers(-(1 << 31), (1 << 31) - 1), "e"),
    SFIXED32: (st.integers(-(1 << 31), (1 << 31) - 1), "sx32"),
    SFIXED64: (st.integers(-(1 << 63), (1 << 63) - 1), "sx64"),
    SINT32: (st.integers(-(1 << 31), (1 << 31) - 1), "z32"),
    SINT64: (st.integers(-(1 << 63), (1 << 63) - 1), "z64"),
}


class Numbers(Message):
    """Every scalar kind, once alone and once repeated."""

    __slots__ = tuple(name for _, name in KINDS.values()) + tuple(
        f"many_{name}" for _, name in KINDS.values()
    )
    TYPE = "test.Numbers"
    FIELDS = tuple((kind, name, kind, None) for kind, (_, name) in KINDS.items()) + tuple(
        (kind + 100, f"many_{name}", kind | REPEATED, None) for kind, (_, name) in KINDS.items()
    )

    def __init__(self, **values: object) -> None:
        for _, name, kind, _ in self.FIELDS:
            default: object = [] if kind & REPEATED else 0
            setattr(self, name, values.get(name, default))


numbers = st.fixed_dictionaries(
    {},
    optional={name: values for values, name in KINDS.values()}
    | {f"many_{name}": st.lists(values, max_size=5) for values, name in KINDS.values()},
).map(lambda values: Numbers(**values))


@given(numbers)
def test_numbers_survive_the_wire(message: Numbers) -> None:
    assert Numbers.decode(message.encode()) == message


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        (b"\x08\x00", 0),
        (b"\x08\x7f", 127),
        (b"\x08\x80\x01", 128),
        (b"\x08\x81\x80\x00", 1),  # longer than it need be
        (b"\x08" + b"\xff" * 9 + b"\x01", -1),
    ],
)
def test_varints(data: bytes, seconds: int) -> None:
    assert Timestamp.decode(data).seconds == seconds


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",  # no value
        b"\x08\x80",  # half a value
        b"\x80",  # half a tag
        b"\x08" + b"\xff" * 9 + b"\x02",  # 65 bits
        b"\x08" + b"\x80" * 10 + b"\x01",  # eleven bytes
        b"\x00\x00",  # field 0
        b"\xf8\xff\xff\xff\xff\xff\xff\xff\x7f\x00",  # field 2^60
        b"\x1a\x05abc",  # an unknown block that is cut off
        b"\x19\x00\x00",  # an unknown eight bytes that are cut off
        b"\x1d\x00\x00",  # an unknown four bytes that are cut off
        b"\x1e",  # wire type 6
        b"\x1f",  # wire type 7
        b"\x1c",  # a group ends that never began
        b"\x1b",  # a group that never ends
        b"\x1b\x24",  # a group that ends as another
        b"\x1b" * 1000,  # groups without end
    ],
)
def test_malformed_messages_are_refused(data: bytes) -> None:
    with pytest.raises(WireError, match=r"^google\.protobuf\.Timestamp: "):
        Timestamp.decode(data)


def test_a_wire_error_is_an_invalid_argument() -> None:
    assert issubclass(WireError, InvalidArgument)


def test_text_must_be_utf8() -> None:
    with pytest.raises(WireError, match="not UTF-8"):
        Any.decode(b"\x0a\x01\xff")
    with pytest.raises(WireError, match=r"google\.protobuf\.Any\.type_url: .* not valid text"):
        Any(type_url="/\udcff").encode()


def test_an_error_in_a_part_names_the_way_to_it() -> None:
    request = CreateTaskRequest(rootfs=[Mount(source="/\udcff")])
    with pytest.raises(WireError, match=r"CreateTaskRequest\.rootfs: .*Mount\.source: "):
        request.encode()


@pytest.mark.parametrize("pid", [-1, 1 << 32])
def test_numbers_out_of_range_are_refused(pid: int) -> None:
    with pytest.raises(WireError, match="does not fit 32 bits"):
        DeleteResponse(pid=pid).encode()


@pytest.mark.parametrize("name", ["x32", "sx64", "f"])
def test_fixed_numbers_out_of_range_are_refused(name: str) -> None:
    value = 1e300 if name == "f" else 1 << 70
    with pytest.raises(WireError, match="does not fit"):
        Numbers(**{name: value}).encode()


def test_numbers_too_wide_for_their_field_are_cut_as_protobuf_does() -> None:
    assert DeleteResponse.decode(b"\x08\x81\x80\x80\x80\x10").pid == 1
    assert Timestamp.decode(b"\x10\xff\xff\xff\xff\x0f").nanos == -1


def test_defaults_are_not_written() -> None:
    assert DeleteResponse(pid=0, exit_status=0).encode() == b""
    assert Empty().encode() == b""


def test_negative_zero_is_no_default() -> None:
    data = Numbers(d=-0.0, f=-0.0).encode()
    assert len(data) == 1 + 8 + 1 + 4
    assert str(Numbers.decode(data).d) == "-0.0"  # type: ignore[attr-defined]


def test_an_empty_part_is_not_an_absent_one() -> None:
    assert DeleteResponse.decode(DeleteResponse().encode()).exited_at is None
    empty = DeleteResponse(exited_at=Timestamp())
    assert empty.encode() == b"\x1a\x00"
    assert DeleteResponse.decode(empty.encode()).exited_at == Timestamp()


def test_an_optional_scalar_is_absent_or_has_a_value() -> None:
    assert BootstrapParams().socket_dir is None
    assert BootstrapParams(socket_dir="").encode() == b"\x4a\x00"
    assert BootstrapParams.decode(b"\x4a\x00").socket_dir == ""


def test_unknown_fields_are_skipped() -> None:
    unknown = b"\x98\x06\x05" + b"\x9a\x06\x03abc" + b"\x99\x06" + b"8" * 8 + b"\x9d\x06" + b"4444"
    group = b"\x9b\x06" + unknown + b"\x9b\x06\x9c\x06" + b"\x9c\x06"
    assert Timestamp.decode(unknown + b"\x08\x07" + group) == Timestamp(seconds=7)


def test_a_field_of_another_wire_type_is_unknown() -> None:
    assert Timestamp.decode(b"\x0a\x01\x07\x10\x05") == Timestamp(nanos=5)


def test_repeated_numbers_are_read_packed_or_not() -> None:
    packed = Numbers(many_u32=[1, 300]).encode()
    loose = b"\x88\x07\x01\x88\x07\xac\x02"
    assert packed == b"\x8a\x07\x03\x01\xac\x02"
    assert Numbers.decode(loose) == Numbers.decode(packed)
    assert Numbers.decode(loose + packed).many_u32 == [1, 300] * 2  # type: ignore[attr-defined]


def test_a_packed_number_must_not_leave_its_block() -> None:
    with pytest.raises(WireError, match="cut off"):
        Numbers.decode(b"\x8a\x07\x01\x80\x01")


def test_a_part_that_comes_twice_is_merged() -> None:
    first = DeleteResponse(exited_at=Timestamp(seconds=1, nanos=1))
    second = DeleteResponse(exited_at=Timestamp(nanos=2))
    merged = DeleteResponse.decode(first.encode() + second.encode())
    assert merged.exited_at == Timestamp(seconds=1, nanos=2)


def test_maps() -> None:
    request = UpdateTaskRequest(annotations={"a": "1", "": "", "é": "\0"})
    assert UpdateTaskRequest.decode(request.encode()) == request
    # An entry may lack either half, and the last of a key counts.
    assert UpdateTaskRequest.decode(b"\x1a\x00").annotations == {"": ""}
    again = UpdateTaskRequest(annotations={"a": "1"}).encode()
    again += UpdateTaskRequest(annotations={"a": "2"}).encode()
    assert UpdateTaskRequest.decode(again).annotations == {"a": "2"}


def test_messages_do_not_share_their_lists() -> None:
    PidsResponse().processes.append(None)  # type: ignore[arg-type]
    assert PidsResponse().processes == []
    options = ["ro"]
    Mount(options=options).options.append("rw")
    assert options == ["ro"]


def test_equality_needs_the_same_type() -> None:
    assert Timestamp(seconds=1) == Timestamp(seconds=1)
    assert Timestamp(seconds=1) != Timestamp(seconds=2)
    assert Timestamp() != Empty()
    with pytest.raises(TypeError, match="unhashable"):
        hash(Timestamp())


def test_repr_shows_what_is_set_and_hides_long_bytes() -> None:
    assert repr(Timestamp(nanos=3)) == "Timestamp(nanos=3)"
    assert repr(Any(type_url="x", value=b"s" * 33)) == "Any(type_url='x', value=<33 bytes>)"


def test_any_buffer_can_be_decoded() -> None:
    for buffer in (bytes, bytearray, memoryview):
        assert Timestamp.decode(buffer(b"\x08\x07")) == Timestamp(seconds=7)
