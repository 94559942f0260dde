import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_backbones import rename_key, tiny_clip, tiny_dino, tiny_dinov2
from torch import nn

from samples import some_images
from tts_vision.errors import VerifierError
from tts_vision.verifiers._backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    dino_positions,
    dino_tokens,
    load_clip,
    load_dino,
    load_torchvision,
    standard_pixels,
)
from tts_vision.verifiers._weights import find_file

F32 = torch.float32


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dino(tmp_path_factory.mktemp("dino") / "tiny")


def cubic(row: list[float], at: float) -> float:
    """Cubic convolution (a = -0.75) of a row that repeats at its ends, at a place between its entries."""

    def weight(x: float) -> float:
        a, x = -0.75, abs(x)
        return (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4)

    near = range(math.floor(at) - 1, math.floor(at) + 3)
    return sum(row[min(max(i, 0), len(row) - 1)] * weight(at - i) for i in near)


def test_positions_of_another_grid_are_spaced_as_the_authors_space_them() -> None:
    row = torch.sin(torch.arange(14.0) ** 2).tolist()
    grid = torch.tensor(row).view(14, 1).expand(14, 14)
    positions = torch.cat((torch.tensor([-5.0]), grid.flatten())).view(1, -1, 1)
    found = dino_positions(positions, 20, 11)
    assert found.shape == (1, 1 + 20 * 11, 1) and found[0, 0, 0] == -5
    rows = found[0, 1:, 0].view(20, 11)
    expected = torch.tensor([cubic(row, (i + 0.5) * 14 / 20.1 - 0.5) for i in range(20)])
    assert torch.allclose(rows, expected[:, None].expand(-1, 11), atol=1e-4)
    by_size = torch.tensor([cubic(row, (i + 0.5) * 14 / 20 - 0.5) for i in range(20)])
    assert not torch.allclose(rows[:, 0], by_size, atol=1e-3)
    assert dino_positions(positions, 14, 14) is positions


def test_dino_takes_any_size_and_has_the_authors_epsilon(dino: Path) -> None:
    model = load_dino(str(dino), "x", F32)
    norms = [module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 5 and set(norms) == {1e-6}
    cls, patches = dino_tokens(model, torch.randn(2, 3, 40, 61))
    assert cls.shape == (2, 32) and patches.shape == (2, 5 * 7, 32)
    # at its own size, nothing is interpolated, and the result is transformers' own
    from transformers import ViTConfig, ViTModel

    config = ViTConfig.from_pretrained(dino, layer_norm_eps=1e-6)
    own = ViTModel.from_pretrained(dino, config=config, add_pooling_layer=False).eval()
    pixels = torch.randn(2, 3, 32, 32)
    expected = own(pixels).last_hidden_state
    cls, patches = dino_tokens(model, pixels)
    assert torch.allclose(cls, expected[:, 0], atol=1e-6)
    assert torch.allclose(patches, expected[:, 1:], atol=1e-6)
    # at another, the positions are those of the authors
    tokens = own.embeddings.patch_embeddings(torch.ones(1, 3, 32, 48))
    tokens = torch.cat((own.embeddings.cls_token, tokens), 1)
    tokens = tokens + dino_positions(own.embeddings.position_embeddings, 4, 6)
    assert torch.allclose(
        model.embeddings(torch.ones(1, 3, 32, 48), interpolate_pos_encoding=True), tokens, atol=1e-6
    )


def test_registers_are_no_patches(tmp_path: Path) -> None:
    model = load_dino(str(tiny_dinov2(tmp_path / "registers", registers=3)), "x", F32)
    pixels = torch.randn(1, 3, 56, 56)
    cls, patches = dino_tokens(model, pixels)
    tokens = model(pixels).last_hidden_state
    assert patches.shape == (1, 16, 32) and tokens.shape == (1, 20, 32)
    assert torch.equal(cls, tokens[:, 0]) and torch.equal(patches, tokens[:, 4:])


@pytest.mark.parametrize(
    ("make", "old"),
    [
        (tiny_dino, "layernorm.weight"),
        (tiny_dinov2, "embeddings.cls_token"),
        (tiny_clip, "visual_projection.weight"),
    ],
)
def test_a_renamed_key_is_named(make, old: str, tmp_path: Path) -> None:
    good = make(tmp_path / "good")
    bad = rename_key(good, tmp_path / "bad", old, "stranger.weight")
    load = load_clip if make is tiny_clip else load_dino
    load(str(good), "x", F32)
    with pytest.raises(VerifierError, match=f"1 missing .*{old}.* and 1 unexpected .*stranger.weight"):
        load(str(bad), "x", F32)


def test_other_families_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VerifierError, match=r"must be one of vit, dinov2, .* is clip"):
        load_dino(str(tiny_clip(tmp_path / "clip")), "x", F32)
    with pytest.raises(VerifierError, match="'x'"):
        load_dino("/nowhere", "x", F32)


def test_standard_pixels_are_those_of_pillow() -> None:
    image = some_images(1, size=(90, 60))[0]
    found = standard_pixels([image], resize=30, crop=24)
    array = np.asarray(image.resize((45, 30), Image.Resampling.BICUBIC), dtype=np.float32)[3:27, 10:34]
    expected = (array / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    assert found.shape == (1, 3, 24, 24)
    assert np.allclose(found[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert standard_pixels([Image.new("RGB", (1, 1))], resize=30, crop=24).shape == (1, 3, 24, 24)


def build(weights: None, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))


def test_torchvision_models_load_strictly_with_and_without_counters(tmp_path: Path) -> None:
    state = build(None).state_dict()
    state["1.running_mean"] = torch.arange(4.0)
    file = tmp_path / "published.pth"
    torch.save(state, file)
    address = "https://example.org/published.pth"
    model = load_torchvision(build, str(tmp_path), address, "x")  # a folder is searched
    assert torch.equal(model[1].running_mean, torch.arange(4.0)) and not model.training
    assert not any(p.requires_grad for p in model.parameters())
    del state["1.num_batches_tracked"]
    torch.save(state, file)
    pixels = torch.randn(1, 3, 8, 8)
    assert torch.equal(load_torchvision(build, str(file), address, "x")(pixels), model(pixels))
    with pytest.raises(VerifierError, match=r"'0.bias' is \(4,\) instead of \(5,\)"):
        load_torchvision(build, str(file), address, "x", width=5)
    state["1.mean"] = state.pop("1.running_mean")
    torch.save(state, file)
    with pytest.raises(VerifierError, match=r"1 missing \(1.running_mean\) and 1 unexpected \(1.mean\)"):
        load_torchvision(build, str(file), address, "x")


def test_addresses_are_files_of_the_cache_of_torch_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "weights-0123abcd.pth"
    with pytest.raises(VerifierError, match=r"'x' must load from 'https://127.0.0.1:9/"):
        find_file(f"https://127.0.0.1:9/{file.name}", file.name, "x")
    assert not file.exists()
    file.write_bytes(b"weights")
    assert find_file(f"https://127.0.0.1:9/{file.name}", file.name, "x") == file


def test_bicubic_positions_in_half_precision() -> None:
    positions = torch.randn(1, 17, 8)
    half = dino_positions(positions.bfloat16(), 5, 6)
    assert half.dtype == torch.bfloat16
    assert F.mse_loss(half.float(), dino_positions(positions, 5, 6)) < 1e-3
