"""The node's credentials for registries, in the form of docker's config.json.

    {"auths": {"REGISTRY": {"auth": BASE64(USER:PASSWORD)} or {"identitytoken": TOKEN}}}

Helper programs (`credHelpers`, `credsStore`) are refused by name: they would run as root whatever a
file says. Nothing of what is read here is ever logged or put into an error.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from dataclasses import dataclass, field
from typing import Any

from shim.errors import BadConfiguration

_LARGEST = 1 << 20  # bytes
_HINT = "see the key registry.auth in README.md"


@dataclass(frozen=True)
class Login:
    """Who we are at one registry: a user and a password, or an identity token."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def login_for(registry: str, path: str) -> Login | None:
    """What the file at `path` has for a registry; None without such a file, or entry.

    Raises BadConfiguration if others than root can read it, or it is not what it should be.
    """
    text = _read(path)
    if text is None:
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadConfiguration(f"{path} is not JSON", hint=_HINT) from error
    auths = _object(document, path).get("auths", {})
    entry = _object(auths, path).get(registry)
    if entry is None:
        entry = _object(auths, path).get(f"https://{registry}")
    if entry is None or not _object(entry, path).keys() & {"auth", "identitytoken"}:
        _refuse_programs(document, registry, path)
        return None
    return _login(entry, registry, path)


def _read(path: str) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) if path else -1
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadConfiguration(f"cannot read {path}: {error.strerror}", hint=_HINT) from error
    if fd < 0:
        return None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > _LARGEST:
            raise BadConfiguration(f"{path} is no file of credentials", hint=_HINT)
        if info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o077:
            raise BadConfiguration(
                f"{path} can be read by others than root",
                hint=f"chown root {path}; chmod 600 {path}",
            )
        return os.read(fd, _LARGEST)
    finally:
        os.close(fd)


def _object(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadConfiguration(f"{path} is not in the form of docker's config.json", hint=_HINT)
    return value


def _refuse_programs(document: dict[str, Any], registry: str, path: str) -> None:
    helpers = _object(document.get("credHelpers", {}), path)
    program = helpers.get(registry) or document.get("credsStore")
    if program:
        raise BadConfiguration(
            f"{path}: credentials for {registry} are with docker-credential-{program!s:.40}",
            hint="programs are not run: put the credentials themselves under auths",
        )


def _login(entry: dict[str, Any], registry: str, path: str) -> Login:
    bad = BadConfiguration(f"{path}: bad credentials for {registry}", hint=_HINT)
    token = entry.get("identitytoken", "")
    if token:
        if not isinstance(token, str):
            raise bad
        return Login(identity_token=token)
    try:
        text = base64.b64decode(entry["auth"], validate=True).decode()
    except (KeyError, TypeError, ValueError) as error:
        raise bad from error
    user, colon, password = text.partition(":")
    if not colon:
        raise bad
    return Login(user, password)
