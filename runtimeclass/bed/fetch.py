"""What a lane needs from Debian, as paths; ../fetch.sh does the work and keeps it in the cache."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "fetch.sh"


def cache_folder() -> Path:
    """Where fetched and built things are kept; all of it can be deleted and is made anew."""
    return Path(os.environ.get("THAW_CACHE", "/var/cache/thaw"))


@cache
def _fetched(*arguments: str) -> Path:
    command = [str(SCRIPT), *arguments]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Path(answer.stdout.strip())


def criu() -> Path:
    """The path of a CRIU that works here: the machine's, or Debian's newest in the cache."""
    return _fetched("criu")


def containerd(version: str) -> Path:
    """The folder with containerd, ctr and containerd-shim-runc-v2; 1.6, 1.7 or 2.x."""
    return _fetched("containerd", version)


def runc() -> Path:
    """The path of Debian 12's runc."""
    return _fetched("runc")


def cni() -> Path:
    """The folder with Debian 12's CNI plugins."""
    return _fetched("cni")


def busybox() -> Path:
    """The path of Debian 12's static busybox."""
    return _fetched("busybox")


def registry() -> Path:
    """The path of Debian 12's docker-registry."""
    return _fetched("registry")


def etcd() -> Path:
    """The path of Debian 12's etcd server."""
    return _fetched("etcd")


def skopeo() -> Path:
    """The path of Debian 12's skopeo, with its own libraries."""
    return _fetched("skopeo")
