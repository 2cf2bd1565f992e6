"""What containerd 2.3.4 really says; see tests/data/bootstrap-2.3/README.md."""

from __future__ import annotations

from pathlib import Path

from shim.proto.bootstrap_pb import BootstrapParams, BootstrapResult
from shim.proto.known import Timestamp, unpack
from shim.proto.runc_pb import Options
from shim.proto.task_pb import DeleteResponse

DATA = Path(__file__).parents[2] / "data" / "bootstrap-2.3"


def test_start_stdin() -> None:
    data = (DATA / "start.stdin.bin").read_bytes()
    params = BootstrapParams.decode(data)
    assert (params.instance_id, params.namespace) == ("demo1", "default")
    assert params.containerd_version == "v2.3.4"
    assert params.containerd_ttrpc_address == "/run/containerd/containerd.sock.ttrpc"
    assert params.containerd_grpc_address == "/run/containerd/containerd.sock"
    assert params.containerd_binary == "/usr/local/bin/containerd"
    assert params.socket_dir == "/run/containerd/s"
    (extension,) = params.extensions
    assert unpack(extension.value, Options) == Options()
    assert params.encode() == data


def test_start_stdout() -> None:
    data = (DATA / "start.stdout.bin").read_bytes()
    result = BootstrapResult.decode(data)
    assert (result.version, result.protocol) == (3, "ttrpc")
    assert result.address.startswith("unix:///run/containerd/s/")
    assert result.encode() == data


def test_delete_stdout() -> None:
    data = (DATA / "delete.stdout.bin").read_bytes()
    moment = Timestamp(seconds=1_795_217_461, nanos=141_950_673)
    expected = DeleteResponse(pid=8840, exit_status=137, exited_at=moment)
    assert DeleteResponse.decode(data) == expected
    assert expected.encode() == data
