"""Variants of a shipped model as differences to it: 8 bits a value, a scale for each row, half the size of weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

_LONG_ROW = 64  # values; shorter last dimensions (of convolutions) share a scale with those before


def save_difference(
    variant: Mapping[str, nn.Module], whole: Mapping[str, nn.Module], path: Path, shared: Collection[str] = ()
) -> None:
    """Write what turns the parts `{name: module}` of a whole model into those of its variant, to one safetensors.

    `shared` names tensors (`part.name`) that are left as the whole model has them.
    """
    stored: dict[str, torch.Tensor] = {}
    for part, module in variant.items():
        reference = whole[part].state_dict()
        for name, value in module.state_dict().items():
            if f"{part}.{name}" in shared:
                continue
            rows = _rows(value.float() - reference[name].float())
            scale = (rows.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
            stored[f"{part}.{name}"] = torch.round(rows / scale).to(torch.int8)
            stored[f"{part}.{name}:scale"] = scale[:, 0]
    save_file(stored, path)


@torch.no_grad()
def apply_difference(whole: Mapping[str, nn.Module], path: Path) -> None:
    """Turn the parts of a whole model into those of the variant that `save_difference` wrote."""
    stored = load_file(path)
    for part in {key.partition(".")[0] for key in stored}:
        for name, value in whole[part].state_dict().items():
            if f"{part}.{name}" not in stored:
                continue
            rows, scale = stored[f"{part}.{name}"], stored[f"{part}.{name}:scale"]
            difference = (rows.float() * scale[:, None]).view_as(value).to(value.device)
            value.copy_(value.float() + difference)


def _rows(values: torch.Tensor) -> torch.Tensor:
    """`[rows, values]` that share a scale each."""
    if values.ndim < 2:
        return values.reshape(1, -1)
    return values.reshape(-1, values.shape[-1]) if values.shape[-1] >= _LONG_ROW else values.flatten(1)
