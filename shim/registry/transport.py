"""Requests to one registry: TLS, time limits, redirects, authorization.

A registry is believed in nothing: answers are read up to a limit, credentials go to the registry
itself and to the service that gives its tokens, and to no host that it redirects to.
"""

from __future__ import annotations

import email.utils
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, SSLError
from urllib3.response import BaseHTTPResponse

from shim import __version__
from shim.config import Config
from shim.errors import RegistryFailed
from shim.registry.authorization import Authorization
from shim.registry.sockets import Sockets, deadline_of

CONNECT_SECONDS = 15.0
READ_SECONDS = 30.0  # without a byte, and for the head of an answer
SMALL_SECONDS = 120.0  # for the body of one that is no blob
_WORDS_SECONDS = 5.0  # for what says why not
FINISH_SECONDS = 600.0  # for a registry that moves a blob to its place before it answers
_REDIRECTS = 5
_REDIRECTING = frozenset({301, 302, 303, 307, 308})
_LONGEST_WAIT = 60.0
_SMALL_ANSWER = 1 << 16  # bytes

Response = BaseHTTPResponse
# What is sent in pieces, with a Content-Length that the caller states.
Body = Iterator[bytes]


class Interrupted(Exception):
    """The request may go well at another attempt, after so many seconds (0.0: as ever).

    `silent`: whoever is asked has never answered, so there may be nobody.
    """

    def __init__(self, message: str, after: float = 0.0, *, silent: bool = False) -> None:
        super().__init__(message)
        self.after = after
        self.silent = silent


class Transport:
    """Connections to one registry and to where it redirects; several threads may use it."""

    def __init__(self, registry: str, config: Config) -> None:
        self.registry = registry
        self.plain = frozenset(config.several("registry.plain_http", " "))
        scheme = "http" if registry in self.plain else "https"
        self.base = f"{scheme}://{registry}"
        self._origin = origin(self.base)
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._lock = threading.Lock()
        self._sockets = Sockets()
        self._authorization = Authorization(self, registry, config.text("registry.auth"))
        self._most = int(config.number("registry.transfers")) + 1
        self._answered = False

    def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            pool.clear()
        self._sockets.close()

    def abort(self) -> None:
        """End what other threads are waiting for: they are Interrupted at once."""
        self._sockets.shut()

    @contextmanager
    def request(
        self,
        method: str,
        url: str,
        *,
        scope: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | Body | None = None,
        patience: float = 0.0,
    ) -> Iterator[Response]:
        """One request, and its answer to be read within the block.

        `scope` is what a token has to be for, "repository:NAME:pull"; `patience` how many seconds
        may pass without a byte (0.0: READ_SECONDS). Answers that are worth another attempt are
        Interrupted; others, of any status below 500, are the caller's. Raises RegistryFailed if
        there is none.
        """
        response = self._authorized(
            method, self.joined(self.base, url), scope, headers, body, patience
        )
        try:
            if response.status in (408, 425, 429) or response.status >= 500:
                wait = _retry_after(response.headers.get("Retry-After", ""))
                raise Interrupted(f"{self.registry} answers {describe(response)}", wait)
            yield response
        finally:
            self._release(response)

    def _authorized(
        self,
        method: str,
        url: str,
        scope: str,
        headers: Mapping[str, str] | None,
        body: bytes | Body | None,
        patience: float,
    ) -> Response:
        value = self._authorization.value(scope)
        response, where = self._redirected(method, url, dict(headers or {}), body, patience, value)
        if response.status != 401:
            return response
        if origin(where) != self._origin:
            # Whose challenge is answered gets the credentials sent to where it says.
            self._release(response)
            raise RegistryFailed(
                f"{self.registry} redirects to {urlsplit(where).netloc}, which wants a login",
                hint="only the registry itself is told who we are",
            )
        challenge = response.headers.get("WWW-Authenticate", "")
        self._release(response)
        self._authorization.answer(challenge, scope, value)  # raises if it cannot
        if body is not None and not isinstance(body, bytes):
            raise Interrupted(f"{self.registry} wants to be asked again")
        value = self._authorization.value(scope)
        return self._redirected(method, url, dict(headers or {}), body, patience, value)[0]

    def _redirected(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | Body | None,
        patience: float,
        authorization: str,
    ) -> tuple[Response, str]:
        """The answer, and which URL it is of."""
        for _ in range(_REDIRECTS + 1):
            self.check_url(url)
            if authorization and origin(url) == self._origin:
                headers["Authorization"] = authorization
            else:
                headers.pop("Authorization", None)
            response = self.send(method, url, headers, body, patience)
            where = response.headers.get("Location", "")
            if response.status not in _REDIRECTING or method not in ("GET", "HEAD") or not where:
                return response, url
            self._release(response)
            url = self.joined(url, where)
        raise RegistryFailed(f"{self.registry} redirects again and again", hint="try again later")

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Body | None = None,
        patience: float = 0.0,
    ) -> Response:
        """One request to anywhere, as it stands. Raises Interrupted, or RegistryFailed."""
        self.check_url(url)
        silent = not self._answered
        stated = {"User-Agent": f"thaw/{__version__}", "Accept-Encoding": "identity", **headers}
        try:
            response = self._pool(url).request(
                method,
                url,
                body=body,
                headers=stated,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=patience or READ_SECONDS),
            )
            self._answered = True
            return response
        except SSLError as error:
            if isinstance(_innermost(error), ssl.SSLEOFError | ssl.SSLZeroReturnError):
                raise Interrupted(f"{_place(url)} ends the connection") from error
            raise RegistryFailed(
                f"no trusted connection to {_place(url)}: {error}",
                hint="its certificate must be one that this machine trusts",
            ) from error
        except (HTTPError, OSError, ValueError) as error:
            said = f"{_place(url)} cannot be reached: {_reason(error)}"
            raise Interrupted(said, silent=silent) from error

    def joined(self, base: str, where: str) -> str:
        """The URL that a header names, which may be relative. Raises RegistryFailed."""
        try:
            return urljoin(base, where)
        except ValueError as error:
            raise RegistryFailed(
                f"{self.registry} leads to {where[:80]!r}", hint="which is no URL"
            ) from error

    def check_url(self, url: str) -> None:
        """Raise RegistryFailed unless it is https, or http to a host that the operator named."""
        try:
            parts = urlsplit(url)
            plain = parts.scheme == "http" and parts.netloc in self.plain
            good = (
                (plain or parts.scheme == "https")
                and bool(parts.hostname)
                and parts.username is None
                and parts.port != 0
            )
            good = good and url.isascii() and url.isprintable()
        except ValueError:
            good = False
        if not good:
            raise RegistryFailed(
                f"{self.registry} leads to {_place(url)!r:.200}, which is not https",
                hint="hosts that are asked without TLS are listed in registry.plain_http",
            )

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        proxy = urllib.request.getproxies().get(parts.scheme, "")
        if urllib.request.proxy_bypass(parts.hostname or ""):
            proxy = ""
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = self._new_pool(proxy)
            return self._pools[proxy]

    def _new_pool(self, proxy: str) -> urllib3.PoolManager:
        # Without a context of ours urllib3 makes one for each pool: it verifies, with the system's
        # certificates, and takes 20 ms that plain HTTP need not wait for.
        pool = (
            urllib3.ProxyManager(proxy, maxsize=self._most, cert_reqs="CERT_REQUIRED")
            if proxy
            else urllib3.PoolManager(maxsize=self._most, cert_reqs="CERT_REQUIRED")
        )
        pool.pool_classes_by_scheme = self._sockets.pools
        return pool

    def _release(self, response: Response) -> None:
        """Close the connection, unless the answer is at its end: then it can be used again."""
        left = response.length_remaining
        try:
            if left == 0 or (response.status != 200 and left is not None and left < _SMALL_ANSWER):
                with deadline_of(response).within(_WORDS_SECONDS):
                    response.read(left)
        except (HTTPError, OSError):
            pass
        response.close()


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what credentials are bound to."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, (parts.hostname or "").lower(), port


