r"""Overlay options that outgrow mount(2)'s one page of data.

A hundred layers with absolute paths do not fit. containerd's way, and ours, is to name the layers
relative to the folder they share and to mount from there. The newer mount API has `lowerdir+`
instead (since Linux 6.7), but it takes at most 255 bytes a path and is missing on the kernels that
most nodes run, so there is one way rather than two.

Paths arrive escaped as the kernel wants them (`\:` and `\,`) and are never changed but for their
common beginning.
"""

from __future__ import annotations

import os

from shim.errors import InvalidArgument

_SLACK = 512  # bytes short of a page at which containerd starts to use relative layers
_LOWER = "lowerdir="


def fit(kind: str, data: str) -> tuple[str, str]:
    """A folder to mount from ("": any) and the data for it.

    Raises InvalidArgument if it is longer than a page even so.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    folder = ""
    if kind == "overlay" and len(os.fsencode(data)) >= page - _SLACK:
        folder, data = _compact(data)
    length = len(os.fsencode(data))
    if length >= page:
        raise InvalidArgument(
            f"mount options of {length} bytes exceed one page", hint="too many or too long layers"
        )
    return folder, data


def _compact(data: str) -> tuple[str, str]:
    options = split(data, ",")
    for index, option in enumerate(options):
        if option.startswith(_LOWER):
            folder, layers = _shared(split(option.removeprefix(_LOWER), ":"))
            options[index] = _LOWER + ":".join(layers)
            return folder, ",".join(options)
    return "", data


def _shared(layers: list[str]) -> tuple[str, list[str]]:
    """The folder that all layers lie in, unescaped, and the layers relative to it."""
    named = [layer for layer in layers if layer]  # "::" starts the layers that hold data only
    if not named or not all(layer.startswith("/") for layer in named):
        return "", layers
    folder = os.path.commonpath([os.path.dirname(layer.rstrip("/")) for layer in named])
    prefix = folder.rstrip("/") + "/"
    return unescape(folder), [layer.removeprefix(prefix).lstrip("/") for layer in layers]


def split(text: str, separator: str) -> list[str]:
    """`text` cut at each separator that no backslash precedes."""
    parts, start, index = [], 0, 0
    while index < len(text):
        if text[index] == "\\":
            index += 1
        elif text[index] == separator:
            parts.append(text[start:index])
            start = index + 1
        index += 1
    return [*parts, text[start:]]


def unescape(text: str) -> str:
    """`text` with each backslash taken off the character that it protects."""
    out, protected = [], False
    for char in text:
        if char == "\\" and not protected:
            protected = True
            continue
        out.append(char)
        protected = False
    return "".join(out)
