from __future__ import annotations

import time

import pytest

from shim.proto import runc_pb, runtimeoptions_pb
from shim.proto.known import (
    Any,
    Timestamp,
    nanoseconds,
    now,
    pack,
    timestamp,
    type_name,
    unpack,
)
from shim.proto.wire import WireError


def test_an_any_carries_the_bare_name() -> None:
    packed = pack(runc_pb.Options(binary_name="crun"))
    assert packed.type_url == "containerd.runc.v1.Options"
    assert unpack(packed, runc_pb.Options).binary_name == "crun"


def test_a_url_before_the_name_does_not_matter() -> None:
    packed = Any(type_url="type.googleapis.com/containerd.runc.v1.Options")
    assert type_name(packed) == runc_pb.Options.TYPE
    assert unpack(packed, runc_pb.Options) == runc_pb.Options()


def test_the_type_is_checked_before_the_bytes_are_read() -> None:
    # Both have a field 3; a TOML body is no cgroup.
    packed = pack(runtimeoptions_pb.Options(config_body=b"Root = '/'"))
    with pytest.raises(WireError, match=r"containerd\.runc\.v1\.Options, not runtimeoptions"):
        unpack(packed, runc_pb.Options)


def test_nothing_is_no_message() -> None:
    assert type_name(None) == ""
    with pytest.raises(WireError, match="not nothing"):
        unpack(None, runc_pb.Options)


@pytest.mark.parametrize("ns", [0, 1, 1_795_217_461_141_950_673, -1])
def test_times(ns: int) -> None:
    moment = timestamp(ns)
    assert 0 <= moment.nanos < 1_000_000_000
    assert nanoseconds(moment) == ns


def test_now_is_now() -> None:
    before = time.time_ns()
    assert before <= nanoseconds(now()) <= time.time_ns()
    assert isinstance(now(), Timestamp)
