"""Words in braces, as in {pod}: what a template of pods cannot know of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_WORD = re.compile(r"\{(\w+)\}")


def filled(text: str, identity: Mapping[str, Any], quote: Callable[[str], str] = str) -> str:
    """The text with every word replaced by what the identity says; {ip} is its first address.

    Which words there can be, conduct.py has checked.
    """
    known = {**identity, "ip": next(iter(identity["ips"]), "")}
    return _WORD.sub(lambda found: quote(str(known[found[1]])), text)
