"""What names a snapshot: a name, a digest, an image reference, or `auto`.

    NAME                       what the tag NAME stands for now
    NAME@sha256:HEX            the snapshot with that manifest, whatever NAME stands for
    REGISTRY/REPOSITORY:TAG    an artifact, or the one with a digest: …/REPOSITORY@sha256:HEX
    auto                       derived from what determines the worker (snapshot/derived.py)

References come from whoever may create pods. None of them is ever a path: what is used as the name
of a file is checked, or quoted, here.
"""

from __future__ import annotations

from shim.errors import BadName

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NAME_LENGTH = 63
AUTO = "auto"

_SMALL = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_NAME = _SMALL | frozenset("._-")
_TAG = _NAME | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_HOST = _TAG - frozenset("_")
_HEX = frozenset("0123456789abcdef")
_HINT = "a name is [a-z0-9][a-z0-9._-]{0,62}, a reference NAME@sha256:… or REGISTRY/REPOSITORY:TAG"
_LONGEST = 512
_REPOSITORY_LENGTH = 255  # with the registry, as in the OCI distribution specification
_TAG_LENGTH = 128
_FILE_NAME_LENGTH = 255


class Reference:
    """A parsed reference: either `name` or `registry` and `repository` are set.

    `digest` is "sha256:…" or empty, `tag` an artifact's. `text` is how it is written.
    """

    __slots__ = ("digest", "name", "registry", "repository", "tag", "text")

    def __init__(
        self,
        text: str,
        *,
        name: str = "",
        registry: str = "",
        repository: str = "",
        tag: str = "",
        digest: str = "",
    ) -> None:
        self.text = text
        self.name = name
        self.registry = registry
        self.repository = repository
        self.tag = tag
        self.digest = digest

    @property
    def remote(self) -> bool:
        """Whether it names an artifact of a registry."""
        return bool(self.registry)

    @property
    def auto(self) -> bool:
        """Whether the name has to be derived from the container."""
        return self.name == AUTO

    @property
    def file_name(self) -> str:
        """The name of the file that says what a reference without a digest stands for.

        What no local name can have is quoted, so that no artifact is taken for a name, or a path.
        """
        if not self.remote:
            return self.name
        place = f"{self.registry}/{self.repository}:{self.tag}"
        return "".join(c if c in _NAME else f"%{ord(c):02x}" for c in place)

    @property
    def hex(self) -> str:
        """The digest's 64 digits, or nothing."""
        return self.digest.partition(":")[2]

    def within(self, prefixes: Iterable[str]) -> bool:
        """Whether it is one of, or below, some prefixes REGISTRY[/REPOSITORY]."""
        place = f"{self.registry}/{self.repository}/"
        return self.remote and any(
            place.startswith(prefix.rstrip("/") + "/") for prefix in prefixes
        )


def parse(text: str) -> Reference:
    """Read a reference. Raises BadName."""
    if len(text) > _LONGEST:
        raise _bad(text)
    rest, at, digest = text.partition("@")
    if at and not _is_digest(digest):
        raise BadName(
            f"bad digest in snapshot reference {text[:80]!r}",
            hint="a digest is sha256: and 64 hexadecimal digits",
        )
    if "/" in rest:
        return _remote(text, rest, digest)
    if ":" in rest:
        raise BadName(f"snapshot {text[:80]!r} has a tag, but no registry", hint=_HINT)
    if rest == AUTO and not at:
        return Reference(text, name=AUTO)
    return Reference(text, name=check_name(rest), digest=digest)


def check_name(name: str) -> str:
    """`name` itself, if it can name a snapshot: [a-z0-9][a-z0-9._-]{0,62}, and not reserved.

    Raises BadName otherwise.
    """
    if name == AUTO:
        raise BadName(f"snapshot name {name!r} is reserved", hint="choose another name")
    good = 0 < len(name) <= NAME_LENGTH and name[0] in _SMALL and _NAME.issuperset(name)
    if not good:
        raise BadName(f"bad snapshot name {name[:80]!r}", hint=_HINT)
    return name


def _remote(text: str, rest: str, digest: str) -> Reference:
    registry, _, repository = rest.partition("/")
    tag = ""
    if ":" in repository:
        repository, _, tag = repository.rpartition(":")
        if not (0 < len(tag) <= _TAG_LENGTH and _TAG.issuperset(tag) and tag[0] not in ".-"):
            raise _bad(text)
    if len(registry) + len(repository) > _REPOSITORY_LENGTH or not _is_registry(registry):
        raise _bad(text)
    if not all(map(_is_component, repository.split("/"))):
        raise _bad(text)
    if not tag and not digest:
        raise BadName(f"snapshot {text[:80]!r} has neither a tag nor a digest", hint=_HINT)
    found = Reference(text, registry=registry, repository=repository, tag=tag, digest=digest)
    if len(found.file_name) > _FILE_NAME_LENGTH:
        raise _bad(text)
    return found


def _is_registry(text: str) -> bool:
    """HOST, HOST:PORT or [IPV6]:PORT; a host without a dot needs a port, or is localhost.

    Otherwise it would be the first component of a repository on somebody's default registry.
    """
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host = text
    if colon and not (port.isdecimal() and port.isascii() and 0 < int(port) < 65536):
        return False
    if host.startswith("["):
        return host.endswith("]") and (_HEX | frozenset(":.")).issuperset(host[1:-1].lower())
    named = bool(host) and _HOST.issuperset(host) and all(map(_is_label, host.split(".")))
    return named and (bool(colon) or "." in host or host == "localhost")


def _is_label(text: str) -> bool:
    return bool(text) and text[0] != "-" and text[-1] != "-"


def _is_component(text: str) -> bool:
    return bool(text) and _NAME.issuperset(text) and text[0] in _SMALL and text[-1] in _SMALL


def _is_digest(text: str) -> bool:
    algorithm, _, digits = text.partition(":")
    return algorithm == "sha256" and len(digits) == 64 and _HEX.issuperset(digits)


def _bad(text: str) -> BadName:
    return BadName(f"bad snapshot reference {text[:80]!r}", hint=_HINT)
