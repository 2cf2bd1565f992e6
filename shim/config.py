"""The operator's configuration: one table, from which the parser and the README's section come.

It is found in this order: TOML in the runtime option `config_body`, the file named by the runtime
option `ConfigPath`, `/etc/thaw/config.toml`, the defaults. containerd's own runc options, if it
sends those instead, override the runc keys. Pods have no say in any of it.
"""

from __future__ import annotations

import os

from shim.errors import BadConfiguration
from shim.lean import tomls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    Value = str | int | float | bool

DEFAULT_PATH = "/etc/thaw/config.toml"


class Key:
    """One configuration key."""

    __slots__ = ("default", "name", "sentence", "type")

    def __init__(self, name: str, type: type, default: Value, sentence: str) -> None:
        self.name = name
        self.type = type
        self.default = default
        self.sentence = sentence


TABLE = (
    Key("state", str, "/run/thaw", "Folder for what lives as long as a container (on a tmpfs)."),
    Key(
        "snapshots",
        str,
        "/var/lib/thaw/snapshots",
        "Stores: folders of snapshots, root's alone, looked through in turn; with `:` between "
        "them. New snapshots go to the first.",
    ),
    Key(
        "stripes",
        str,
        "",
        "More folders, on other disks, over which the pages of new snapshots are spread; with `:` "
        "between them.",
    ),
    Key("criu", str, "", "The criu program; empty: `criu` in PATH. Needs 4.2 or newer."),
    Key("restore.deadline", float, 60.0, "Seconds a restore may take before the cold boot."),
    Key(
        "restore.engine",
        str,
        "native",
        "native: bulk memory is filled in parallel; criu: by CRIU alone, as without an index.",
    ),
    Key("restore.threads", int, 0, "Threads that fill memory; 0: one per processor."),
    Key(
        "restore.memory",
        float,
        4.0,
        "GiB for what is read ahead for a pod, at most half of what is free; 0: nothing.",
    ),
    Key(
        "checkpoint.engine",
        str,
        "native",
        "native: bulk memory is saved in parallel; criu: by CRIU alone.",
    ),
    Key(
        "checkpoint.memory",
        float,
        4.0,
        "GiB of a container's memory, that on GPUs included, that may wait for the disk when it "
        "runs on; half of what is free at most.",
    ),
    Key(
        "checkpoint.verify",
        str,
        "none",
        "restore: a snapshot is restored once beside its original before it is published, where "
        "there is room; none: it is not.",
    ),
    Key("gpu.library", str, "libcuda.so.1", "The NVIDIA driver's library: its name, or a path."),
    Key(
        "gpu.memory",
        str,
        "library",
        "library: one of ours is loaded into programs in containers with a GPU, so that their GPU "
        "memory is moved by us (with several GPUs: if the pod asks for it); driver: the driver "
        "moves all of it, and pods have no say.",
    ),
    Key(
        "gpu.preloaded",
        str,
        "/var/lib/thaw/libraries",
        "Folder for each version of that library that a container here was given: its snapshots "
        "need the very same.",
    ),
    Key("gpu.lock", float, 10.0, "Seconds within which a worker's CUDA calls must come to rest."),
    Key(
        "gpu.limit",
        float,
        300.0,
        "Seconds that the NVIDIA driver may take over one process; one that takes longer is lost, "
        "and its container is ended.",
    ),
    Key(
        "gpu.pages",
        str,
        "huge",
        "huge: a GPU worker's memory that the driver copies back to the GPU comes back in huge "
        "pages; small: in those of 4 KiB.",
    ),
    Key(
        "gpu.storage",
        str,
        "auto",
        "auto: GPU memory comes by GPUDirect Storage where nvidia-fs is loaded, cuFile takes the "
        "files, and at most half of them is in the page cache; ring: never; cufile: also in "
        "cuFile's compatibility mode, to try it.",
    ),
    Key(
        "gpu.begin",
        str,
        "sandbox",
        "When a restore takes memory of GPUs. sandbox: as soon as a pod's sandbox is there, on a "
        "node with no other GPUs than the snapshot needs, and nobody on them; container: not "
        "before a container has been given them.",
    ),
    Key(
        "gpu.wait",
        float,
        10.0,
        "Seconds to wait for free GPU memory before a restore: who had it may just be exiting.",
    ),
    Key(
        "cache.size",
        float,
        0.0,
        "GiB of memory in which the node keeps what snapshots have of GPU memory; 0: none.",
    ),
    Key("retention.size", float, 0.0, "GiB that the snapshots of a store may take; 0: no limit."),
    Key(
        "retention.age",
        float,
        0.0,
        "Days after which a snapshot that nobody restored is removed; 0: never.",
    ),
    Key(
        "policy.namespaces",
        str,
        "own",
        "own: pods restore snapshots made in their own Kubernetes namespace, or marked shared; "
        "any: of any.",
    ),
    Key(
        "policy.auto",
        str,
        "",
        "Kubernetes namespaces whose pods may have snapshots made by `auto`, with spaces between "
        "them; `*`: all.",
    ),
    Key(
        "policy.checkpoint",
        str,
        "",
        "Kubernetes namespaces whose pods may have snapshots made under names that they choose, "
        "by `thaw.dev/checkpoint`, with spaces between them; `*`: all.",
    ),
    Key(
        "audit.log",
        str,
        "/var/log/thaw/audit.log",
        "File that gets a line for each snapshot made, restored, refused or removed; empty: none.",
    ),
    Key(
        "registry.allow",
        str,
        "",
        "What pods may have pulled: prefixes of REGISTRY/REPOSITORY, with spaces between them.",
    ),
    Key(
        "registry.auth",
        str,
        "/etc/thaw/registry.json",
        "Credentials for registries, in the form of docker's config.json; root's alone.",
    ),
    Key(
        "registry.plain_http",
        str,
        "",
        "Registries that are asked without TLS, as HOST[:PORT], with spaces between them.",
    ),
    Key("registry.transfers", int, 4, "Blobs that are sent or fetched at the same time."),
    Key(
        "network.hook",
        str,
        "thaw-hook-network",
        "The OCI hook that is run after a restore, in the pod's network: a program beside `thaw`, "
        "or a path; empty: none.",
    ),
    Key("network.timeout", float, 5.0, "Seconds that the hook may take."),
    Key("log.level", str, "info", "debug, info, warning or error."),
    Key("BinaryName", str, "runc", "The OCI runtime: runc, or one that is called like it."),
    Key("Root", str, "/run/containerd/runc", "The runtime's state; the namespace is added."),
    Key("SystemdCgroup", bool, False, "Cgroups are made by systemd."),
    Key("NoPivotRoot", bool, False, "Do not pivot_root (a root file system on a ramdisk)."),
    Key("NoNewKeyring", bool, False, "Do not make a session keyring for the container."),
    Key("ShimCgroup", str, "", "Cgroup for the shim itself."),
    Key("IoUid", int, 0, "Owner of the container's stdio pipes."),
    Key("IoGid", int, 0, "Group of the container's stdio pipes."),
)

