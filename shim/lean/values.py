"""Frozen values of named fields: dataclasses without the functions compiled for each of them.

`@dataclass(frozen=True)` writes the source of seven functions and compiles it, for each class that
is defined: 0.9 ms for ten fields (CPython 3.11), where a `Value` takes 0.1. An engine imports
forty of them while a container waits for its restore. The fields are dataclasses' own, so that
`replace`, `fields` and `asdict` work; of the options there are defaults and `repr`.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field
from typing import Any, ClassVar, NoReturn, dataclass_transform


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Value:
    """What is annotated in a class below this one are its fields, in their order."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls) -> None:
        dataclass(init=False, repr=False, eq=False)(cls)

    def __init__(self, *args: Any, **given: Any) -> None:
        fields = self.__dataclass_fields__
        values = vars(self)
        values.update(zip(fields, args, strict=False))
        for name in list(fields)[len(args) :]:
            values[name] = given.pop(name) if name in given else self._default(fields[name])
        if given or len(args) > len(fields):
            more = ", ".join(given) or f"{len(args)} values"
            raise TypeError(f"{type(self).__qualname__}: {more}, and not {', '.join(fields)}")

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        shown = (name for name, found in self.__dataclass_fields__.items() if found.repr)
        words = (f"{name}={getattr(self, name)!r}" for name in shown)
        return f"{type(self).__qualname__}({', '.join(words)})"

    def __setattr__(self, name: str, _value: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def _default(self, found: Field[Any]) -> Any:
        if found.default_factory is not MISSING:
            return found.default_factory()
        if found.default is MISSING:
            raise TypeError(f"{type(self).__qualname__}: {found.name} is missing")
        return found.default
