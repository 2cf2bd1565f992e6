"""What the tables' cells and lines look like."""

from __future__ import annotations

from collections.abc import Sequence

GIB = 1 << 30
Row = tuple[str, ...]


def markdown(rows: Sequence[Row]) -> list[str]:
    """A table; the first row is its head, and columns of numbers stand on the right."""
    head, *body = rows
    ends = ["--:" if all(map(_is_number, column)) else "---" for column in zip(*body, strict=True)]
    return [_line(head), _line(ends), *map(_line, body)]


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def gib(size: float | None) -> str:
    """Of bytes."""
    return "-" if size is None else f"{size / GIB:.1f}"


def rate(size: float | None, took: float | None) -> float | None:
    """GiB/s, of bytes and seconds."""
    return size / GIB / took if size and took else None


def of(value: float | None, ceiling: float | None) -> str:
    """A number, and what part of the best possible one it is."""
    if value is None:
        return "-"
    return f"{value:.1f}" + (f" ({value / ceiling:.0%})" if ceiling else "")


def ratio(theirs: float | None, ours: float | None) -> str:
    return f"{theirs / ours:.1f} \u00d7" if theirs and ours else "-"


def _is_number(cell: str) -> bool:
    return cell == "-" or cell[:1].isdigit()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
