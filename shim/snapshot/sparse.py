"""Where the data of a sparse file in a tar belongs: its map, whichever way GNU tar writes it.

A map is the one thing by which a small archive can fill much memory, so numbers are kept as such,
in 16 bytes for each region, and no more of them are read than the archive may still have.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from shim.snapshot.tarfields import decimal, number

MOST = 1 << 20  # regions of all files of an archive: 4 GiB of single pages with holes between them

_SLICE = 64 << 10  # bytes of a list that are split at once


class Regions:
    """(offset, length) of the data in a file, one after another; no more than `most`.

    They are in order and do not overlap, and only the last one may be empty: GNU tar says by that
    one how long a file is that ends with a hole.
    """

    __slots__ = ("_end", "_most", "_numbers")

    def __init__(self, pairs: Iterable[tuple[int, int]] = (), most: int = MOST) -> None:
        self._numbers = array("q")
        self._end = 0
        self._most = most
        for pair in pairs:
            self.add(pair)

    def add(self, numbers: Iterable[int]) -> None:
        """Take offsets and lengths by turns. Raises ValueError at what can be no map."""
        found, end, most = self._numbers, self._end, 2 * self._most
        for value in numbers:
            if len(found) >= most:
                raise ValueError("too many regions in sparse files")
            if len(found) % 2:
                end += value
            else:
                if value < end:
                    raise ValueError("regions of a sparse file out of order")
                if found and not found[-1]:
                    raise ValueError("an empty region in a sparse file")
                end = value
            found.append(value)
        self._end = end

    @property
    def numbers(self) -> int:
        """How many offsets and lengths there are: one more offset while a region is incomplete."""
        return len(self._numbers)

    def check(self, size: int, stored: int) -> None:
        """Raise ValueError if it is no map of `stored` bytes in a file of `size` bytes."""
        self.check_whole()
        if self._end > size or sum(self._numbers[1::2]) != stored:
            raise ValueError("regions of a sparse file that are not its data")

    def check_whole(self) -> None:
        """Raise ValueError if the last region has no length."""
        if len(self._numbers) % 2:
            raise ValueError("a bad map of a sparse file")

    def __iter__(self) -> Iterator[tuple[int, int]]:
        numbers = iter(self._numbers)
        return zip(numbers, numbers, strict=True)

    def __len__(self) -> int:
        return len(self._numbers) // 2

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Regions) and self._numbers == other._numbers

    def __hash__(self) -> int:
        return hash(self._numbers.tobytes())


def listed(text: bytes, separator: bytes) -> Iterator[int]:
    """The numbers of a list, of which only a slice is taken apart at a time. Raises ValueError."""
    at = 0
    while at <= len(text):
        end = text.find(separator, at + _SLICE)
        end = len(text) if end < 0 else end
        yield from map(decimal, text[at:end].split(separator))
        at = end + 1


def old_entries(block: bytes, start: int, count: int) -> Iterator[int]:
    """The regions in a block of GNU's own format: src/sparse.c of GNU tar. Raises ValueError."""
    for position in range(start, start + 24 * count, 24):
        entry = block[position : position + 24]
        if not entry[0]:
            return
        yield number(entry[:12])
        yield number(entry[12:])
