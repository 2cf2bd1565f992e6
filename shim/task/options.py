"""What containerd's runtime options say, whichever of its two messages they come in.

The type is checked before anything is decoded: field 3 is a TOML body in one message and a cgroup
path in the other (containerd/rust-extensions#366). What was understood is kept in the bundle,
because `delete` gets no options.
"""

from __future__ import annotations

from shim.bundle import Bundle, write_atomically
from shim.config import Config, load
from shim.errors import InvalidArgument
from shim.lean import jsons
from shim.proto.known import type_name, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.proto.known_pb import Any

RUNC = "containerd.runc.v1.Options"
GENERIC = "runtimeoptions.v1.Options"

# attribute of containerd.runc.v1.Options → key of our configuration
_RUNC_KEYS = {
    "binary_name": "BinaryName",
    "root": "Root",
    "systemd_cgroup": "SystemdCgroup",
    "no_pivot_root": "NoPivotRoot",
    "no_new_keyring": "NoNewKeyring",
    "shim_cgroup": "ShimCgroup",
    "io_uid": "IoUid",
    "io_gid": "IoGid",
}


def configuration(options: Any | None) -> Config:
    """The configuration in force for a container created with these options.

    Raises InvalidArgument for options of another runtime, BadConfiguration for a bad file.
    """
    name = type_name(options)
    if name == GENERIC:
        from shim.proto import runtimeoptions_pb

        generic = unpack(options, runtimeoptions_pb.Options)
        return load(generic.config_path, generic.config_body)
    if name == RUNC:
        from shim.proto import runc_pb

        return load().overridden(_set(unpack(options, runc_pb.Options)))
    if name:
        raise InvalidArgument(
            f"runtime options of type {name}", hint=f"they must be {GENERIC} or {RUNC}"
        )
    return load()


def _set(options: object) -> dict[str, str | int | bool]:
    """The runc options that differ from their zero value."""
    pairs = ((key, getattr(options, field, None)) for field, key in _RUNC_KEYS.items())
    return {key: value for key, value in pairs if value}


def keep(bundle: Bundle, config: Config) -> None:
    """Write the configuration into the bundle, for `delete` and for people."""
    write_atomically(bundle.options, jsons.dumps(config.as_dict()))
    write_atomically(bundle.runtime, config.text("BinaryName").encode())


def kept(bundle: Bundle) -> Config:
    """The configuration that a container was created with, or the one in force now."""
    try:
        with open(bundle.options, "rb") as file:
            return Config(jsons.loads(file.read()), bundle.options)
    except (OSError, ValueError):
        return load()
