"""What verbs print: data on stdout, as text or as JSON; prose and progress on stderr.

Nearly all of it comes from snapshots, and so from whoever made a pod: what could steer a terminal
is escaped here, in every line, whatever a verb hands over.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from shim.errors import ThawError

FORMATS = ("table", "json")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what every verb has: -o, -q, --config."""
    parser.add_argument(
        "-o", "--output", choices=FORMATS, default="table", help="default: %(default)s"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no prose and no progress")
    parser.add_argument(
        "--config", default="", metavar="FILE", help="instead of /etc/thaw/config.toml"
    )


def emit(
    args: argparse.Namespace, document: object, lines: Callable[[], Iterable[str]] | None = None
) -> None:
    """Print the data of a verb: `document` with -o json, `lines()` without.

    In a document dataclasses are objects and paths are text. Without `lines` it is JSON anyway.
    """
    if lines is None or args.output == "json":
        print(json.dumps(document, indent=1, default=_as_json))
        return
    for line in lines():
        print(plain(line))


def say(args: argparse.Namespace, text: str) -> None:
    """Print a line of prose, unless --quiet."""
    if not args.quiet:
        print(plain(text), file=sys.stderr)


def complain(verb: str, error: Exception) -> None:
    """Print an error as `thaw VERB: message (hint)`."""
    print(plain(f"thaw {verb}: {reason_of(error)}"), file=sys.stderr, flush=True)


def reason_of(error: Exception) -> str:
    """An error in one line: Thaw's own has its hint, the system's its file."""
    if isinstance(error, ThawError) or not isinstance(error, OSError) or not error.strerror:
        return str(error) or type(error).__name__
    files = [
        os.fsdecode(f) for f in (error.filename, error.filename2) if isinstance(f, str | bytes)
    ]
    return ": ".join([" → ".join(files), error.strerror] if files else [error.strerror])


def table(
    heads: Sequence[str], rows: Iterable[Sequence[object]], right: Collection[str] = ()
) -> list[str]:
    """Lines with aligned columns below their heads; those named in `right` end together."""
    cells = [list(heads), *([plain(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    ends = [head in right for head in heads]
    return ["  ".join(map(_padded, row, widths, ends)).rstrip() for row in cells]


def facts(pairs: Iterable[tuple[str, object]]) -> list[str]:
    """Lines `name  value`, aligned. A value that is a list or tuple has a line for each item."""
    found = [(name, _items(value)) for name, value in pairs]
    width = max((len(name) for name, _ in found), default=0)
    lines = []
    for name, items in found:
        for head, item in zip([name, *[""] * len(items)], items, strict=False):
            lines.append(f"{head:<{width}}  {plain(item)}".rstrip())
    return lines


def plain(text: str) -> str:
    """`text` with everything escaped that is not to be seen: controls, newlines, directions."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def size(count: float) -> str:
    """Bytes for people."""
    unit = 0
    while abs(count) >= 1023.95 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} B" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def rate(count: float, seconds: float) -> str:
    """Bytes per second for people."""
    return f"{size(count / seconds)}/s" if seconds > 0 else "-"


def duration(seconds: float) -> str:
    """A time span for people: two units at most."""
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{hours // 24} d"


def moment(when: float) -> str:
    """Seconds since the epoch as a date and time in UTC; `-` for 0."""
    if not when:
        return "-"
    try:
        return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "?"


def ago(when: float, now: float | None = None) -> str:
    """How long ago that was, in one unit; `-` for 0."""
    if not when:
        return "-"
    passed = (time.time() if now is None else now) - when
    if not 0 <= passed < 1e11:
        return moment(when)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if passed >= 2 * length:
            return f"{passed // length:.0f} {unit} ago"
    return f"{passed:.0f} s ago"


def _padded(cell: str, width: int, end: bool) -> str:
    return cell.rjust(width) if end else cell.ljust(width)


def _items(value: object) -> list[str]:
    if isinstance(value, list | tuple):
        return [str(item) for item in value] or ["-"]
    return [str(value) if value not in ("", None) else "-"]


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _as_json(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"a {type(value).__name__} is no data")
