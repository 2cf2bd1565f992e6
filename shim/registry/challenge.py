"""What a registry wants to see first: the header WWW-Authenticate (RFC 9110, 11.6.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass

# A scheme is a word that no `=` follows; a parameter a word, `=`, and a word or a quoted text.
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_ITEM = re.compile(
    rf'[\s,]*(?:(?P<name>{_WORD})\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s,"]+))'
    rf"|(?P<scheme>{_WORD})(?=[\s,]|$))"
)
_LONGEST = 8192


@dataclass(frozen=True)
class Challenge:
    """One way to say who we are: `scheme` in small letters, parameters by name in small letters."""

    scheme: str
    parameters: dict[str, str]


def parse(header: str) -> list[Challenge]:
    """All challenges of a header (or of several, with commas between them) that can be read."""
    found: list[Challenge] = []
    position = 0
    header = header[:_LONGEST]
    while item := _ITEM.match(header, position):
        position = item.end()
        if item["scheme"]:
            found.append(Challenge(item["scheme"].lower(), {}))
        elif found:
            value = item["plain"] or re.sub(r"\\(.)", r"\1", item["quoted"] or "")
            found[-1].parameters.setdefault(item["name"].lower(), value)
    return found
