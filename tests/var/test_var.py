"""VAR's transformer: key names, sizes, cache against teacher forcing, modulation, precision, cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_var import VAR_CONFIG, VAR_SCHEDULE, cache_for, noise, var

from tts_vision.pipelines.var.sampling import guided, ramped, token_probability
from tts_vision.pipelines.var.var import SIZES, VAR, macs_of_scale, parameter_count, total_macs

SHARED = replace(VAR_CONFIG, shared_modulation=True)
BLOCK = {
    *(f"attn.{name}" for name in ("scale_mul_1H11", "q_bias", "v_bias", "zero_k_bias", "mat_qkv.weight")),
    *(f"{layer}.{kind}" for layer in ("attn.proj", "ffn.fc1", "ffn.fc2") for kind in ("weight", "bias")),
}
TOP = {
    *("pos_start", "pos_1LC", "class_emb.weight", "lvl_embed.weight"),
    *(
        f"{layer}.{kind}"
        for layer in ("word_embed", "head", "head_nm.ada_lin.1")
        for kind in ("weight", "bias")
    ),
}


def inputs(n: int = 2, seed: int = 5) -> torch.Tensor:
    return noise(n, VAR_SCHEDULE.starts[-1] - 1, VAR_CONFIG.channels, seed=seed)


def stepwise(model: VAR, condition, given: torch.Tensor) -> torch.Tensor:
    cache, logits = cache_for(model.config, VAR_SCHEDULE, len(given)), []
    for k in range(len(VAR_SCHEDULE)):
        of_scale = given[:, VAR_SCHEDULE.starts[k] - 1 : VAR_SCHEDULE.starts[k + 1] - 1] if k else None
        logits.append(model.scale(condition, of_scale, k, cache))
    return torch.cat(logits, 1)


@pytest.mark.parametrize(
    ("size", "millions"), [("d16", 310), ("d20", 601), ("d24", 1033), ("d30", 2010), ("d36", 2354)]
)
def test_sizes_have_the_published_parameters(size, millions):
    assert round(parameter_count(SIZES[size]) / 1e6) == millions
    assert SIZES[size].head_dim == 64
    assert SIZES[size].schedule.starts[-1] == (2240 if size == "d36" else 680)


def test_names_are_those_of_the_published_checkpoints():
    own = {"ada_lin.1.weight", "ada_lin.1.bias"}
    expected = TOP | {f"blocks.{i}.{name}" for i in range(3) for name in BLOCK | own}
    assert set(VAR(VAR_CONFIG).state_dict()) == expected
    shared = {"shared_ada_lin.1.weight", "shared_ada_lin.1.bias"}
    expected = TOP | shared | {f"blocks.{i}.{name}" for i in range(3) for name in BLOCK | {"ada_gss"}}
    assert set(VAR(SHARED).state_dict()) == expected


@pytest.mark.parametrize("config", [VAR_CONFIG, SHARED])
def test_scale_by_scale_equals_all_at_once(config):
    model = var(config)
    condition = model.condition(torch.tensor([3, 10]))
    whole = model(condition, inputs())
    assert whole.shape == (2, VAR_SCHEDULE.starts[-1], 40)
    assert torch.allclose(stepwise(model, condition, inputs()), whole, atol=1e-5)
    assert whole.std() > 0.1 and (whole[0] - whole[1]).abs().max() > 0.1


def test_a_scale_sees_itself_and_coarser_ones_only():
    model = var()
    condition = model.condition(torch.tensor([3]))
    given = inputs(1)
    changed = given.clone()
    changed[:, VAR_SCHEDULE.starts[3] - 1] += 1  # the first token of scale 3
    before, after = model(condition, given), model(condition, changed)
    assert torch.equal(before[:, : VAR_SCHEDULE.starts[3]], after[:, : VAR_SCHEDULE.starts[3]])
    last_of_scale = VAR_SCHEDULE.starts[4] - 1
    assert (before[:, last_of_scale] - after[:, last_of_scale]).abs().max() > 1e-4


def test_one_block_written_out():
    model = var()
    block, pooled = model.blocks[0], model.class_emb(torch.tensor([4]))
    x = noise(1, 5, 32, seed=6)
    got = block(x, block.modulation(pooled, None), None)
    gate1, gate2, scale1, scale2, shift1, shift2 = block.ada_lin(pooled).view(1, 1, 6, 32).unbind(2)

    def normed(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    h = normed(x) * (1 + scale1) + shift1
    q, k, v = (h @ block.attn.mat_qkv.weight.T).view(1, 5, 3, 2, 16).permute(2, 0, 3, 1, 4)
    q = q + block.attn.q_bias.view(2, 1, 16)
    v = v + block.attn.v_bias.view(2, 1, 16)
    q, k = (t / t.norm(dim=-1, keepdim=True) for t in (q, k))
    weights = (q @ k.transpose(-1, -2) * block.attn.scale_mul_1H11.exp()).softmax(-1)
    out = (weights @ v).transpose(1, 2).reshape(1, 5, 32)
    x = x + gate1 * block.attn.proj(out)
    h = normed(x) * (1 + scale2) + shift2
    x = x + gate2 * block.ffn.fc2(F.gelu(block.ffn.fc1(h), approximate="tanh"))
    assert torch.allclose(got, x, atol=1e-5)


def test_the_scale_of_attention_is_at_most_a_hundred():
    model = var()
    model.blocks[0].attn.scale_mul_1H11.fill_(9.0)
    x = noise(1, 4, 32)
    capped = model.blocks[0].attn(x, None, None, None)
    model.blocks[0].attn.scale_mul_1H11.fill_(torch.tensor(100.0).log().item())
    assert torch.allclose(capped, model.blocks[0].attn(x, None, None, None), atol=1e-6)


def test_the_first_scale_reads_the_class_and_every_scale_its_place():
    model = var()
    condition = model.condition(torch.tensor([3]))
    first = (
        model.class_emb.weight[3] + model.pos_start[0, 0] + model.lvl_embed.weight[0] + model.pos_1LC[0, 0]
    )
    assert torch.allclose(model.embed(condition, None, 0), first.view(1, 1, -1), atol=1e-6)
    z = noise(1, 9, 8)
    third = model.word_embed(z) + model.lvl_embed.weight[2] + model.pos_1LC[:, 5:14]
    assert torch.allclose(model.embed(condition, z, 2), third, atol=1e-6)


def test_the_condition_is_computed_once_and_repeated():
    model = var()
    condition = model.condition(torch.tensor([3, model.no_class])).rows(2)
    again = model.condition(torch.tensor([3, 3, 10, 10]))
    assert torch.allclose(condition.pooled, again.pooled) and torch.allclose(condition.head, again.head)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(condition.modulation, again.modulation))


def test_rows_do_not_depend_on_each_other():
    model, given = var(), inputs(3)
    together = model(model.condition(torch.tensor([1, 2, 3])), given)
    alone = model(model.condition(torch.tensor([2])), given[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_half_precision_of_the_blocks_stays_near():
    model = var()
    whole = model(model.condition(torch.tensor([3, 10])), inputs())
    for block in model.blocks:
        block.to(torch.bfloat16)
    halved = model(model.condition(torch.tensor([3, 10])), inputs())
    assert halved.dtype == torch.float32
    assert 0 < (halved - whole).abs().max() < 0.1 * whole.abs().max()


def test_multiply_accumulates_are_those_counted():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = var()
    condition = model.condition(torch.tensor([3]))
    cache, given = cache_for(VAR_CONFIG, VAR_SCHEDULE, 1), inputs(1)
    for k in range(len(VAR_SCHEDULE)):
        of_scale = given[:, VAR_SCHEDULE.starts[k] - 1 : VAR_SCHEDULE.starts[k + 1] - 1] if k else None
        # the fused kernel of the CPU is not counted
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.scale(condition, of_scale, k, cache)
        assert counter.get_total_flops() == 2 * macs_of_scale(VAR_CONFIG, k)
    assert total_macs(VAR_CONFIG) == sum(macs_of_scale(VAR_CONFIG, k) for k in range(5))
    assert total_macs(VAR_CONFIG, [1, 3]) == macs_of_scale(VAR_CONFIG, 1) + macs_of_scale(VAR_CONFIG, 3)


def test_a_scale_is_drawn_under_guidance_that_rises():
    model = var()
    condition = model.condition(torch.tensor([3, model.no_class]))
    logits = model(condition, inputs(1).repeat(2, 1, 1))
    first, last = (
        guided(*logits.chunk(2), ramped(4.0, k, 5))[:, VAR_SCHEDULE.starts[k] : VAR_SCHEDULE.starts[k + 1]]
        for k in (0, 4)
    )
    assert torch.equal(first, logits[:1, :1])
    assert torch.allclose(last, 5 * logits[:1, -36:] - 4 * logits[1:, -36:], atol=1e-4)
    assert torch.allclose(token_probability(last, top_k=5, top_p=0.9).sum(-1), torch.ones(1, 36), atol=1e-6)
