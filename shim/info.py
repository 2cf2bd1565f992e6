"""`-info`: what this runtime can do, for CRI's start-up (containerd 2.0 on)."""

from __future__ import annotations

import sys

from shim import __version__, spawn
from shim.proto.introspection_pb import RuntimeInfo, RuntimeVersion
from shim.proto.known import Any
from shim.runc import Runc
from shim.task.options import configuration

FEATURES = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def print_info() -> int:
    """Write a RuntimeInfo to stdout; options may stand on stdin as an Any."""
    stdin = sys.stdin.buffer.read()
    options = Any.decode(stdin) if stdin else None
    config = configuration(options)
    runc = Runc(config, "default", "", "/dev/null", spawn.run)
    features = runc.features()
    info = RuntimeInfo(
        name="io.containerd.thaw.v1",
        version=RuntimeVersion(version=__version__),
        options=options,
        # Without them CRI denies pods recursive read-only mounts and user namespaces.
        features=Any(type_url=FEATURES, value=features) if features else None,
    )
    sys.stdout.buffer.write(info.encode())
    sys.stdout.flush()
    return 0
