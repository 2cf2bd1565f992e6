"""Who gets to see the credentials, and who does not: basic, tokens, redirects, TLS."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import HTTPServer
from pathlib import Path

import pytest
from fakes import registry as fake
from fakes.registry import Registry, Request

from shim.config import Config
from shim.errors import RegistryFailed
from shim.reference import Reference, parse
from shim.registry import pull, push
from shim.registry.credentials import Login
from shim.snapshot.snapshot import Snapshot
from shim.snapshot.store import Store

ME = Login("me", "secret")


@pytest.fixture
def other() -> Iterator[Registry]:
    """Another host: of tokens, or of blobs."""
    with fake.running() as other:
        yield other


@pytest.fixture
def both(config: Config, registry: Registry, other: Registry) -> Config:
    hosts = f"{registry.host} {other.host}"
    return Config({**config.as_dict(), "registry.plain_http": hosts})


def log_in(config: Config, registry: Registry, **entry: str) -> None:
    path = Path(config.text("registry.auth"))
    auth = ME.basic.removeprefix("Basic ")
    path.write_text(json.dumps({"auths": {registry.host: entry or {"auth": auth}}}))
    path.chmod(0o600)


def authorized(value: str, challenge: str) -> Callable[[Request], bool]:
    def play(request: Request) -> bool:
        if request.headers.get("Authorization") == value:
            return False
        if request.command in ("PUT", "PATCH"):
            request.hang_up()
        request.answer(401, WWW_Authenticate=challenge)
        return True

    return play


class Tokens:
    """Gives a token for each request, and remembers what it was shown."""

    def __init__(self, answer: bytes = b'{"token":"t1"}') -> None:
        self.answer = answer
        self.seen: list[tuple[str, str, str]] = []

    def __call__(self, request: Request) -> bool:
        body = request.rfile.read(int(request.headers.get("Content-Length", "0"))).decode()
        shown = request.headers.get("Authorization", "")
        self.seen.append((request.path, shown, body))
        request.answer(200, self.answer)
        return True


def bearer(other: Registry) -> str:
    return f'Bearer realm="http://{other.host}/token",service="all of it"'


def test_basic(
    there: Store, reference: Reference, config: Config, registry: Registry, pushed: str
) -> None:
    registry.play = authorized(ME.basic, 'Basic realm="x"')
    with pytest.raises(RegistryFailed, match="a user and a password"):
        pull(there, reference, config)
    log_in(config, registry)
    assert there.snapshot(pull(there, reference, config)).digest == pushed


def test_basic_is_refused(
    there: Store, reference: Reference, config: Config, registry: Registry
) -> None:
    log_in(config, registry)
    registry.play = authorized("never", 'Basic realm="x"')
    with pytest.raises(RegistryFailed) as caught:
        pull(there, reference, config)
    assert "secret" not in str(caught.value)
    assert registry.count("GET") == 2


def test_a_401_that_wants_nothing(there: Store, reference: Reference, config: Config) -> None:
    def play(request: Request) -> bool:
        request.answer(401)
        return True

    host = reference.registry
    with fake.running() as registry:
        registry.play = play
        config = Config({**config.as_dict(), "registry.plain_http": registry.host})
        wanted = parse(reference.text.replace(host, registry.host))
        with pytest.raises(RegistryFailed, match="without saying"):
            pull(there, wanted, config)


def test_another_scheme(
    there: Store, reference: Reference, config: Config, registry: Registry
) -> None:
    registry.play = authorized("never", "Negotiate")
    with pytest.raises(RegistryFailed, match="negotiate"):
        pull(there, reference, config)


def test_a_token(
    there: Store,
    snapshot: Snapshot,
    reference: Reference,
    both: Config,
    registry: Registry,
    other: Registry,
) -> None:
    other.play = tokens = Tokens()
    log_in(both, registry)
    registry.play = authorized("Bearer t1", bearer(other))
    digest = push(snapshot, reference, both)
    query = "service=all+of+it&scope=repository%3Ateam%2Fworker%3Apull"
    assert tokens.seen == [(f"/token?{query}%2Cpush", ME.basic, "")]
    assert there.snapshot(pull(there, reference, both)).digest == digest
    assert tokens.seen[1:] == [(f"/token?{query}", ME.basic, "")]


def test_a_token_for_nobody(
    there: Store,
    reference: Reference,
    both: Config,
    registry: Registry,
    other: Registry,
    pushed: str,
) -> None:
    other.play = tokens = Tokens(b'{"access_token":"t1"}')
    registry.play = authorized("Bearer t1", bearer(other))
    assert there.snapshot(pull(there, reference, both)).digest == pushed
    assert tokens.seen[0][1] == ""


def test_an_identity_token(
    there: Store,
    reference: Reference,
    both: Config,
    registry: Registry,
    other: Registry,
    pushed: str,
) -> None:
    other.play = tokens = Tokens()
    log_in(both, registry, identitytoken="secret&x")
    registry.play = authorized("Bearer t1", bearer(other))
    assert there.snapshot(pull(there, reference, both)).digest == pushed
    ((path, shown, body),) = tokens.seen
    assert (path, shown) == ("/token", "")
    assert "refresh_token=secret%26x" in body
    assert "grant_type=refresh_token" in body


def test_a_token_that_runs_out(
    there: Store,
    reference: Reference,
    both: Config,
    registry: Registry,
    other: Registry,
    pushed: str,
) -> None:
    given: list[str] = []

    def give(request: Request) -> bool:
        given.append(f"t{len(given)}")
        request.answer(200, json.dumps({"token": given[-1]}).encode())
        return True

    def play(request: Request) -> bool:
        wanted = "t0" if registry.count("GET", "/blobs/") < 3 else "t1"
        return authorized(f"Bearer {wanted}", bearer(other))(request)

    other.play, registry.play = give, play
    assert there.snapshot(pull(there, reference, both)).digest == pushed
    assert given == ["t0", "t1"]


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"token": 1}', b'{"token": "a\\r\\nb"}', b"x" * 100_000]
)
def test_what_is_no_token(
    there: Store,
    reference: Reference,
    both: Config,
    registry: Registry,
    other: Registry,
    answer: bytes,
) -> None:
    other.play = Tokens(answer)
    registry.play = authorized("Bearer t1", bearer(other))
    with pytest.raises(RegistryFailed, match=other.host):
        pull(there, reference, both)


@pytest.mark.parametrize(
    "realm", ["http://elsewhere.example/", "ftp://x/", "/token", "", "https://me@x/", "http://[x"]
)
def test_realms_that_get_no_credentials(
    there: Store, reference: Reference, config: Config, registry: Registry, realm: str
) -> None:
    log_in(config, registry)
    registry.play = authorized("Bearer t1", f'Bearer realm="{realm}"')
    with pytest.raises(RegistryFailed, match="not https"):
        pull(there, reference, config)


def test_a_redirect_drops_credentials(
    there: Store,
    reference: Reference,
    both: Config,
    registry: Registry,
    other: Registry,
    pushed: str,
) -> None:
    log_in(both, registry)
    other.blobs = registry.blobs

    def play(request: Request) -> bool:
        if authorized(ME.basic, 'Basic realm="x"')(request):
            return True
        if "/blobs/" in request.path:
            request.answer(307, Location=f"http://{other.host}{request.path}")
            return True
        return False

    registry.play = play
    assert there.snapshot(pull(there, reference, both)).digest == pushed
    assert other.count("GET", "/blobs/") > 2
    assert not [headers for _, _, headers in other.asked if "Authorization" in headers]


@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
@pytest.mark.parametrize("identity", [True, False])
def test_a_redirect_gets_no_credentials_by_asking(
    there: Store,
    reference: Reference,
    both: Config,
    registry: Registry,
    other: Registry,
    pushed: str,
    identity: bool,
    scheme: str,
) -> None:
    log_in(both, registry, **({"identitytoken": "secret"} if identity else {}))
    other.play = authorized("never", f'{scheme} realm="http://{other.host}/token"')

    def play(request: Request) -> bool:
        if "/blobs/" in request.path:
            request.answer(307, Location=f"http://{other.host}/x")
        return "/blobs/" in request.path

    registry.play = play
    wanted = f"{registry.host} redirects to {other.host}, which wants a login"
    with pytest.raises(RegistryFailed, match=wanted):
        pull(there, reference, both)
    assert [path for _, path, _ in other.asked] == ["/x"]
    assert "Authorization" not in other.asked[0][2]


def test_an_upload_elsewhere_gets_no_credentials_by_asking(
    snapshot: Snapshot, reference: Reference, both: Config, registry: Registry, other: Registry
) -> None:
    log_in(both, registry)
    other.play = authorized("never", f'Bearer realm="http://{other.host}/token"')

    def play(request: Request) -> bool:
        if request.command == "POST":
            request.answer(202, Location=f"http://{other.host}/x")
        return request.command == "POST"

    registry.play = play
    with pytest.raises(RegistryFailed, match=f"{other.host}, which wants a login"):
        push(snapshot, reference, both)
    assert {path.partition("?")[0] for _, path, _ in other.asked} == {"/x"}


@pytest.mark.parametrize(
    "where", ["http://elsewhere.example/x", "file:///etc/passwd", "//[", "gopher:"]
)
def test_a_redirect_out_of_tls(
    there: Store, reference: Reference, config: Config, registry: Registry, where: str
) -> None:
    def play(request: Request) -> bool:
        request.answer(302, Location=where)
        return True

    registry.play = play
    with pytest.raises(RegistryFailed, match="leads to"):
        pull(there, reference, config)


def test_a_redirect_without_end(
    there: Store, reference: Reference, config: Config, registry: Registry
) -> None:
    def play(request: Request) -> bool:
        request.answer(302, Location=f"{request.path}x")
        return True

    registry.play = play
    with pytest.raises(RegistryFailed, match="again and again"):
        pull(there, reference, config)
    assert registry.count("GET") == 6


def test_plain_http_is_for_hosts_that_are_named(
    there: Store, reference: Reference, config: Config, registry: Registry
) -> None:
    config = Config({**config.as_dict(), "registry.plain_http": "localhost"})
    with pytest.raises(RegistryFailed, match="no trusted connection"):
        pull(there, reference, config)
    assert registry.asked == []


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of 127.0.0.1, with its key, signed by nobody else."""
    path = tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-nodes", "-days", "2", "-keyout", str(path), "-out", str(tmp_path / "out.pem")]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    path.write_text(path.read_text() + (tmp_path / "out.pem").read_text())
    return path


@pytest.fixture
def secure(registry: Registry, certificate: Path, pushed: str) -> Iterator[str]:
    """HOST:PORT of the same registry with TLS."""
    server = HTTPServer(("127.0.0.1", 0), Request)
    server.registry = registry  # type: ignore[attr-defined]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_only_trusted_certificates(
    there: Store,
    config: Config,
    registry: Registry,
    secure: str,
    certificate: Path,
    pushed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = Config({**config.as_dict(), "registry.transfers": 1})
    with pytest.raises(RegistryFailed, match="no trusted connection"):
        pull(there, parse(f"{secure}/team/worker:1"), config)
    assert registry.asked == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    id = pull(there, parse(f"{secure}/team/worker:1"), config)
    assert there.snapshot(id).digest == pushed
