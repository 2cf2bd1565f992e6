"""Test images, made on this machine as an OCI archive: there is no registry to pull from.

pause     a static program that waits, as every pod's first process
busybox   Debian's static busybox with a link per applet
layers    busybox in a hundred layers (its mount options exceed one page)
host      an empty root whose /usr is to be mounted from the host: for Debian's own Python
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from bed.config import PAUSE_IMAGE
from bed.environment import fingerprint
from bed.fetch import busybox, cache_folder

BUSYBOX_IMAGE = "thaw.local/busybox:1"
LAYERS_IMAGE = "thaw.local/layers:1"
HOST_IMAGE = "thaw.local/host:1"
LAYERS = 100

_SOURCE = Path(__file__).with_name("pause.c")
_ROOT_FOLDERS = ("proc", "sys", "dev", "etc", "tmp", "run", "var", "var/tmp", "root")
_USERS = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"


def names(*, layers: bool = True) -> list[str]:
    """Of all images; that of many layers can be left out."""
    return [name for name in _IMAGES if layers or name != LAYERS_IMAGE]


def archive(*, layers: bool = True) -> Path:
    """Their archive in the cache, made if need be: one is imported sooner than many."""
    key = fingerprint([Path(__file__), _SOURCE])[:12]
    place = cache_folder() / "images" / f"{'all' if layers else 'small'}-{key}.tar"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        new = place.with_name(f".{place.name}.{os.getpid()}")
        blobs: dict[str, bytes] = {}
        entries = []
        for name in names(layers=layers):
            make, command = _IMAGES[name]
            entries.append(_add_image(blobs, name, make(), command))
        blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
        blobs["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
        new.write_bytes(layer_of(files=blobs))
        new.rename(place)
    return place


def _add_image(
    blobs: dict[str, bytes], name: str, layers: list[bytes], command: str
) -> dict[str, object]:
    """Add an image of uncompressed tar layers (lowest first); its entry in the index."""

    def blob(media_type: str, content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    oci = "application/vnd.oci.image"
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    parts = [blob(f"{oci}.layer.v1.tar", layer) for layer in layers]
    config = {
        "architecture": machine,
        "os": "linux",
        "config": {"Env": [path], "Cmd": [command], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [part["digest"] for part in parts]},
    }
    about = blob(f"{oci}.config.v1+json", json.dumps(config).encode())
    manifest = {"schemaVersion": 2, "mediaType": f"{oci}.manifest.v1+json", "config": about}
    entry = blob(f"{oci}.manifest.v1+json", json.dumps({**manifest, "layers": parts}).encode())
    entry["annotations"] = {"io.containerd.image.name": name}
    return entry


def layer_of(
    files: dict[str, bytes] | None = None,
    programs: dict[str, bytes] | None = None,
    links: dict[str, str] | None = None,
    folders: Iterable[str] = (),
) -> bytes:
    """A tar archive, the same bytes for the same content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in folders:
            mode = 0o1777 if name.endswith("tmp") else 0o755
            _add(tar, name, tarfile.DIRTYPE, mode)
        for name, content in (files or {}).items():
            _add(tar, name, tarfile.REGTYPE, 0o644, content)
        for name, content in (programs or {}).items():
            _add(tar, name, tarfile.REGTYPE, 0o755, content)
        for name, target in (links or {}).items():
            _add(tar, name, tarfile.SYMTYPE, 0o777, target=target)
    return buffer.getvalue()


def _add(
    tar: tarfile.TarFile, name: str, kind: bytes, mode: int, content: bytes = b"", target: str = ""
) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(content), target
    tar.addfile(entry, io.BytesIO(content))


def _pause_layers() -> list[bytes]:
    program = cache_folder() / f"pause-{os.getpid()}"
    compile_it = ["gcc", "-Os", "-static", "-s", "-o", str(program), str(_SOURCE)]
    subprocess.run(compile_it, check=True)
    try:
        content = program.read_bytes()
    finally:
        program.unlink()
    return [layer_of(programs={"pause": content}, folders=_ROOT_FOLDERS)]


def _busybox_layers() -> list[bytes]:
    path = busybox()
    listed = subprocess.run([str(path), "--list"], stdout=subprocess.PIPE, text=True, check=True)
    links = {f"bin/{name}": "busybox" for name in listed.stdout.split() if name != "busybox"}
    content = {"bin/busybox": path.read_bytes()}
    files = {"etc/passwd": _USERS, "etc/group": b"root:x:0:\n"}
    return [layer_of(files=files, programs=content, links=links, folders=("bin", *_ROOT_FOLDERS))]


def _hundred_layers() -> list[bytes]:
    tiny = [layer_of(files={f"layer-{n}": b"%d\n" % n}) for n in range(1, LAYERS)]
    return _busybox_layers() + tiny


def _host_layers() -> list[bytes]:
    links = {name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64")}
    files = {"etc/passwd": _USERS, "etc/group": b"root:x:0:\n"}
    return [layer_of(files=files, links=links, folders=("usr", *_ROOT_FOLDERS))]


_IMAGES: dict[str, tuple[Callable[[], list[bytes]], str]] = {
    PAUSE_IMAGE: (_pause_layers, "/pause"),
    BUSYBOX_IMAGE: (_busybox_layers, "/bin/sh"),
    LAYERS_IMAGE: (_hundred_layers, "/bin/sh"),
    HOST_IMAGE: (_host_layers, "/bin/sh"),
}
