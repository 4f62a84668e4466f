"""One component on the device at a time, the others on the CPU."""

from typing import Any, Protocol

import torch
from torch import nn

CPU = torch.device("cpu")


class Component(Protocol):
    """What can be moved; modules are."""

    def to(self, device: torch.device, /) -> Any: ...


class Offload:
    """Moves components to a device when they are used, and the one before back to the CPU.

    Args:
        device: Where components work.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._there: Component | None = None

    def add(self, component: nn.Module, *, when_called: bool = False) -> None:
        """Take charge of a module, which waits on the CPU.

        Args:
            component: The module.
            when_called: Move it when it is called. For others `use` is.
        """
        component.to(CPU)
        if when_called:
            component.register_forward_pre_hook(lambda *_: self.use(component))

    def use(self, component: Component) -> None:
        """Move a component to the device, and the one that was there away."""
        if self._there is component:
            return
        if self._there is not None:
            self._there.to(CPU)
        self._there = component
        component.to(self.device)
