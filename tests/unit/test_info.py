from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fakes.pod import FAKES
from fakes.settled import PATIENCE

from shim import __version__
from shim.info import FEATURES
from shim.proto import runc_pb, runtimeoptions_pb
from shim.proto.introspection_pb import RuntimeInfo
from shim.proto.known import Any, pack

SHIM = "import sys; from shim import bootstrap; sys.exit(bootstrap.main(sys.argv[1:]))"


def info(stdin: bytes, cwd: Path) -> RuntimeInfo:
    done = subprocess.run(
        [sys.executable, "-c", SHIM, "-info"],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stderr == b""
    return RuntimeInfo.decode(done.stdout)


@pytest.mark.parametrize("generic", [True, False])
def test_what_this_runtime_is(tmp_path: Path, generic: bool) -> None:
    binary = str(FAKES / "runc.py")
    options = pack(
        runtimeoptions_pb.Options(config_body=f'BinaryName = "{binary}"'.encode())
        if generic
        else runc_pb.Options(binary_name=binary)
    )
    found = info(options.encode(), tmp_path)
    assert found.name == "io.containerd.thaw.v1"
    assert found.version is not None
    assert found.version.version == __version__
    assert found.options == options
    assert found.features == Any(type_url=FEATURES, value=b'{"ociVersionMin": "1.0.0"}')


def test_a_runtime_without_features(tmp_path: Path) -> None:
    found = info(pack(runc_pb.Options(binary_name="false")).encode(), tmp_path)
    assert found.features is None


def test_a_runtime_that_is_not_there(tmp_path: Path) -> None:
    """CRI asks at its start; a node must come up all the same."""
    found = info(pack(runc_pb.Options(binary_name="/no/runc")).encode(), tmp_path)
    assert found.name == "io.containerd.thaw.v1"
    assert found.features is None


def test_without_options(tmp_path: Path) -> None:
    assert info(b"", tmp_path).options is None
