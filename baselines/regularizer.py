"""Regularisers: what is added to the fine-tuning loss. One module each, found by name, as methods are.

A regulariser and a method that filters can be combined (``method=larf regularizer=vcl``).
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch

from baselines.losses import Batch, Supervised
from eval.errors import UnknownNameError

MODULES = {
    "none": "baselines.regularizer",
    "vcl": "baselines.vcl",
}

_REGULARIZERS: dict[str, type["Regularizer"]] = {}


@dataclass(frozen=True, kw_only=True)
class Regularizer(ABC):
    """Base of all regularisers: frozen keyword-only dataclasses whose fields are the options of
    ``conf/regularizer/<name>.yaml``.

    ``hidden_states``: whether ``auxiliary_loss`` reads ``out.hidden_states``, which costs memory.
    """

    name: ClassVar[str]
    hidden_states: ClassVar[bool] = True
    version: ClassVar[str] = "1"  # changes whenever the loss could

    @abstractmethod
    def auxiliary_loss(self, model: Any, batch: Batch, out: Supervised) -> torch.Tensor:
        """What a forward pass adds to its loss: a scalar, float32, in the units of the loss (nats).

        Args:
            model: the model in training, with its adapters.
            batch: the pass's conversations, [batch, time].
            out: the pass's results, with all hidden states where ``hidden_states`` asks for them.
        """

    def report(self) -> dict[str, Any]:
        """What it has to say after training, as JSON values. Called on every process of the group, if there is one."""
        return {}

    def go_on_from(self, report: Mapping[str, Any]) -> None:
        """Count on from what ``report`` said when a training, now taken up again, was stopped."""
        return


R = TypeVar("R", bound=type[Regularizer])


def register_regularizer(name: str) -> Callable[[R], R]:
    """Class decorator.

    Raises:
        ValueError: a second class under one name.
    """

    def add(cls: R) -> R:
        known = _REGULARIZERS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"regularizer {name!r} is already {known.__module__}.{known.__qualname__}")
        cls.name = name
        _REGULARIZERS[name] = cls
        return cls

    return add


def regularizer_names() -> list[str]:
    return sorted({*MODULES, *_REGULARIZERS})


def get_regularizer(name: str) -> type[Regularizer]:
    """The class registered as ``name``.

    Raises:
        UnknownNameError: no such regulariser; near matches are named.
    """
    if name not in _REGULARIZERS and name in MODULES:
        importlib.import_module(MODULES[name])
    if name not in _REGULARIZERS:
        raise UnknownNameError("regularizer", name, regularizer_names())
    return _REGULARIZERS[name]


def build_regularizer(name: str, options: dict[str, Any]) -> Regularizer:
    """The regulariser ``name`` with ``options``.

    Raises:
        UnknownNameError: no such regulariser, or an option that it does not read.
    """
    cls = get_regularizer(name)
    known = {f.name for f in fields(cls)}
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of regularizer {name!r}:", option, known or {"(none)"})
    return cls(**options)


@register_regularizer("none")
@dataclass(frozen=True, kw_only=True)
class Unregularized(Regularizer):
    """The fine-tuning loss alone."""

    hidden_states: ClassVar[bool] = False

    def auxiliary_loss(self, model: Any, batch: Batch, out: Supervised) -> torch.Tensor:
        return out.logits.new_zeros(())
