"""Whose service account a container has, as the token says that kubelet projects into it.

The pod decides what is mounted at the token's place, and what is in there: links that lead
anywhere, devices that do something when they are opened. So only a volume of kubelet's own kind is
looked at, its two links are walked by hand below an open directory, and nothing but a regular file
is opened.
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
from collections.abc import Mapping
from typing import Any

PLACE = "/var/run/secrets/kubernetes.io/serviceaccount"
_PROJECTED = "/kubernetes.io~projected/"  # in the path of every such volume of kubelet's
_LONGEST_TOKEN = 64 << 10  # bytes
_ACCOUNT = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CURRENT = "..data"  # kubelet's atomic writer: token → ..data/token, ..data → ..DATE


def service_account(spec: Mapping[str, Any]) -> str:
    """The name in the token of a container, as that says itself; empty if there is none."""
    for mount in spec.get("mounts") or []:
        if os.path.normpath(mount["destination"]) == PLACE:
            source = mount.get("source", "")
            if _PROJECTED not in source:
                return ""
            try:
                return _account_of(_read(source))
            except (OSError, ValueError, RecursionError):
                return ""
    return ""


def _read(volume: str) -> bytes:
    folder = os.open(volume, _FOLDER)
    try:
        if os.readlink("token", dir_fd=folder) != f"{_CURRENT}/token":
            raise ValueError("not as kubelet makes it")
        current = os.readlink(_CURRENT, dir_fd=folder)
        if "/" in current or current in (".", ".."):
            raise ValueError("not as kubelet makes it")
        inner = os.open(current, _FOLDER, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        return _read_file("token", inner)
    finally:
        os.close(inner)


def _read_file(name: str, folder: int) -> bytes:
    """What is in a regular file; nothing else is opened, as opening alone can do something."""
    place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise ValueError("no file")
        with open(f"/proc/self/fd/{place}", "rb") as file:
            return file.read(_LONGEST_TOKEN)
    finally:
        os.close(place)


def _account_of(token: bytes) -> str:
    """The claim kubernetes.io/serviceaccount/name of a JSON web token (RFC 7519), unverified."""
    payload = token.split(b".")[1] if token.count(b".") == 2 else b""
    claims = json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
    for key in ("kubernetes.io", "serviceaccount", "name"):
        if not isinstance(claims, dict):
            return ""
        claims = claims.get(key)
    return claims if isinstance(claims, str) and _ACCOUNT.fullmatch(claims) else ""
