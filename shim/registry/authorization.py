"""Saying who we are: the basic scheme, and tokens as registries give them.

A token service is named by the registry's challenge and is asked with the node's credentials, as
described in the distribution project's token specification: GET with the basic scheme, or POST with
an identity token (OAuth 2). Without credentials it is asked for an anonymous token.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from shim.errors import RegistryFailed
from shim.registry.challenge import Challenge, parse
from shim.registry.credentials import Login, login_for

if TYPE_CHECKING:
    from shim.registry.transport import Transport

_LARGEST_TOKEN = 1 << 16  # bytes, with what is around it
_TOKEN_SECONDS = 30.0


class Authorization:
    """What goes into the header Authorization, by scope; several threads may ask."""

    def __init__(self, transport: Transport, registry: str, auth_file: str) -> None:
        self._transport = transport
        self._registry = registry
        self._auth_file = auth_file
        self._login = login_for(registry, auth_file)
        self._values: dict[str, str] = {}
        self._lock = threading.Lock()

    def value(self, scope: str) -> str:
        """The header's value for requests of a scope; empty before there was a challenge."""
        return self._values.get(scope, "")

    def answer(self, header: str, scope: str, refused: str) -> None:
        """Find another value for a scope after a 401 to the value `refused`.

        Raises RegistryFailed if the challenge cannot be answered, or was answered already.
        """
        with self._lock:
            if self._values.get(scope, "") != refused:
                return  # another thread was quicker
            challenges = parse(header)
            if not challenges:
                raise RegistryFailed(
                    f"{self._registry} answers 401 without saying what it wants", hint=self._hint()
                )
            self._values[scope] = self._answer(challenges, scope, refused)

    def _answer(self, challenges: list[Challenge], scope: str, refused: str) -> str:
        by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
        if "bearer" in by_scheme:
            return "Bearer " + self._token(by_scheme["bearer"], scope)
        if "basic" not in by_scheme:
            schemes = ", ".join(sorted(by_scheme))[:80]
            raise RegistryFailed(
                f"{self._registry} wants authorization by {schemes}",
                hint="basic and bearer are known",
            )
        if self._login is None or not self._login.user or refused:
            what = "refuses the credentials" if refused else "wants a user and a password"
            raise RegistryFailed(f"{self._registry} {what}", hint=self._hint())
        return self._login.basic

    def _token(self, challenge: Challenge, scope: str) -> str:
        realm = challenge.parameters.get("realm", "")
        self._transport.check_url(realm)
        fields = {"service": challenge.parameters.get("service", ""), "scope": scope}
        body, headers = None, {}
        if self._login and self._login.identity_token:
            token = self._login.identity_token
            more = {"grant_type": "refresh_token", "client_id": "thaw", "refresh_token": token}
            body = urlencode({**fields, **more}).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        else:
            realm += ("&" if "?" in realm else "?") + urlencode(fields)
            if self._login:
                headers["Authorization"] = self._login.basic
        return self._ask(realm, headers, body, self._login)

    def _ask(
        self, url: str, headers: dict[str, str], body: bytes | None, login: Login | None
    ) -> str:
        from shim.registry.transport import Interrupted, read_small

        method = "GET" if body is None else "POST"
        host = urlsplit(url).netloc
        response = self._transport.send(method, url, headers, body, _TOKEN_SECONDS)
        try:
            if response.status == 429 or response.status >= 500:
                raise Interrupted(f"{host} answers {response.status}")
            if response.status != 200:
                whose = "these credentials" if login else "nobody"
                raise RegistryFailed(
                    f"{host} gives {whose} no token for {self._registry}: status {response.status}",
                    hint=self._hint(),
                )
            return _token_of(read_small(response, _LARGEST_TOKEN, f"the token of {host}"), host)
        finally:
            response.close()

    def _hint(self) -> str:
        return f"credentials for {self._registry} belong into {self._auth_file or 'registry.auth'}"


def _token_of(answer: bytes, host: str) -> str:
    try:
        document = json.loads(answer)
        token = document.get("token") or document.get("access_token")
    except (AttributeError, ValueError, RecursionError):
        token = None
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise RegistryFailed(f"what {host} answers is no token", hint="try again later")
    return token
