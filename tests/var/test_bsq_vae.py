"""Infinity's autoencoder: sizes, key names, structure, precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_var import BSQ, bsq_vae, noise, randomised

from tts_vision.pipelines.var.bsq_vae import BSQVAE, VAES, BSQVAEConfig, Downsample, ResBlock, Upsample


@pytest.mark.parametrize(
    ("size", "encoder", "decoder", "stride", "bits"), [("2b", 45.0, 65.1, 16, 32), ("8b", 33.1, 48.5, 8, 56)]
)
def test_published_sizes(size, encoder, decoder, stride, bits):
    with torch.device("meta"):
        vae = BSQVAE(VAES[size])
    counts = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (vae.encoder, vae.decoder)]
    assert [round(count, 1) for count in counts] == [encoder, decoder]
    assert vae.config.stride == stride and vae.quantizer.bits == bits


def test_names_and_shapes():
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in BSQVAE(VAES["2b"]).state_dict().items()}
    for key, shape in {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.3.downsample.conv.weight": (512, 512, 3, 3),
        "encoder.mid.block_2.conv2.bias": (512,),
        "encoder.conv_out.weight": (32, 512, 3, 3),
        "decoder.conv_in.weight": (512, 32, 3, 3),
        "decoder.up.3.block.0.conv1.weight": (512, 512, 3, 3),
        "decoder.up.4.block.2.norm1.weight": (512,),
        "decoder.up.1.upsample.conv.bias": (256,),
        "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.norm_out.weight": (128,),
        "decoder.conv_out.weight": (3, 128, 3, 3),
    }.items():
        assert shapes[key] == shape, key
    assert not any("upsample" in key for key in shapes if ".up.0." in key)
    assert not any("attn" in key or "quant" in key for key in shapes)
    assert len({key.split(".")[4] for key in shapes if key.startswith("decoder.up.2.block")}) == 3
    assert len({key.split(".")[4] for key in shapes if key.startswith("encoder.down.2.block")}) == 2


def test_a_residual_block():
    block = randomised(ResBlock(8, 12, 4))
    x = noise(2, 8, 5, 5)
    h = F.group_norm(x, 4, block.norm1.weight, block.norm1.bias, 1e-6)
    h = F.conv2d(h * h.sigmoid(), block.conv1.weight, block.conv1.bias, padding=1)
    h = F.group_norm(h, 4, block.norm2.weight, block.norm2.bias, 1e-6)
    h = F.conv2d(h * h.sigmoid(), block.conv2.weight, block.conv2.bias, padding=1)
    shortcut = F.conv2d(x, block.nin_shortcut.weight, block.nin_shortcut.bias)
    assert torch.allclose(block(x), h + shortcut, atol=1e-5)
    assert not hasattr(ResBlock(8, 8, 4), "nin_shortcut")


def test_halving_pads_below_and_at_the_right():
    down = randomised(Downsample(1))
    x = torch.zeros(1, 1, 4, 4)
    x[..., 0, 0] = 1.0  # the first output sees it in the corner of its kernel
    got = down(x) - down.conv.bias
    assert got.shape == (1, 1, 2, 2)
    assert torch.allclose(got[0, 0], torch.stack((down.conv.weight[0, 0, 0, 0], *torch.zeros(3))).view(2, 2))


def test_doubling_repeats_cells():
    up = randomised(Upsample(2))
    x = noise(1, 2, 3, 3)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(up(x), up.conv(repeated), atol=1e-6)


def test_pixels_to_features_and_back():
    vae = bsq_vae()
    features = vae.encode(noise(2, 3, 16, 24))
    assert features.shape == (2, 8, 4, 6)
    drawn = vae.decode(5 * features)
    assert drawn.shape == (2, 3, 16, 24) and drawn.min() >= -1 and drawn.max() <= 1
    assert torch.allclose(vae.decode(5 * features[1:]), drawn[1:], atol=1e-5)


def test_features_of_another_size_are_decoded_too():
    assert bsq_vae().decode(noise(1, 8, 2, 3)).shape == (1, 3, 8, 12)


def test_half_precision_gives_pixels_in_full():
    vae = BSQVAE(BSQ)
    vae.load_state_dict(bsq_vae().state_dict())
    vae.to(torch.bfloat16)
    features = 0.1 * noise(1, 8, 4, 4)
    drawn, whole = vae.decode(features), bsq_vae().decode(features)
    assert drawn.dtype == torch.float32
    assert 0 < (drawn - whole).abs().max() < 0.2


def test_every_layer_takes_part():
    config = BSQVAEConfig(channels=4, width=8, multipliers=(1, 2), groups=4)
    vae = randomised(BSQVAE(config), seed=5).requires_grad_(True)
    vae.decoder(vae.encode(noise(1, 3, 8, 8))).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())
