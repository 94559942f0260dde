"""Show-o: its sequence, its attention, the cache of the prompt, guidance, and its image tokenizer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_showo import MAGVIT, tiny_showo
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines.tokens.layout import SPECIAL, Layout, additive
from tts_vision.pipelines.tokens.loading import LAYOUT
from tts_vision.pipelines.tokens.magvit import LFQ, MAGVITv2

PROMPT = "two red circles left of a blue star"


class OneIdPerWord:
    """A tokenizer without a vocabulary."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [1000 + i for i, _ in enumerate(text.split())]}


def test_the_published_vocabulary() -> None:
    assert [LAYOUT.special(name) for name in SPECIAL] == list(range(50295, 50305))
    names = ("[PAD]", "<|soi|>", "<|eoi|>", "<|t2i|>")
    assert [LAYOUT.special(name) for name in names] == [50295, 50296, 50297, 50300]
    assert (LAYOUT.offset, LAYOUT.mask, LAYOUT.size) == (50305, 58497, 58498)
    assert LAYOUT.image(torch.tensor([[0, 8191, 8192]])).tolist() == [[50296, 50305, 58496, 58497, 50297]]


def test_prompts_are_never_cut() -> None:
    ids = LAYOUT.prompt(OneIdPerWord(), " ".join(["x"] * 126))
    assert len(ids) == 129 and ids[:3] == [50300, 50256, 1000] and ids[-1] == 50256
    assert LAYOUT.prompt(OneIdPerWord(), "") == [50300, 50256, 50256]
    with pytest.raises(ConfigError, match="must have at most 126 tokens here but has 127: 'x x x"):
        LAYOUT.prompt(OneIdPerWord(), " ".join(["x"] * 127))
    for call in ({}, {"negative_prompt": "red " * 16}):
        with pytest.raises(ConfigError, match="must have at most 15 tokens here but has 16"):
            tiny_showo().configured(call).encode(Condition("blue" if call else "red " * 16))


def test_who_sees_whom() -> None:
    layout = Layout(words=10, codes=4, text_length=8, bos=1, eos=1)
    t2i = layout.special("<|t2i|>")
    prefix = layout.prefix([[t2i, 1, 5, 1], [t2i, 1, 1]])
    assert prefix.tolist() == [[t2i, 1, 5, 1], [layout.special("[PAD]"), t2i, 1, 1]]
    seen = layout.attended(prefix, 3).int().tolist()
    causal = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert seen[0] == [[*row, 0, 0, 0] for row in causal] + [[1] * 7] * 3
    padded = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    assert seen[1] == [[*row, 0, 0, 0] for row in padded] + [[0, 1, 1, 1, 1, 1, 1]] * 3


def whole(prompt: str, codes: Tensor, attention: str) -> Tensor:
    """Logits of codes as the authors compute them: one sequence with all pads, absolute positions."""
    pipe = tiny_showo()
    layout, rows = pipe.layout, len(codes)
    ids = layout.prompt(pipe.tokenizer, prompt)
    pads = [layout.special("[PAD]")] * (layout.text_length - len(ids))
    prefix = torch.tensor([pads + ids]).expand(rows, -1)
    image = layout.image(codes)
    mask = additive(layout.attended(prefix, image.shape[1]), torch.float32)
    pipe.transformer.set_attn_implementation(attention)
    try:
        logits = pipe.transformer(
            input_ids=torch.cat((prefix, image), 1), attention_mask=mask, use_cache=False
        ).logits
    finally:
        pipe.transformer.set_attn_implementation("sdpa")
    return logits[:, -codes.shape[1] - 1 : -1, layout.offset : layout.mask]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("scale", [0.0, 1.75])
def test_the_cached_prompt_changes_nothing(attention: str, scale: float) -> None:
    """Nor do pads that are left out, in rows of different lengths: positions are relative."""
    model = tiny_showo().configured({"guidance_scale": scale})
    codes = torch.randint(0, model.vocabulary + 1, (3, 16), generator=torch.Generator().manual_seed(0))
    cond, uncond = whole(PROMPT, codes, attention), whole("", codes, attention)
    expected = (1 + scale) * cond - scale * uncond
    encoded = model.encode(Condition(PROMPT))
    found = model.logits(encoded, codes)
    assert found.shape == (3, 16, 64) and found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    # the cache is as it was, for rows of any number
    assert torch.allclose(model.logits(encoded, codes[1:2]), found[1:2], atol=1e-4)
    assert not torch.allclose(cond, uncond, atol=0.1)


