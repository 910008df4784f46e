"""A class from a mapping: every key read, every value of its field's type."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from eval.errors import KeelBenchError, UnknownNameError


def build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """``cls`` from ``values``, every key read, every value of its field's type."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    refuse_unknown(values, set(fields), f"{where} setting")
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise KeelBenchError(f"{where}: missing {', '.join(missing)}")
    return cls(**{k: checked(hints[k], v, f"{where}.{k}") for k, v in values.items()})


def refuse_unknown(values: Mapping[str, Any], known: set[str], kind: str) -> None:
    """
    Raises:
        UnknownNameError: a key that nothing reads.
    """
    for key in values:
        if key not in known:
            raise UnknownNameError(kind, str(key), known)


def checked(hint: Any, value: Any, where: str) -> Any:
    """``value`` as ``hint`` allows: lists become tuples, whole numbers floats; nothing else is converted."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        for option in options:
            if option is not type(None):
                try:
                    return checked(option, value, where)
                except KeelBenchError:
                    continue
        raise KeelBenchError(f"{where}={value!r}: expected {hint}")
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise KeelBenchError(f"{where}={value!r}: one of {', '.join(map(str, typing.get_args(hint)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise KeelBenchError(f"{where}={value!r}: expected a list")
        return tuple(checked(typing.get_args(hint)[0], v, where) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    wrong = not isinstance(value, expected) or (isinstance(value, bool) and expected is int)
    if wrong:
        raise KeelBenchError(f"{where}={value!r}: expected {getattr(expected, '__name__', expected)}")
    return value


def tupled(value: Any) -> Any:
    """``value``; a list as a tuple."""
    return tuple(value) if isinstance(value, list) else value