# What the values of some keys can be: one of some words, or a number within limits.
WORDS = {
    "log.level": ("debug", "info", "warning", "error"),
    "restore.engine": ("native", "criu"),
    "checkpoint.engine": ("native", "criu"),
    "checkpoint.verify": ("none", "restore"),
    "gpu.pages": ("huge", "small"),
    "gpu.memory": ("library", "driver"),
    "gpu.storage": ("auto", "ring", "cufile"),
    "gpu.begin": ("sandbox", "container"),
    "policy.namespaces": ("own", "any"),
}
LIMITS = {
    "restore.deadline": (0.001, 86400.0),
    "restore.threads": (0.0, 1024.0),
    "restore.memory": (0.0, 1048576.0),
    "checkpoint.memory": (0.0, 1048576.0),
    "gpu.lock": (0.001, 86400.0),
    "gpu.limit": (0.001, 86400.0),
    "gpu.wait": (0.0, 86400.0),
    "cache.size": (0.0, 1048576.0),
    "retention.size": (0.0, 1048576.0),
    "retention.age": (0.0, 36500.0),
    "registry.transfers": (1.0, 65.0),
    "network.timeout": (0.001, 3600.0),
}
FOLDERS = ("state", "snapshots", "stripes", "gpu.preloaded")  # absolute paths, some of them several
_SEVERAL = ("snapshots", "stripes")