def test_a_boolean_mask_would_be_wrong() -> None:
    pipe = tiny_showo()
    prefix = pipe.layout.prefix([pipe.layout.prompt(pipe.tokenizer, PROMPT)])
    image = pipe.layout.image(torch.full((1, 16), 64))
    seen = pipe.layout.attended(prefix, 18)
    ids = torch.cat((prefix, image), 1)
    pipe.transformer.set_attn_implementation("eager")
    try:
        right, wrong = (
            pipe.transformer(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for mask in (additive(seen, torch.float32), seen[:, None])
        )
    finally:
        pipe.transformer.set_attn_implementation("sdpa")
    assert not torch.allclose(right, wrong, atol=0.1)


def test_every_code_sees_the_whole_image_and_the_prompt() -> None:
    model = tiny_showo().configured({"guidance_scale": 0})
    codes = torch.full((1, 16), 64)
    base = model.logits(model.encode(Condition(PROMPT)), codes)
    other = model.logits(model.encode(Condition("a blue star")), codes)
    last = codes.clone()
    last[0, 15] = 3
    changed = model.logits(model.encode(Condition(PROMPT)), last)
    for logits in (other, changed):
        assert ((base - logits).abs().amax(-1) > 1e-3).all()


def test_guidance_leads_away_from_the_negative_prompt() -> None:
    codes = torch.full((1, 16), 64)
    plain, other = (
        tiny_showo().configured({"guidance_scale": 2.0, "negative_prompt": negative})
        for negative in (None, "a blue star")
    )
    no_text = tiny_showo().configured({"guidance_scale": 2.0, "negative_prompt": ""})
    found = [model.logits(model.encode(Condition(PROMPT)), codes) for model in (plain, other, no_text)]
    assert torch.equal(found[0], found[2]) and not torch.allclose(found[0], found[1], atol=0.1)
    # away from the prompt itself there is nowhere to go
    same = tiny_showo().configured({"guidance_scale": 2.0, "negative_prompt": PROMPT})
    none = tiny_showo().configured({"guidance_scale": 0})
    assert none.branches == 1 and same.branches == 2
    both = [model.logits(model.encode(Condition(PROMPT)), codes) for model in (same, none)]
    assert torch.allclose(*both, atol=1e-4)


@pytest.mark.parametrize("scale", [-1, "much", True, float("nan")])
def test_guidance_that_cannot_be(scale: Any) -> None:
    with pytest.raises(ConfigError, match="guidance_scale of tiny-showo must be a number of at least 0"):
        tiny_showo().configured({"guidance_scale": scale})


def test_parts_of_different_models_are_refused() -> None:
    pipe = tiny_showo()
    with pytest.raises(
        PipelineError, match="must have 120 ids in all, 45 words and 64 codes but have 120, 45"
    ):
        replace(pipe, image_tokenizer=MAGVITv2(replace(MAGVIT, bits=7)))
    with pytest.raises(PipelineError, match="must have 119 ids in all, 44 words"):
        replace(pipe, layout=replace(pipe.layout, words=44))


def test_work_is_counted() -> None:
    """By hand: 18 tokens through 2 layers of width 32 and 48, beside a prompt of 11."""
    linears, attention = 4 * 32 * 32 + 2 * 32 * 48, 2 * 32 * (11 + 18)
    head = 16 * 32 * 64
    assert tiny_showo().configured({}).macs(11) == 18 * 2 * (linears + attention) + head
    assert tiny_showo().configured({}).words(Condition(PROMPT)) == 8 + 3


def test_bits_of_a_code_most_significant_first() -> None:
    lfq = LFQ(4)
    assert lfq.embedding[10].tolist() == [1, -1, 1, -1] and lfq.embedding[1].tolist() == [-1, -1, -1, 1]
    features = torch.tensor([0.3, -2.0, 1e-9, 0.0]).view(1, 4, 1, 1)
    assert lfq.ids(features).tolist() == [[10]]  # zero counts as negative
    everything = lfq.embedding.T[None, :, None]
    assert lfq.ids(everything).tolist() == [list(range(16))]


def test_codes_are_laid_out_row_by_row() -> None:
    magvit = MAGVITv2(replace(MAGVIT, grid=(2, 4))).eval()
    pixels = magvit.decode(torch.arange(8)[None])
    assert pixels.shape == (1, 3, 32, 64) and float(pixels.abs().max()) <= 1
    signs = magvit.codebook()[torch.arange(8)].T.reshape(1, 6, 2, 4)
    assert torch.allclose(pixels, magvit.decoder(signs).clamp(-1, 1), atol=1e-6)
    codes = magvit.encode(pixels)
    assert codes.shape == (1, 8) and codes.dtype == torch.int64
    assert torch.equal(codes[0].view(2, 4), magvit.quantize.ids(magvit.encoder(pixels)).view(2, 4))
    with pytest.raises(ConfigError, match="must be 32x64 but got 64x64"):
        magvit.encode(torch.zeros(1, 3, 64, 64))


def test_the_published_image_tokenizer() -> None:
    with torch.device("meta"):
        magvit = MAGVITv2()
    state = magvit.state_dict()
    assert len(state) == 382
    assert sum(p.numel() for p in magvit.encoder.parameters()) == 55_439_171
    assert sum(p.numel() for p in magvit.decoder.parameters()) == 39_947_833
    assert tuple(state["quantize.embedding"].shape) == (8192, 13)
    assert tuple(state["encoder.down.3.block.0.nin_shortcut.weight"].shape) == (512, 256, 1, 1)
    assert tuple(state["decoder.up.4.upsample.conv.weight"].shape) == (512, 512, 3, 3)
    assert sum("attn" in key for key in state) == 2 * 5 * 2
    assert [len(stage.block) for stage in magvit.decoder.up] == [4, 4, 3, 4, 3]
