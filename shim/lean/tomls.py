"""TOML as in `tomllib`, without importing it for what a configuration usually is.

Bare and dotted keys, plain tables, strings without escapes, decimal numbers, true and false are
read here; for a document with anything else in it, or with a mistake, tomllib decides (25 ms and
3 MiB in each pod's shim).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    Value = str | int | float | bool

_BARE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_DIGITS = frozenset("0123456789")


class _Unusual(Exception):
    """Not for this parser."""


def loads(text: str) -> dict[str, object]:
    """The document as nested dictionaries. Raises ValueError, as tomllib does."""
    try:
        return _loads(text)
    except _Unusual:
        import tomllib

        return tomllib.loads(text)


def _loads(text: str) -> dict[str, object]:
    document: dict[str, object] = {}
    table, headers = document, set()
    dotted: set[int] = set()  # the identities of tables that dotted keys have made
    for raw in text.replace("\r\n", "\n").split("\n"):
        line = raw.strip(" \t")
        if not line or line.startswith("#"):
            _check(line[1:])
        elif line.startswith("["):
            header = _header(line)
            if header in headers:
                raise _Unusual
            headers.add(header)
            table = _table(document, header)
        else:
            key, value = _pair(line)
            *path, name = key.split(".")
            place = _below(table, path, dotted)
            if name in place:
                raise _Unusual
            place[name] = value
    return document


def _header(line: str) -> str:
    name, bracket, rest = line[1:].partition("]")
    _end(rest)
    if not bracket or not _BARE.issuperset(name) or not name:
        raise _Unusual
    return name


def _table(document: dict[str, object], name: str) -> dict[str, object]:
    if name in document:
        raise _Unusual
    table: dict[str, object] = {}
    document[name] = table
    return table


def _below(table: dict[str, object], path: list[str], dotted: set[int]) -> dict[str, object]:
    """The table that the beginning of a dotted key leads to; one with a header is another's."""
    for part in path:
        inner = table.get(part)
        if inner is None:
            inner = table[part] = {}
            dotted.add(id(inner))
        if not isinstance(inner, dict) or id(inner) not in dotted:
            raise _Unusual
        table = inner
    return table


def _pair(line: str) -> tuple[str, Value]:
    key, equals, rest = line.partition("=")
    key, rest = key.strip(" \t"), rest.strip(" \t")
    if not equals or not all(part and _BARE.issuperset(part) for part in key.split(".")):
        raise _Unusual
    return key, _string(rest) if rest.startswith('"') else _word(rest)


def _string(rest: str) -> str:
    value, quote, after = rest[1:].partition('"')
    if not quote or "\\" in value or (not value and after.startswith('"')):
        raise _Unusual
    _check(value)
    _end(after)
    return value


def _word(rest: str) -> Value:
    word, _, comment = rest.partition("#")
    _check(comment)
    word = word.strip(" \t")
    if word in ("true", "false"):
        return word == "true"
    whole, point, fraction = word.partition(".")
    digits = _DIGITS.issuperset(whole + fraction) and whole
    if not digits or (whole[0] == "0" and len(whole) > 1) or (point and not fraction):
        raise _Unusual
    return float(word) if point else int(whole)


def _end(rest: str) -> None:
    rest = rest.strip(" \t")
    if rest and not rest.startswith("#"):
        raise _Unusual
    _check(rest[1:])


def _check(text: str) -> None:
    """Control characters are a mistake wherever they stand."""
    if not text.isprintable() and any((c < " " and c != "\t") or c == "\x7f" for c in text):
        raise _Unusual