class Config:
    """The configuration in force, one attribute-like value per key of the table."""

    __slots__ = ("_values", "source")

    def __init__(self, values: Mapping[str, Value] | None = None, source: str = "defaults") -> None:
        self._values: dict[str, Value] = {key.name: key.default for key in TABLE}
        self._values.update(values or {})
        self.source = source

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def text(self, name: str) -> str:
        """A value that is text."""
        return str(self._values[name])

    def number(self, name: str) -> float:
        """A value that is a number."""
        return float(self._values[name])

    def several(self, name: str, between: str = ":") -> list[str]:
        """A value that lists some, in order."""
        return [part for part in self.text(name).split(between) if part]

    def flag(self, name: str) -> bool:
        """A value that is true or false."""
        return bool(self._values[name])

    def as_dict(self) -> dict[str, Value]:
        """Every key with its value, for handing the configuration to another process."""
        return dict(self._values)

    def overridden(self, values: Mapping[str, Value]) -> Config:
        """The same configuration with some keys replaced."""
        return Config({**self._values, **values}, self.source)


def load(path: str = "", body: bytes = b"") -> Config:
    """Read the configuration. Raises BadConfiguration naming the file and the key."""
    if body:
        return _parse(body, "the runtime option config_body")
    named = path or DEFAULT_PATH
    try:
        with open(named, "rb") as file:
            return _parse(file.read(), named)
    except FileNotFoundError:
        if path:
            raise BadConfiguration(
                f"no configuration file {path}", hint="see ConfigPath in containerd's config"
            ) from None
        return Config()
    except OSError as error:
        raise BadConfiguration(f"cannot read {named}: {error.strerror}") from error


def _parse(body: bytes, source: str) -> Config:
    try:
        document = tomls.loads(body.decode())
    except ValueError as error:  # tomllib's and a bad encoding's are ones
        raise BadConfiguration(f"{source}: {error}", hint="it must be TOML") from error
    return Config(_checked(_flatten(document), source), source)


def _flatten(document: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _checked(values: Mapping[str, object], source: str) -> dict[str, Value]:
    known = {key.name: key for key in TABLE}
    checked: dict[str, Value] = {}
    for name, value in values.items():
        key = known.get(name)
        if key is None:
            hint = "the keys are " + ", ".join(known)
            raise BadConfiguration(f"{source}: unknown key {name!r}", hint=hint)
        checked[name] = _typed(key, value, source)
    return checked


def _typed(key: Key, value: object, source: str) -> Value:
    if key.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not key.type:
        raise BadConfiguration(
            f"{source}: {key.name} = {value!r}", hint=f"it must be of type {key.type.__name__}"
        )
    if key.name in FOLDERS and not _absolute(key.name, str(value)):
        raise BadConfiguration(f"{source}: {key.name} = {value!r}", hint="an absolute path")
    if key.name == "criu" and value and (not os.path.isabs(str(value)) or _base(value) != "criu"):
        # runc knows CRIU by that name only, and finds it in PATH, where we put its folder first.
        raise BadConfiguration(
            f"{source}: criu = {value!r}", hint="an absolute path whose last part is criu"
        )
    words = WORDS.get(key.name)
    if words and value not in words:
        hint = f"it is one of {', '.join(words)}"
        raise BadConfiguration(f"{source}: {key.name} = {value!r}", hint=hint)
    limits = LIMITS.get(key.name)
    if limits and not limits[0] <= float(str(value)) < limits[1]:
        hint = f"a number from {limits[0]:g} to {limits[1]:g}"
        raise BadConfiguration(f"{source}: {key.name} = {value!r}", hint=hint)
    return value  # type: ignore[return-value]


def _absolute(name: str, value: str) -> bool:
    paths = value.split(":") if name in _SEVERAL else [value]
    return all(os.path.isabs(path) for path in paths) or (name == "stripes" and not value)


def _base(path: object) -> str:
    return os.path.basename(str(path))
