"""JSON as in `json`, on its C accelerator alone.

`_json` is private to CPython, so everything is tried once on import and the package is used where
it has changed. Errors are ValueError in both cases.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SPACE = " \t\n\r"


class _Context:
    """What the scanner looks up: json.JSONDecoder's attributes."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}  # noqa: RUF012 - the scanner clears it after each document

    @staticmethod
    def parse_constant(name: str) -> float:
        """NaN and the infinities are not JSON."""
        raise ValueError(f"{name} is not JSON")


def _lean() -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    from _json import encode_basestring_ascii, make_encoder, make_scanner

    scan = make_scanner(_Context)  # type: ignore[arg-type]
    chunks = make_encoder(
        None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, False
    )

    def load(text: str) -> Any:
        text = text.strip(_SPACE)
        try:
            value, end = scan(text, 0)
        except (StopIteration, SystemError, RecursionError):
            # The scanner can only complain with the package's help: let that say what is wrong.
            return _standard()[0](text)
        if end != len(text):
            raise ValueError(f"something follows the JSON value at character {end}")
        return value

    def dump(value: Any) -> str:
        # Only containers go through the encoder: it is what json.dumps does for the others.
        return "".join(chunks([value], 0))[1:-1]

    probe = {"a": [1, 2.5, "\u00fc\n", None, True, {}]}
    if load(dump(probe)) != probe:
        raise ImportError("_json has changed")
    return load, dump


def _standard() -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    import json

    return json.loads, lambda value: json.dumps(value, separators=(",", ":"))


def _refuse(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} is not JSON")


try:
    _load, _dump = _lean()
except Exception:  # noqa: BLE001 - whatever a newer CPython changed, the package works
    _load, _dump = _standard()


def loads(data: bytes | str) -> Any:
    """The value of a JSON document. Raises ValueError."""
    return _load(data.decode("utf-8") if isinstance(data, bytes) else data)


def dumps(value: Any) -> bytes:
    """A JSON document, compact, in ASCII."""
    return _dump(value).encode()
