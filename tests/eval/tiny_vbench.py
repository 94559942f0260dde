"""Tiny random models of all native dimensions, saved as the published ones are."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_backbones import tiny_clip, tiny_dino
from tiny_viclip import tiny_viclip

HEAD = "sa_0_4_vit_l_14_linear.pth"
RAFT = "raft_large_C_T_V1-22a6c225.pth"


def spread(folder: Path) -> Path:
    """Adds noise to the weights of a saved model, so that frames look different to it."""
    generator = torch.Generator().manual_seed(0)
    file = folder / "model.safetensors"
    state = load_file(file)
    for key, value in state.items():
        if value.is_floating_point() and value.ndim:
            state[key] = value + 0.3 * torch.randn(value.shape, generator=generator)
    save_file(state, file, metadata={"format": "pt"})
    return folder


def tiny_weights(folder: Path) -> dict[str, str]:
    """The settings ``weights`` of an evaluator with tiny models."""
    from torchvision.models.optical_flow import raft_large

    spread(tiny_dino(folder / "dino"))
    spread(tiny_clip(folder / "clip"))
    tiny_viclip(folder / "viclip")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save({"weight": torch.randn(1, 16), "bias": torch.randn(1)}, folder / HEAD)
        torch.save(raft_large(weights=None).state_dict(), folder / RAFT)
    return {
        "dino": str(folder / "dino"),
        "clip_b32": str(folder / "clip"),
        "clip_l14": str(folder / "clip"),
        "aesthetic": str(folder / HEAD),
        "viclip": str(folder / "viclip"),
        "raft": str(folder / RAFT),
    }
