"""VAR's tokenizer: key names, sizes, the residual quantiser over scales, attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_var import VAR_SCHEDULE, VQ, noise, randomised, vqvae

from tts_vision.pipelines.var.bsq_vae import Attention
from tts_vision.pipelines.var.schedules import Schedule
from tts_vision.pipelines.var.vqvae import VQVAE, VQVAEConfig, phi_of_scale

STARTS = VAR_SCHEDULE.starts


def some_ids(n: int = 2) -> torch.Tensor:
    return torch.randint(40, (n, STARTS[-1]), generator=torch.Generator().manual_seed(7))


def test_the_published_size_and_names():
    with torch.device("meta"):
        vae = VQVAE()
    assert round(sum(p.numel() for p in vae.parameters()) / 1e6, 1) == 108.9
    assert vae.config.stride == 16
    shapes = {key: tuple(value.shape) for key, value in vae.state_dict().items()}
    for key, shape in {
        "quantize.embedding.weight": (4096, 32),
        "quantize.quant_resi.qresi_ls.3.weight": (32, 32, 3, 3),
        "quant_conv.weight": (32, 32, 3, 3),
        "post_quant_conv.bias": (32,),
        "encoder.conv_in.weight": (160, 3, 3, 3),
        "encoder.down.0.downsample.conv.weight": (160, 160, 3, 3),
        "encoder.down.2.block.0.nin_shortcut.weight": (320, 160, 1, 1),
        "encoder.down.4.attn.1.qkv.weight": (1920, 640, 1, 1),
        "encoder.mid.attn_1.proj_out.bias": (640,),
        "decoder.mid.block_2.norm2.weight": (640,),
        "decoder.up.4.attn.2.norm.weight": (640,),
        "decoder.up.1.upsample.conv.bias": (160,),
        "decoder.conv_out.weight": (3, 160, 3, 3),
    }.items():
        assert shapes[key] == shape, key
    assert not any("attn" in key for key in shapes if ".down.3." in key or ".up.3." in key)
    assert not any("downsample" in key for key in shapes if ".down.4." in key)


def test_the_convolutions_of_ten_scales():
    assert [phi_of_scale(k, 10, 4) for k in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert phi_of_scale(0, 1, 4) == 0
    assert [phi_of_scale(k, 5, 1) for k in range(5)] == [0] * 5


def test_a_scale_adds_its_embedding_at_full_size_half_of_it_smoothed():
    quantizer = vqvae().quantizer
    ids = some_ids()[:, STARTS[2] : STARTS[3]]
    grown = F.interpolate(
        quantizer.embedding.weight[ids].transpose(1, 2).reshape(2, 8, 3, 3), (6, 6), mode="bicubic"
    )
    phi = quantizer.quant_resi["qresi_ls"][phi_of_scale(2, 5, 4)]
    expected = 0.5 * grown + 0.5 * F.conv2d(grown, phi.weight, phi.bias, padding=1)
    assert torch.allclose(quantizer.contribution(ids, VAR_SCHEDULE, 2), expected, atol=1e-6)


def test_the_last_scale_is_smoothed_too():
    quantizer = vqvae().quantizer
    ids = some_ids()[:, STARTS[4] :]
    codes = quantizer.codes(ids, (6, 6))
    assert torch.equal(codes[1, :, 2, 3], quantizer.embedding.weight[ids[1, 2 * 6 + 3]])
    phi = quantizer.quant_resi["qresi_ls"][3]
    expected = 0.5 * codes + 0.5 * phi(codes)
    assert torch.allclose(quantizer.contribution(ids, VAR_SCHEDULE, 4), expected, atol=1e-6)


def test_sums_are_new_tensors():
    quantizer, ids = vqvae().quantizer, some_ids()
    before = quantizer.summed(ids, VAR_SCHEDULE, 2)
    kept = before.clone()
    after = quantizer.added(before, ids[:, STARTS[2] : STARTS[3]], VAR_SCHEDULE, 2)
    assert torch.equal(before, kept)
    assert torch.equal(after, quantizer.summed(ids, VAR_SCHEDULE, 3))
    assert torch.equal(quantizer.summed(ids, VAR_SCHEDULE, 0), quantizer.empty(2, VAR_SCHEDULE))


def test_the_next_input_is_the_mean_over_cells():
    quantizer, features = vqvae().quantizer, noise(2, 8, 6, 6)
    got = quantizer.next_input(features, (3, 3))
    assert torch.allclose(got[0, 4], features[0, :, 2:4, 2:4].mean((1, 2)), atol=1e-6)
    assert torch.equal(quantizer.next_input(features, (6, 6)), features.flatten(2).transpose(1, 2))


def test_the_nearest_embedding():
    quantizer = vqvae().quantizer
    vectors = noise(3, 5, 8, seed=8)
    distance = (vectors[..., None, :] - quantizer.embedding.weight).norm(dim=-1)
    assert torch.equal(quantizer.nearest(vectors), distance.argmin(-1))
    assert torch.equal(quantizer.nearest(quantizer.embedding.weight), torch.arange(40))


def test_encoding_gives_the_sum_and_inputs_that_its_ids_give():
    quantizer, features = vqvae().quantizer, noise(2, 8, 6, 6, seed=9)
    ids, inputs, total = quantizer.encode(features, VAR_SCHEDULE)
    assert ids.shape == (2, STARTS[-1]) and inputs.shape == (2, STARTS[-1] - 1, 8)
    assert torch.allclose(total, quantizer.summed(ids, VAR_SCHEDULE, 5), atol=1e-6)
    for k in range(1, 5):
        expected = quantizer.next_input(quantizer.summed(ids, VAR_SCHEDULE, k), VAR_SCHEDULE.grids[k])
        assert torch.allclose(inputs[:, STARTS[k] - 1 : STARTS[k + 1] - 1], expected, atol=1e-6)
    rest = features - quantizer.summed(ids, VAR_SCHEDULE, 3)
    nearest = quantizer.nearest(quantizer.next_input(rest, (5, 5)))
    assert torch.equal(ids[:, STARTS[3] : STARTS[4]], nearest)


def test_ids_that_made_a_map_of_one_scale_are_found_again():
    vae = vqvae()
    for phi in vae.quantizer.quant_resi["qresi_ls"]:  # no smoothing: half of it and half of it
        phi.weight.copy_(torch.eye(8)[..., None, None] * torch.tensor([[0, 0, 0], [0, 1.0, 0], [0, 0, 0]]))
        phi.bias.zero_()
    schedule = Schedule(((1, 1), (4, 4)), (4, 4))
    ids = some_ids(1)[:, :17]
    ids[:, 0] = 0
    vae.quantizer.embedding.weight[0] = 0  # the coarse scale adds nothing
    features = vae.quantizer.summed(ids, schedule, 2)
    features = (
        features - features.mean((2, 3), keepdim=True) + vae.quantizer.embedding.weight[0].view(1, 8, 1, 1)
    )
    again, _, _ = vae.quantizer.encode(features, schedule)
    fine = vae.quantizer.nearest(features.flatten(2).transpose(1, 2))
    assert again[0, 0] == 0 and torch.equal(again[:, 1:], fine)


def test_attention_between_cells():
    attention = randomised(Attention(8, 4), seed=10)
    x = noise(2, 8, 3, 5)
    q, k, v = attention.qkv(attention.norm(x)).reshape(2, 3, 8, 15).unbind(1)
    weights = (q.transpose(1, 2) @ k * 8**-0.5).softmax(-1)
    h = (v @ weights.transpose(1, 2)).reshape(2, 8, 3, 5)
    assert torch.allclose(attention(x), x + attention.proj_out(h), atol=1e-5)


def test_pixels_to_features_and_back():
    vae = vqvae()
    pixels = noise(2, 3, 24, 24).clamp(-1, 1)
    features = vae.encode(pixels)
    assert features.shape == (2, 8, 6, 6)
    drawn = vae.decode(features)
    assert drawn.shape == pixels.shape and drawn.abs().max() <= 1
    assert torch.allclose(vae.decode(features[:1]), drawn[:1], atol=1e-5)
    assert vae.decode(noise(1, 8, 3, 2)).shape == (1, 3, 12, 8)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_attention_takes_part(part):
    vae = vqvae()
    run = vae.encode if part == "encoder" else lambda x: vae.decode(0.1 * x)
    x = noise(1, 3, 24, 24) if part == "encoder" else noise(1, 8, 6, 6)
    before = run(x)
    coder = getattr(vae, part)
    for attention in (coder.mid.attn_1, (coder.down if part == "encoder" else coder.up)[-1].attn[0]):
        attention.proj_out.weight.neg_()
        after = run(x)
        assert (after - before).abs().max() > 1e-4
        before = after


def test_half_precision_gives_pixels_in_full():
    vae = VQVAE(VQVAEConfig(**vars(VQ)))
    vae.load_state_dict(vqvae().state_dict())
    vae.to(torch.bfloat16)
    assert vae.decode(noise(1, 8, 6, 6)).dtype == torch.float32
