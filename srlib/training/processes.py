"""Several processes, one run: each draws its share of a batch, and gradients are averaged before every step.

The parts of a model are called from many places (an encoder here, a decoder there), which a wrapper around one forward
pass does not see. So what the processes have to agree on is said here: gradients, what is fitted, and the clock.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

from srlib.errors import SrlibError


class Processes:
    """What one of `count` processes has to know of the others; alone, nothing here does anything."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.count, self.index = accelerator.num_processes, accelerator.process_index

    @property
    def first(self) -> bool:
        """Whether this process validates, logs and saves for all."""
        return self.index == 0

    def check(self, batch_size: int) -> None:
        """Refuse a batch that cannot be shared evenly."""
        if batch_size % self.count:
            hint = "choose a batch_size that is a multiple of their number"
            raise SrlibError(f"A batch of {batch_size} cannot be shared among {self.count} processes: {hint}.")

    def average_gradients(self, module: nn.Module) -> None:
        """Give all processes the mean of their gradients."""
        if self.count == 1:
            return
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        mean = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
        for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def take_from_first(self, modules: Iterable[nn.Module]) -> None:
        """Give all processes the first one's parameters and buffers."""
        if self.count == 1:
            return
        with torch.no_grad():
            for module in modules:
                for value in (*module.parameters(), *module.buffers()):
                    value.copy_(broadcast(value.detach().clone()))

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean over the processes."""
        return value if self.count == 1 else self.accelerator.reduce(value, reduction="mean")

    def agreed(self, seconds: float) -> float:
        """The first process's clock: all have to end at the same step."""
        if self.count == 1:
            return seconds
        return broadcast(torch.tensor(seconds, dtype=torch.float64, device=self.accelerator.device)).item()

    def wait(self) -> None:
        """Until all are here."""
        self.accelerator.wait_for_everyone()
