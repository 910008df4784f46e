"""Methods by name. Modules are imported when their method is asked for, so that ``--help`` loads no torch."""

import importlib
from collections.abc import Callable
from typing import TypeVar

from eval.errors import UnknownNameError

MODULES = {
    "none": "baselines.references",
    "full": "baselines.references",
    "random": "baselines.random_choice",
    "length": "baselines.response_length",
    "larf": "baselines.larf",
    "vcl": "baselines.references",
    "system_prompt": "baselines.system_prompt",
    "vector_ablation": "baselines.vector_ablation",
    "self_cd": "baselines.self_cd",
    "gradsafe": "baselines.gradsafe",
    "bi_anchoring": "baselines.bi_anchoring",
    "representation_matching": "baselines.representation_matching",
    "seal": "baselines.seal",
}

_METHODS: dict[str, type] = {}
T = TypeVar("T", bound=type)


def register(name: str) -> Callable[[T], T]:
    """Class decorator. A second class under one name is an error."""

    def add(cls: T) -> T:
        known = _METHODS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"method {name!r} is already {known.__module__}.{known.__qualname__}")
        cls.name = name  # type: ignore[attr-defined]
        _METHODS[name] = cls
        return cls

    return add


def method_names() -> list[str]:
    return sorted({*MODULES, *_METHODS})


def get_method(name: str) -> type:
    """The class registered as ``name``.

    Raises:
        UnknownNameError: no such method; near matches are named.
    """
    if name not in _METHODS and name in MODULES:
        importlib.import_module(MODULES[name])
    if name not in _METHODS:
        raise UnknownNameError("method", name, method_names())
    return _METHODS[name]
