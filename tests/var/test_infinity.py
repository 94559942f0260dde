"""Infinity's transformer: key names, sizes, cache against teacher forcing, positions, conditions, cost."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_var import INFINITY, SCHEDULE, bsq_vae, cache_for, infinity, noise, randomised

from tts_vision.errors import ConfigError
from tts_vision.pipelines.var.cache import KVCache
from tts_vision.pipelines.var.infinity import (
    SIZES,
    Infinity,
    InfinityConfig,
    TextPool,
    block_causal,
    initialise,
    macs_of_scale,
    parameter_count,
    rotary,
    rotated,
    total_macs,
)
from tts_vision.pipelines.var.loading import infinity_config
from tts_vision.pipelines.var.pipeline import InfinityPipeline, guided_layers
from tts_vision.pipelines.var.schedules import schedule_for

STARTS = SCHEDULE.starts


def published_shapes(c: InfinityConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the published checkpoints have them, by group."""
    W, T = c.width, c.text_dim

    def linear(name: str, out: int, inp: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, inp), f"{name}.bias": (out,)}

    pool = "text_proj_for_sos.ca."
    shapes = {
        "cfg_uncond": (512, T),
        "pos_start": (1, 1, W),
        "text_norm.weight": (T,),
        f"{pool}mat_q": (1, 16, W // 16),
        f"{pool}mat_kv.weight": (2 * W, T),
        f"{pool}v_bias": (W,),
        f"{pool}zero_k_bias": (W,),
        **linear(f"{pool}proj", W, W),
        **linear("text_proj_for_ca.0", W, T),
        **linear("text_proj_for_ca.2", W, W),
        "lvl_embed.weight": (15, W),
        **linear("word_embed", W, c.bits),
        **linear("shared_ada_lin.1", 6 * W, W),
        **linear("head_nm.ada_lin.1", 2 * W, W),
        **linear("head", 2 * c.bits, W),
    }
    assert len(shapes) == 22
    for i in range(c.depth):
        each = c.depth // c.chunks
        block = f"block_chunks.{i // each}.module.{i % each}."
        of_block = {
            "ada_gss": (1, 1, 6, W),
            "sa.scale_mul_1H11": (1, c.heads, 1, 1),
            "sa.mat_qkv.weight": (3 * W, W),
            **{f"sa.{bias}": (W,) for bias in ("q_bias", "v_bias", "zero_k_bias")},
            **linear("sa.proj", W, W),
            **linear("ca.mat_q", W, W),
            "ca.mat_kv.weight": (2 * W, W),
            "ca.v_bias": (W,),
            "ca.zero_k_bias": (W,),
            **linear("ca.proj", W, W),
            "ca_norm.weight": (W,),
            "ca_norm.bias": (W,),
            **linear("ffn.fc1", c.hidden, W),
            **linear("ffn.fc2", W, c.hidden),
        }
        assert len(of_block) == 21
        shapes.update({block + key: shape for key, shape in of_block.items()})
    return shapes


@pytest.mark.parametrize(("size", "entries"), [("125m", 22 + 21 * 12), ("2b", 694), ("8b", 22 + 21 * 40)])
def test_names_and_shapes_are_those_of_the_published_checkpoints(size, entries):
    with torch.device("meta"):
        state = Infinity(SIZES[size]).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == published_shapes(SIZES[size])
    assert len(state) == entries
    assert infinity_config(state) == SIZES[size]


@pytest.mark.parametrize(
    ("size", "billions", "head_dim", "hidden", "chunks"),
    [
        ("125m", 0.125, 96, 3072, 4),
        ("layer16", 0.362, 96, 4608, 4),
        ("1b", 0.941, 96, 6144, 4),
        ("2b", 2.205, 128, 8192, 8),
        ("8b", 8.376, 128, 14336, 8),
    ],
)
def test_sizes(size, billions, head_dim, hidden, chunks):
    config = SIZES[size]
    assert round(parameter_count(config) / 1e9, 3) == billions
    assert (config.head_dim, config.hidden, config.chunks) == (head_dim, hidden, chunks)


def inputs(n: int = 2, seed: int = 5) -> torch.Tensor:
    return noise(n, STARTS[-1] - 1, INFINITY.bits, seed=seed)


def stepwise(model: Infinity, condition, given: torch.Tensor) -> torch.Tensor:
    cache, logits = cache_for(model.config, SCHEDULE, len(given)), []
    for k in range(len(SCHEDULE)):
        of_scale = given[:, STARTS[k] - 1 : STARTS[k + 1] - 1] if k else None
        logits.append(model.scale(condition, of_scale, k, SCHEDULE, cache))
    return torch.cat(logits, 1)


def test_scale_by_scale_equals_all_at_once():
    model = infinity()
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    condition = model.condition(noise(2, 6, 24), mask)
    whole = model(condition, inputs(), SCHEDULE)
    assert whole.shape == (2, STARTS[-1], 8, 2) and whole.std() > 0.1
    assert torch.allclose(stepwise(model, condition, inputs()), whole, atol=1e-5)


def test_a_scale_sees_itself_and_coarser_ones_only():
    model, given = infinity(), inputs(1)
    condition = model.condition(noise(1, 6, 24))
    changed = given.clone()
    changed[:, STARTS[2] - 1] += 1  # the first token of scale 2
    before, after = model(condition, given, SCHEDULE), model(condition, changed, SCHEDULE)
    assert torch.equal(before[:, : STARTS[2]], after[:, : STARTS[2]])
    assert (before[:, STARTS[3] - 1] - after[:, STARTS[3] - 1]).abs().max() > 1e-4
    mask = block_causal(SCHEDULE, "cpu")
    assert mask[0].sum() == 1 and mask[STARTS[2]].sum() == STARTS[3] and mask[-1].all()


def test_one_block_written_out():
    model = infinity()
    block, x = model.blocks[1], noise(1, 6, 64, seed=6)
    condition = model.condition(noise(1, 5, 24))
    rope = rotary((2, 3), (4, 6), 32, "cpu")
    got = block(x, condition.modulation, condition.text[1], None, rope, None)
    gate1, gate2, scale1, scale2, shift1, shift2 = (block.ada_gss + condition.modulation).unbind(2)

    def normed(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    def heads(x):
        return x.view(1, -1, 2, 32).transpose(1, 2)

    h = normed(x) * (1 + scale1) + shift1
    q, k, v = (h @ block.sa.mat_qkv.weight.T).chunk(3, -1)
    q, k, v = heads(q + block.sa.q_bias), heads(k), heads(v + block.sa.v_bias)
    q, k = (rotated(t / t.norm(dim=-1, keepdim=True), rope) for t in (q, k))
    out = (q @ k.transpose(-1, -2) * block.sa.scale_mul_1H11.exp()).softmax(-1) @ v
    x = x + gate1 * block.sa.proj(out.transpose(1, 2).flatten(2))

    h = normed(x) * block.ca_norm.weight + block.ca_norm.bias
    words = model.text_proj_for_ca(model.text_norm(noise(1, 5, 24)))
    k, v = (words @ block.ca.mat_kv.weight.T).chunk(2, -1)
    out = (heads(block.ca.mat_q(h)) @ heads(k).transpose(-1, -2) / math.sqrt(32)).softmax(-1)
    x = x + block.ca.proj((out @ heads(v + block.ca.v_bias)).transpose(1, 2).flatten(2))

    h = normed(x) * (1 + scale2) + shift2
    x = x + gate2 * block.ffn.fc2(F.gelu(block.ffn.fc1(h), approximate="tanh"))
    assert torch.allclose(got, x, atol=1e-4)


def test_the_last_layer_written_out():
    model, x = infinity(), noise(2, 3, 64)
    condition = model.condition(noise(2, 5, 24))
    scale, shift = model.head_nm["ada_lin"](condition.pooled)[:, None].chunk(2, -1)
    expected = model.head(F.layer_norm(x, (64,), eps=1e-6) * (1 + scale) + shift).view(2, 3, 8, 2)
    assert torch.allclose(model.logits(x, condition), expected, atol=1e-5)


def test_the_scale_of_attention_is_at_most_a_hundred():
    attention, x, rope = infinity().blocks[0].sa, noise(1, 6, 64), rotary((2, 3), (4, 6), 32, "cpu")
    attention.scale_mul_1H11.fill_(9.0)
    capped = attention(x, rope, None, None)
    attention.scale_mul_1H11.fill_(math.log(100))
    assert torch.allclose(capped, attention(x, rope, None, None), atol=1e-6)


def test_text_is_pooled_by_one_query_per_head():
    pool = randomised(TextPool(INFINITY))
    text = noise(2, 5, 24)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    k, v = (text @ pool.mat_kv.weight.T).chunk(2, -1)
    k, v = (t.view(2, 5, 4, 16).transpose(1, 2) for t in (k, v + pool.v_bias))
    weights = (pool.mat_q[:, :, None] @ k.transpose(-1, -2) / math.sqrt(16)).squeeze(2)
    weights = weights.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
    out = (weights[..., None] * v).sum(2).flatten(1)
    assert torch.allclose(pool(text, mask), pool.proj(out), atol=1e-5)
    assert torch.allclose(pool(text[1:, :3], None), pool(text, mask)[1:], atol=1e-5)


def test_padding_of_a_text_changes_nothing():
    model, text = infinity(), noise(1, 4, 24)
    padded = torch.cat((text, noise(1, 3, 24, seed=9)), 1)
    mask = torch.tensor([[True] * 4 + [False] * 3])
    given = inputs(1)
    alone = model(model.condition(text), given, SCHEDULE)
    assert torch.allclose(model(model.condition(padded, mask), given, SCHEDULE), alone, atol=1e-5)


def test_the_first_scale_reads_the_pooled_text_and_every_scale_its_level():
    model = infinity()
    condition = model.condition(noise(1, 5, 24))
    first = condition.pooled[:, None] + model.pos_start + model.lvl_embed.weight[0]
    assert torch.allclose(model.embed(condition, None, 0), first, atol=1e-6)
    given = noise(1, 12, 8)
    third = model.word_embed(given) + model.lvl_embed.weight[2]
    assert torch.allclose(model.embed(condition, given, 2), third, atol=1e-6)


def test_candidates_share_the_condition():
    model = infinity()
    condition = model.condition(noise(2, 5, 24)).rows(3)  # a prompt and no text, three particles
    again = model.condition(noise(2, 5, 24).repeat_interleave(3, 0))
    assert torch.allclose(condition.pooled, again.pooled, atol=1e-6)
    for (k, v), (k2, v2) in zip(condition.text, again.text):
        assert torch.allclose(k, k2, atol=1e-5) and torch.allclose(v, v2, atol=1e-5)
    alone = model.condition(noise(1, 5, 24)).rows(3)
    keys = alone.text[0][0]
    assert keys.shape[0] == 3 and keys.stride(0) == 0  # the same memory for all of them


def test_rows_do_not_depend_on_each_other():
    model, given, text = infinity(), inputs(3), noise(3, 5, 24)
    together = model(model.condition(text), given, SCHEDULE)
    alone = model(model.condition(text[1:2]), given[1:2], SCHEDULE)
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_positions_of_a_coarse_scale_by_hand():
    # 3 rows over 4 positions: 0, 1.33, 2.67; 4 columns over 6: 0, 1.5, 3, 4.5, halves to the even number
    angles = rotary((3, 4), (4, 6), 16, "cpu").view(3, 4, 8)
    theta = [10_000 ** (-2 * k / 8) for k in range(4)]
    assert theta == pytest.approx([1, 0.1, 0.01, 0.001])
    for i, row in enumerate((0, 1, 3)):
        for j, column in enumerate((0, 2, 3, 4)):
            expected = [row * t for t in theta] + [column * t for t in theta]
            assert angles[i, j].tolist() == pytest.approx(expected, rel=1e-5)


def test_positions_round_half_to_even_in_published_schedules():
    columns = rotary((1, 8), (64, 36), 4, "cpu")[0, :, 1]  # 4.5 apart
    assert columns.tolist() == [0, 4, 9, 14, 18, 22, 27, 32]
    rows = rotary((8, 1), (36, 64), 4, "cpu")[0, :, 0]
    assert rows.tolist() == columns.tolist()
    schedule = schedule_for(1.0, "0.06M")
    assert rotary(schedule.grids[1], schedule.positions, 4, "cpu")[0, 3].tolist() == [32, 32]
    assert rotary((64, 64), (64, 64), 4, "cpu")[0, -1].tolist() == [63, 63]


def test_neighbouring_channels_turn_together():
    x = torch.tensor([1.0, 0.0, 0.0, 2.0]).view(1, 1, 1, 4)
    angles = torch.tensor([math.pi / 2, math.pi]).view(1, 1, 2)
    assert torch.allclose(rotated(x, angles), torch.tensor([0.0, 1.0, 0.0, -2.0]), atol=1e-6)


def test_attention_depends_on_differences_of_positions():
    q, k = noise(1, 1, 1, 16), noise(1, 1, 1, 16, seed=1)
    grid = rotary((8, 8), (8, 8), 16, "cpu").view(8, 8, 8)

    def product(a, b):
        return (rotated(q, a.view(1, 1, 8)) * rotated(k, b.view(1, 1, 8))).sum()

    assert torch.allclose(product(grid[1, 2], grid[3, 3]), product(grid[4, 6], grid[6, 7]), atol=1e-5)


def test_half_precision_of_the_blocks_stays_near():
    model = infinity()
    condition = model.condition(noise(2, 5, 24))
    whole = model(condition, inputs(), SCHEDULE)
    for block in model.blocks:
        block.to(torch.bfloat16)
    halved = model.condition(noise(2, 5, 24))
    assert halved.text[0][0].dtype == torch.bfloat16 and halved.pooled.dtype == torch.float32
    logits = model(halved, inputs(), SCHEDULE)
    assert logits.dtype == torch.float32
    assert 0 < (logits - whole).abs().max() < 0.1 * whole.abs().max()


def test_a_cache_in_half_precision_stays_near():
    model = infinity()
    condition = model.condition(noise(2, 5, 24))
    whole = stepwise(model, condition, inputs())
    cache = KVCache.empty(replace(cache_for(INFINITY, SCHEDULE, 2).shape, dtype=torch.bfloat16), 2)
    for k in range(len(SCHEDULE)):
        given = inputs()[:, STARTS[k] - 1 : STARTS[k + 1] - 1] if k else None
        last = model.scale(condition, given, k, SCHEDULE, cache)
    assert 0 < (last - whole[:, STARTS[-2] :]).abs().max() < 0.1 * whole.abs().max()


def test_multiply_accumulates_are_those_counted():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = infinity()
    condition = model.condition(noise(1, 5, 24))
    cache = cache_for(INFINITY, SCHEDULE, 1)
    for k in range(len(SCHEDULE)):
        given = inputs(1)[:, STARTS[k] - 1 : STARTS[k + 1] - 1] if k else None
        # the fused kernel of the CPU is not counted
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.scale(condition, given, k, SCHEDULE, cache)
        assert counter.get_total_flops() == 2 * macs_of_scale(INFINITY, SCHEDULE, k, 5)
    assert total_macs(INFINITY, SCHEDULE, 5, [1, 3]) == sum(
        macs_of_scale(INFINITY, SCHEDULE, k, 5) for k in (1, 3)
    )


def test_a_sample_of_infinity_2b_takes_57_tera_multiply_accumulates():
    schedule = schedule_for(1.0)
    assert 2 * total_macs(SIZES["2b"], schedule, 30) / 1e12 == pytest.approx(57.6, abs=0.3)
    shares = [macs_of_scale(SIZES["2b"], schedule, k, 30) for k in range(13)]
    whole = sum(shares)
    assert [round(100 * sum(part) / whole, 1) for part in (shares[:6], shares[6:9], shares[9:])] == [
        1.8,
        8.7,
        89.6,
    ]
    assert round(100 * shares[-1] / whole) == 46


def test_fresh_weights_start_near_the_identity_and_repeat():
    first, again = (initialise(Infinity(INFINITY), torch.Generator().manual_seed(0)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    assert all(bool(p.isfinite().all()) for p in first.parameters())
    with torch.no_grad():
        condition = first.condition(noise(1, 5, 24))
        probability = first(condition, inputs(1), SCHEDULE).softmax(-1)
    assert (probability - 0.5).abs().max() < 0.2


def test_hidden_channels_are_a_multiple_of_256():
    assert replace(INFINITY, width=128).hidden == 512
    assert replace(INFINITY, width=2080, heads=20).hidden == 8192


@pytest.mark.parametrize("layers", [[0], [-1], [-3], [0, -2], [-1, -2]])
def test_guidance_after_blocks_written_out(layers):
    """All scales at once, without a cache: where guidance acts, both branches go on from its output."""
    model, cfg = infinity(), [1.0, 2.0, 3.0, 2.5]
    settings = {"guidance_scale": cfg, "cfg_insertion_layer": layers, "tau": 1.0, "top_p": 0.0}
    pipe = InfinityPipeline(model, bsq_vae(), None, None, SCHEDULE)
    configured = pipe.configured(settings)
    encoded, cache = model.condition(noise(2, 5, 24)), configured.cache(1)
    quantizer, bits = pipe.vae.quantizer, torch.empty(1, 0, 8, dtype=torch.uint8)
    found = []
    for k in range(len(SCHEDULE)):
        found.append(configured.probability(encoded, bits, k, cache))
        bits = torch.cat([bits, (found[-1] > noise(*found[-1].shape, seed=k).sigmoid()).to(torch.uint8)], 1)

    scales = torch.tensor(cfg).repeat_interleave(torch.tensor(SCHEDULE.lengths))[None, :, None]
    parts = [model.embed(encoded, None, 0)]
    for k in range(1, len(SCHEDULE)):
        given = quantizer.next_input(quantizer.summed(bits, SCHEDULE, k), SCHEDULE.grids[k])
        parts.append(model.embed(encoded, given.repeat(2, 1, 1), k))
    x, mask = torch.cat(parts, 1), block_causal(SCHEDULE, "cpu")
    rope = torch.cat([rotary(g, SCHEDULE.positions, INFINITY.head_dim, "cpu") for g in SCHEDULE.grids], 1)
    for number, block in enumerate(model.blocks):
        x = block(x, encoded.modulation, encoded.text[number], None, rope, None, mask)
        if number - len(model.blocks) in layers:
            guided = (scales * x[:1] + (1 - scales) * x[1:]).repeat(2, 1, 1)
            x = torch.where(scales == 1, x, guided)  # a scale without guidance has two branches to its end
    logits = model.logits(x, encoded)
    if 0 in layers:
        logits = scales[..., None] * logits[:1] + (1 - scales[..., None]) * logits[1:]
    expected = logits[:1].softmax(-1)[..., 1]
    assert torch.allclose(torch.cat(found, 1), expected, atol=2e-4)


@pytest.mark.parametrize("layers", [1, -4, [], [0, 2], "0", True, [0.0]])
def test_guidance_acts_on_logits_or_after_a_block(layers):
    with pytest.raises(ConfigError, match=r"cfg_insertion_layer must be 0 .* -1 to -3 .* but got"):
        guided_layers(layers, INFINITY.depth)
    assert guided_layers(0, 4) == {0} and guided_layers([-3, 0], 4) == {0, -3}
