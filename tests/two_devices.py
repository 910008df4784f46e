"""Two devices that are none: tensors that compute on the CPU, say that they are on ``meta:0`` or ``meta:1``, and refuse
to meet tensors of the other, or of the CPU, as those of two GPUs do. For models that a device map spreads."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

_OF_ITSELF = (torch.ops.aten.copy_.default,)  # may read from another device


class OnDevice(torch.Tensor):
    """``values``, a CPU tensor, as one of device ``index``."""

    values: torch.Tensor
    index: int

    @staticmethod
    def __new__(cls, values: torch.Tensor, index: int) -> "OnDevice":
        made = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            device=torch.device("meta", index),
        )  # fmt: skip
        made.values, made.index = values, index
        return made

    def __init__(self, values: torch.Tensor, index: int):
        pass

    def __repr__(self) -> str:
        return f"device {self.index}: {self.values}"

    def tolist(self) -> Any:
        return self.values.tolist()

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def two_devices() -> Iterator[None]:
    """Within, new tensors asked for on ``meta:0`` or ``meta:1`` are of these devices."""
    with _Operations(), _Numbers():
        yield


class _Numbers(TorchFunctionMode):
    """``torch.tensor`` fills its tensor where no dispatch mode sees it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return torch.tensor(*args, **kwargs).to(device)
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours = [x for x in tensors if isinstance(x, OnDevice)]
    asked = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.device)]
    if asked:
        place = asked[0].index if asked[0].type == "meta" else None
    elif func in _OF_ITSELF:
        place = args[0].index if isinstance(args[0], OnDevice) else None
    else:
        places = {x.index for x in ours}
        elsewhere = [x for x in tensors if not isinstance(x, OnDevice) and x.dim()]  # single numbers may be the CPU's
        if len(places) > 1 or (ours and elsewhere):
            raise RuntimeError(f"{func}: tensors of two devices: {[x.device for x in tensors]}")
        place = places.pop() if places else None
    out = func(*tree_map(_values, args), **tree_map(_values, kwargs))
    if place is None:
        return out
    known = {id(x.values): x for x in ours if x.index == place}  # what is changed in place stays the tensor that it was

    def placed(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return known[id(x)] if id(x) in known else OnDevice(x, place)

    return tree_map(placed, out)


def _values(x: Any) -> Any:
    if isinstance(x, torch.device):
        return torch.device("cpu")
    return x.values if isinstance(x, OnDevice) else x


def spread(model: Any, second: tuple[str, ...], patch: pytest.MonkeyPatch) -> Any:
    """``model``, changed: its modules whose names begin with one of ``second`` on device 1, the others on device 0, and
    accelerate's hooks, as its ``dispatch_model`` puts them, to bring tensors to where they are needed."""
    import accelerate.hooks

    def device(name: str) -> torch.device:
        return torch.device("meta", int(name.startswith(second)))

    placed: dict[int, nn.Parameter] = {}  # a tied matrix is one tensor
    for name, module in list(model.named_modules()):
        for key, parameter in list(module._parameters.items()):
            if parameter is not None:
                there = OnDevice(parameter.data, device(name).index)
                module._parameters[key] = placed.setdefault(id(parameter), nn.Parameter(there))
        for key, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[key] = OnDevice(buffer, device(name).index)
    blocks = [f"model.layers.{n}" for n in range(len(model.model.layers))]
    places = {
        name: device(name) for name in ("model.embed_tokens", "model.rotary_emb", *blocks, "model.norm", "lm_head")
    }
    # It would move the weights, which lie where they belong.
    patch.setattr(accelerate.hooks, "set_module_tensor_to_device", lambda *args, **kwargs: None)
    accelerate.hooks.attach_align_device_hook_on_blocks(
        model, execution_device={**places, "": torch.device("meta", 0)}, offload=dict.fromkeys(places, False)
    )
    return model