def read_small(response: Response, limit: int, what: str) -> bytes:
    """A whole answer of at most `limit` bytes. Raises RegistryFailed, or Interrupted."""
    ends = time.monotonic() + SMALL_SECONDS
    found = bytearray()
    while block := read_some(response, limit + 1 - len(found)):
        found += block
        if len(found) > limit:
            raise RegistryFailed(f"{what} has more than {limit} bytes", hint="it is no snapshot")
        if time.monotonic() > ends:
            raise RegistryFailed(f"{what} does not end", hint="try again later")
    return bytes(found)


def read_some(response: Response, most: int) -> bytes:
    """What is there of an answer, or comes next; nothing at its end. Raises Interrupted."""
    try:
        with deadline_of(response).within(READ_SECONDS):
            return response.read1(most)
    except (HTTPError, OSError) as error:
        raise Interrupted(f"connection lost: {_reason(error)}") from error


def describe(response: Response) -> str:
    """The status, for people; with the registry's own words if there are some."""
    words = ""
    try:
        with deadline_of(response).within(_WORDS_SECONDS):
            text = response.read(2048).decode("utf-8", "replace")
        _, found, rest = text.partition('"message":"')
        words = rest.partition('"')[0] if found else ""
    except (HTTPError, OSError):
        pass
    plain = "".join(c for c in words if c.isprintable())[:120]
    return f"{response.status}" + (f" ({plain})" if plain else "")


def _retry_after(value: str) -> float:
    """Seconds to wait, from seconds or a date; limited, as it is a stranger's wish."""
    if value.isascii() and value.isdecimal():
        return min(float(value[:9]), _LONGEST_WAIT)
    try:
        wanted = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return min(max(wanted, 0.0), _LONGEST_WAIT)


def _place(url: str) -> str:
    """A URL without its query: signatures and tokens are in there."""
    return url.partition("?")[0]


def _innermost(error: BaseException) -> BaseException:
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    return error


def _reason(error: BaseException) -> str:
    # urllib3's own words name the pool object; what is wrong is in the innermost error.
    inner = _innermost(error)
    return str(inner)[:200] or type(inner).__name__
