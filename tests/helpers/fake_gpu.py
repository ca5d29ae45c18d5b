"""A GPU that computes nothing and knows which question would wait for it: torch's fake tensors of the device cuda."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastkd.models import norm
from helpers.stores import NORM

GPU = torch.device("cuda", 0)
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}
"""Operations whose result, or its shape, the host has to know before it goes on."""
VIEWS = (
    " view _unsafe_view permute t transpose expand select slice unsqueeze squeeze detach alias as_strided unbind split "
    "split_with_sizes _reshape_alias lift_fresh empty empty_like empty_strided new_empty new_empty_strided is_same_size "
    "sym_size resize_ set_ view_as diagonal chunk "
)
"""Operations that launch nothing."""


class Waited(AssertionError):
    """The host would have waited for the GPU."""


class NoWaits(TorchDispatchMode):
    """Raises where an operation waits for a GPU; counts those that launch something."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        self.is_strict = True

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """For the length of the block the host may wait."""
        self.is_strict = False
        try:
            yield
        finally:
            self.is_strict = True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = function._schema.name.split("::")[1], kwargs or {}
        by_mask = name.startswith(("index", "_index")) and any(
            isinstance(index, Tensor) and index.dtype == torch.bool
            for one in args[1:]
            for index in (one if isinstance(one, list | tuple) else [one])
        )
        if self.is_strict and (name in WAITING or by_mask):
            raise Waited(f"{function}")
        out = function(*args, **kwargs)
        if (
            self.is_strict
            and name in ("_to_copy", "copy_")
            and not (kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,)))
        ):
            other = args[0] if name == "_to_copy" else args[1]
            if out.device.type != other.device.type and out.numel() and other.ndim:
                raise Waited(f"{function} from {other.device} to {out.device}, blocking")
        if f" {name} " not in VIEWS:
            self.launched[name] += 1
        return out


class Event:
    """A CUDA event of which one of the last two steps may not be waited for."""

    recorded = 0

    def __init__(self, **_: Any) -> None:
        self.number = -1

    def record(self, stream: Any = None) -> None:
        Event.recorded += 1
        self.number = Event.recorded

    def synchronize(self) -> None:
        if Event.recorded - self.number < 2:
            raise Waited("an event of this step or the last one")


@contextmanager
def fake_gpu() -> Iterator[NoWaits]:
    """For the length of the block tensors of the device cuda are fake, and what waits for them raises `Waited`."""

    def refuse(*_: Any, **__: Any) -> None:
        raise Waited("torch.cuda.synchronize")

    future = torch.__future__
    before = future.get_overwrite_module_params_on_conversion(), future.get_swap_module_params_on_conversion()
    future.set_overwrite_module_params_on_conversion(True)
    future.set_swap_module_params_on_conversion(False)
    norm._constant.cache_clear()
    try:
        with ExitStack() as stack:
            for where, name, stub in (
                (torch.cuda, "Event", Event),
                (torch.cuda, "current_stream", lambda device=None: None),
                (torch.cuda, "synchronize", refuse),
                (torch.cuda, "is_current_stream_capturing", lambda: False),
                (torch.Tensor, "pin_memory", lambda tensor: tensor),
            ):
                stack.enter_context(patch.object(where, name, stub))
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            NORM.constants(GPU)  # sent once, by whichever step is first
            yield stack.enter_context(NoWaits())
    finally:
        norm._constant.cache_clear()
        future.set_overwrite_module_params_on_conversion(before[0])
        future.set_swap_module_params_on_conversion(before[1])


def moved(module: nn.Module) -> None:
    """Moves a module there, as it was made on the CPU."""
    with torch.utils._python_dispatch._disable_current_modes(), FakeTensorMode(allow_non_fake_inputs=True):
        module.to(GPU)


def without_backward(parameters: Callable[[], Iterator[nn.Parameter]]) -> Any:
    """Gradients of 0 in place of the backward pass, which asks for a driver even of fake tensors."""

    def give(loss: Tensor) -> None:
        assert loss.is_cuda
        for parameter in parameters():
            parameter.grad = torch.zeros_like(parameter)

    return patch.object(torch.Tensor, "backward", give)
