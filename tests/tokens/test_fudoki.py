"""FUDOKI on a tiny model: its sequence, its guidance, its checkpoint, its judge."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_fudoki import (
    NO_TEXT,
    TOWER,
    embeddings,
    published_names,
    published_state,
    save_fudoki,
    tiny_fudoki,
    tiny_names,
)
from tiny_janus import tiny_janus

import tts_vision
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines.discrete_flow_sampler import DiscreteFlowSampler
from tts_vision.pipelines.tokens import fudoki_loading
from tts_vision.pipelines.tokens.fudoki import FudokiNetwork
from tts_vision.pipelines.tokens.fudoki_judge import FudokiJudge
from tts_vision.pipelines.tokens.fudoki_loading import (
    converted,
    janus_config,
    load_fudoki,
    read_embedding,
    renamed,
)
from tts_vision.sampler import Sampler
from tts_vision.testing.contracts import SamplerContract, VerifierContract
from tts_vision.types import Prompt, State
from tts_vision.verifier import Verifier

CONDITION = Condition("two red circles")


@pytest.fixture
def tower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fudoki_loading.TOWERS, "tiny", TOWER)


def sampler_of(**call: Any) -> DiscreteFlowSampler:
    call = {"num_inference_steps": 6, **call}
    return DiscreteFlowSampler(tiny_fudoki(), options=SamplerOptions(pipeline_kwargs=call))


def codes(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(24, (n, 16), generator=torch.Generator().manual_seed(seed))


class TestFudoki(SamplerContract):
    @pytest.fixture
    def sampler(self) -> Sampler:
        return sampler_of(guidance_scale=1.0)

    @pytest.fixture
    def tolerance(self) -> float:
        return 1e-4


def by_hand(network: FudokiNetwork, row: torch.Tensor, text: list[int]) -> torch.Tensor:
    """Logits ``(S, V)`` of one particle, the sequence written out and without any mask but for padding."""
    model = network.pipe.model
    embed = model.get_input_embeddings()
    parts = [
        embed(torch.tensor([text])),
        model.model.generation_aligner(model.model.generation_embeddings(row[None])),
        embed(torch.tensor([[5, 2, 2, 2]])),  # the end of the image, and padding that is hidden
    ]
    sequence = torch.cat(parts, 1)
    mask = torch.zeros(1, 1, sequence.shape[1], sequence.shape[1])
    mask[..., -3:] = -1e9
    hidden = model.model.language_model(inputs_embeds=sequence, attention_mask=mask).last_hidden_state
    logits = model.model.generation_head(hidden)[0]
    shifted = torch.cat([torch.zeros_like(logits[:1]), logits[:-1]])
    return shifted[len(text) : len(text) + 16]


def test_the_sequence_and_the_guidance() -> None:
    network = tiny_fudoki().configured({"guidance_scale": 2.5})
    x = codes(3)
    found = network.logits(network.encode(CONDITION), x)
    # <bos> User : two red circles Assistant : <begin_of_image>
    text = [0, 12, 14, 6, 7, 8, 13, 14, 4]
    nothing = [0, *[NO_TEXT] * 7, 4]
    for row, logits in zip(x, found):
        c, u = by_hand(network, row, text), by_hand(network, row, nothing)
        assert torch.allclose(logits, 3.5 * c - 2.5 * u, atol=1e-4)
    assert network.words(CONDITION) == len(text) + 1
    unguided = tiny_fudoki().configured({"guidance_scale": 0.0})
    alone = unguided.logits(unguided.encode(CONDITION), x)
    assert torch.allclose(alone[0], by_hand(unguided, x[0], text), atol=1e-4)
    assert (network.branches, unguided.branches) == (2, 1)


def test_attention_looks_both_ways() -> None:
    network = tiny_fudoki().configured({"guidance_scale": 0.0})
    x = codes(1)
    y = x.clone()
    y[0, -1] = (y[0, -1] + 1) % 24
    encoded = network.encode(CONDITION)
    first, second = network.logits(encoded, x), network.logits(encoded, y)
    assert not torch.allclose(first[0, 0], second[0, 0]), "the last token reaches the first prediction"


def test_batches_are_right() -> None:
    """The authors' code keeps the image of the last row alone; here each row has its own."""
    network = tiny_fudoki().configured({})
    encoded, x = network.encode(CONDITION), codes(4)
    together = network.logits(encoded, x)
    alone = torch.cat([network.logits(encoded, row[None]) for row in x])
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_multiply_accumulates_against_torch() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network = tiny_fudoki().configured({})
    network.pipe.model.set_attn_implementation("eager")  # torch does not count the others
    try:
        with FlopCounterMode(display=False) as counter:
            network.logits(network.encode(CONDITION), codes(1))
    finally:
        network.pipe.model.set_attn_implementation("sdpa")
    counted = counter.get_total_flops() // 2
    macs = network.macs(network.words(CONDITION))
    aligner = 16 * (8 * 32 + 32 * 32)  # once for both branches
    assert counted == 2 * macs - aligner


def test_a_whole_search() -> None:
    result = tts_vision.search(
        tiny_fudoki(),
        CONDITION.text,
        verifier=lambda images, prompts: [float(np.asarray(image).mean()) for image in images],
        budget="3x",
        pipeline_kwargs={"num_inference_steps": 5},
    )
    assert len(result.population) == 3
    assert DiscreteFlowSampler(tiny_fudoki()).num_steps == 49, "50 steps by default, without the dead one"
    assert result.best.media.size == (32, 32)


def test_the_self_check_holds() -> None:
    report = tts_vision.check(tiny_fudoki(), CONDITION.text, pipeline_kwargs={"num_inference_steps": 4})
    found = {line.name: line for line in report.lines}
    assert found["nfe by hooks"].verdict == "holds" and "6 charged" in found["nfe by hooks"].value
    assert "broken" not in {line.verdict for line in report.lines}


def test_codes_of_images_are_the_nearest_directions() -> None:
    network = tiny_fudoki().configured({})
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vq = network.pipe.model.model.vqmodel
    z = torch.nn.functional.normalize(
        vq.quant_conv(vq.encoder(pixels)).permute(0, 2, 3, 1).flatten(1, 2), dim=-1
    )
    e = torch.nn.functional.normalize(vq.quantize.embedding.weight, dim=-1)
    assert torch.equal(network.image_codes(pixels), torch.cdist(z, e[None]).argmin(-1))


# The checkpoint


def test_published_keys_at_full_size() -> None:
    """Every key and shape of the published layout, on the meta device."""
    from transformers import JanusForConditionalGeneration

    names = published_names(
        text_layers=24,
        tower_layers=24,
        levels=5,
        blocks=2,
        biased_shortcuts=(
            "gen_vision_model.encoder.conv_blocks.2.res.0",
            "gen_vision_model.encoder.conv_blocks.4.res.0",
            "gen_vision_model.decoder.conv_blocks.1.res.0",
            "gen_vision_model.decoder.conv_blocks.3.res.0",
        ),
    )
    mlp = {"depth": 2, "n_embed": 2048, "projector_type": "mlp_gelu"}
    config = {
        "language_config": {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "max_position_embeddings": 16384,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "num_key_value_heads": 16,
            "vocab_size": 102400,
        },
        "vision_config": {"params": {"image_size": 384, "model_name": "siglip_large_patch16_384"}},
        "aligner_config": {"params": {**mlp, "input_dim": 1024}},
        "gen_aligner_config": {"params": {**mlp, "input_dim": 8}},
        "gen_vision_config": {"params": {"image_token_size": 16384, "n_embed": 8}},
        "gen_head_config": {
            "params": {"image_token_embed": 2048, "image_token_size": 16384, "n_embed": 2048}
        },
    }
    shapes = {
        f"gen_vision_model.encoder.conv_blocks.{i}.res.1.conv2.weight": (c,)
        for i, c in enumerate((128, 128, 256, 256, 512))
    }
    shapes |= {
        "gen_vision_model.encoder.conv_in.weight": (128,),
        "gen_vision_model.decoder.conv_in.weight": (512, 256),
    }
    sizes = {key: torch.empty(shapes.get(key, (1,)), device="meta") for key in names}
    made = janus_config(config, sizes, "fudoki")
    with torch.device("meta"):
        state = JanusForConditionalGeneration(made).state_dict()
    published = published_state(state, names)
    again = converted(published)
    assert {key: value.shape for key, value in again.items()} == {k: v.shape for k, v in state.items()}
    # by arithmetic: per text layer 9, per tower block 12, the ends of each
    text, tower = 24 * 9 + 3, 24 * 12 + 5
    residuals = 2 + 5 * 2 + 2 + 5 * 3
    attentions = 1 + 2 + 1 + 3
    vq = residuals * 8 + 4 * 2 + attentions * 10 + 8 * 2 + 2 * 3 * 2 + 1 + 4
    assert len(names) == text + tower + 8 + 1 + 4 + vq
    total = sum(
        value.numel() for key, value in state.items() if key.startswith(("model.language_model", "lm_head"))
    )
    assert total == 2 * 102400 * 2048 + 24 * (4 * 2048**2 + 3 * 2048 * 5632 + 2 * 2048) + 2048


def test_the_published_layout_loads_strictly(tower: None, tmp_path: Path) -> None:
    pipe = load_fudoki(str(save_fudoki(tmp_path / "fudoki")))
    ours, theirs = tiny_janus().model.state_dict(), pipe.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(pipe.image_embedding, embeddings()[0])
    assert pipe.text_embedding is not None and torch.equal(pipe.text_embedding, embeddings()[1])
    assert not any(t.is_meta for t in (*pipe.model.parameters(), *pipe.model.buffers()))
    network = pipe.configured({"guidance_scale": 0.0})
    expected = tiny_fudoki().configured({"guidance_scale": 0.0})
    x = codes(2)
    logits = network.logits(network.encode(CONDITION), x)
    assert torch.allclose(logits, expected.logits(expected.encode(CONDITION), x), atol=1e-5)
    assert torch.equal(network.pixels(x), expected.pixels(x))
    judged, known = FudokiJudge(pipe, steps=3), FudokiJudge(tiny_fudoki(), steps=3)
    image = Image.new("RGB", (20, 32), "red")
    first, second = (j.score([image], [Prompt("a star")])[0].value for j in (judged, known))
    assert first == pytest.approx(second, abs=1e-5)


def test_half_precision(tower: None, tmp_path: Path) -> None:
    loaded = load_fudoki(str(save_fudoki(tmp_path / "fudoki")), dtype=torch.bfloat16)
    with pytest.raises(PipelineError, match="below its vocabulary of 40 but has 100015"):
        loaded.configured({})
    pipe = replace(loaded, no_text=NO_TEXT)
    network, exact = pipe.configured({}), tiny_fudoki().configured({})
    x = codes(2)
    logits = network.logits(network.encode(CONDITION), x)
    assert logits.dtype == torch.float32
    reference = exact.logits(exact.encode(CONDITION), x)
    assert float((logits - reference).norm() / reference.norm()) < 0.1
    assert 0 <= FudokiJudge(pipe, steps=2).score([Image.new("RGB", (8, 8))], [Prompt("x")])[0].value <= 1


def changed(folder: Path, change: Any) -> Path:
    state = torch.load(folder / "pytorch_model.bin")
    change(state)
    torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("gen_embed.weight"), r"1 missing \(model.generation_embeddings.weight\)"),
        (
            lambda s: s.update({"gen_embed.bias": torch.zeros(1)}),
            r"1 unexpected \(model.generation_embeddings.bias\)",
        ),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), r"1 unexpected \(extra.weight\)"),
        (lambda s: s.update({"gen_embed.weight": torch.zeros(3, 8)}), "is .3, 8. instead of .24, 8."),
    ],
)
def test_another_checkpoint_is_refused(tower: None, tmp_path: Path, change: Any, message: str) -> None:
    folder = changed(save_fudoki(tmp_path / "fudoki"), change)
    with pytest.raises(PipelineError, match=message):
        load_fudoki(str(folder))


def test_other_files_are_refused(tower: None, tmp_path: Path) -> None:
    folder = save_fudoki(tmp_path / "fudoki")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["params"]["model_name"] = "other"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PipelineError, match=r"vision tower among siglip_large.*but 'other' is missing"):
        load_fudoki(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(PipelineError, match=r"config\.json"):
        load_fudoki(str(folder))
    folder = save_fudoki(tmp_path / "second")
    torch.save(torch.nn.Linear(2, 2), folder / "image_embedding.pt")
    with pytest.raises(PipelineError, match=r"image_embedding\.pt"):
        load_fudoki(str(folder))
    torch.save(embeddings()[0][:5], folder / "image_embedding.pt")
    with pytest.raises(PipelineError, match="a row for each of 24 image tokens but has 5"):
        load_fudoki(str(folder))
    with pytest.raises(
        PipelineError, match=r"must be a folder or a hub id 'owner/name' but got '\./nowhere'"
    ):
        load_fudoki("./nowhere")


def test_a_pickle_that_runs_code_is_not_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save(Evil(), tmp_path / "image_embedding.pt")
    with pytest.raises(PipelineError, match="must load from"):
        read_embedding(tmp_path / "image_embedding.pt", "fudoki")
    assert not (tmp_path / "ran").exists()


def test_parts_that_are_left_out() -> None:
    assert renamed("vision_model.vision_tower.attn_pool.mlp.fc1.weight") is None
    assert renamed("language_model.model.layers.3.self_attn.rotary_emb.inv_freq") is None
    assert all(renamed(key) for key in tiny_names())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": 2.0}, "did you mean 'guidance_scale'"),
        ({"guidance_scale": -1.0}, "guidance_scale of tiny-fudoki must be at least 0 but got -1"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler_of(**settings)


def test_a_prompt_that_is_too_long() -> None:
    sampler = sampler_of()
    assert len(sampler.init(Condition("red " * 492), (0,), seed=0)) == 1  # 497 with <bos> and the template
    with pytest.raises(
        ConfigError, match="at most 497 tokens for tiny-fudoki, its template included, but has 498"
    ):
        sampler.init(Condition("red " * 493), (0,), seed=0)


# The judge


class TestFudokiJudge(VerifierContract):
    @pytest.fixture
    def verifier(self) -> Verifier:
        return FudokiJudge(tiny_fudoki(), steps=3)

    @pytest.fixture
    def media(self) -> list[Image.Image]:
        return [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]

    @pytest.fixture
    def prompt(self) -> Prompt:
        return Prompt("a red circle")


def test_the_judge_looks_at_the_image_and_reads_the_prompt() -> None:
    judge = FudokiJudge(tiny_fudoki(), steps=4)
    noise = torch.randint(256, (32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = [Image.new("RGB", (32, 32), "red"), Image.fromarray(noise.numpy())]
    red, noisy = judge.score(images, [Prompt("two red circles")] * 2)
    other = judge.score(images[:1], [Prompt("a blue star")])[0]
    assert len({red.value, noisy.value, other.value}) == 3
    assert red.value == pytest.approx(red.parts["yes"] / (red.parts["yes"] + red.parts["no"]))
    assert judge.score(images, [Prompt("two red circles")] * 2)[1].value == noisy.value


def test_one_step_of_the_judge_by_hand() -> None:
    """A single evaluation: the prediction at the first place of the answer, from the tokens at its start."""
    judge, pipe = FudokiJudge(tiny_fudoki(), steps=1), tiny_fudoki()
    image, prompt = Image.new("RGB", (32, 32), "blue"), Prompt("a blue star")
    prefix = judge._prefix(prompt)
    assert prefix.count(-1) == 16 and prefix[0] == 0
    start = prefix.index(-1)
    assert (prefix[start - 1], prefix[start + 16]) == (4, 5)
    model = pipe.model
    pixels = (torch.tensor([0.0, 0.0, 255.0]) / 127.5 - 1).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    features = model.model.aligner(model.model.vision_model(pixels).last_hidden_state)
    from tts_vision.rng import row_uniform

    room = 516 - len(prefix)
    answer = (row_uniform(0, "init", [0], 0, torch.empty(1, room)) * 40).long()
    embed = model.get_input_embeddings()
    ids = torch.tensor([prefix]).clamp_min(0)
    sequence = torch.cat([embed(ids)[:, :start], features, embed(ids)[:, start + 16 :], embed(answer)], 1)
    mask = torch.zeros(1, 1, 516, 516)
    hidden = model.model.language_model(inputs_embeds=sequence, attention_mask=mask).last_hidden_state
    p = model.lm_head(hidden[0, len(prefix) - 1]).softmax(-1)
    yes, no = float(p[15] + p[17]), float(p[16])
    assert judge.score([image], [prompt])[0].value == pytest.approx(yes / (yes + no), abs=1e-5)


def test_best_of_n_by_its_own_judge() -> None:
    pipe = tiny_fudoki()
    judge = FudokiJudge(pipe, steps=2)
    result = tts_vision.search(
        pipe,
        CONDITION.text,
        algorithm="best_of_n",
        verifier=judge,
        budget="3x",
        pipeline_kwargs={"num_inference_steps": 4},
    )
    values = [candidate.score.value for candidate in result.population]
    assert result.best.score.value == max(values) and len(values) == 3
    again = judge.score([result.best.media], [Prompt(CONDITION.text)])[0]
    assert again.value == pytest.approx(result.best.score.value, abs=1e-6)


def test_bad_judges() -> None:
    with pytest.raises(ConfigError, match=r"at least 1 step and a question with \{prompt\} but got 0"):
        FudokiJudge(tiny_fudoki(), steps=0)
    with pytest.raises(PipelineError, match=r"need the embedding of texts .* put text_embedding.pt"):
        FudokiJudge(replace(tiny_fudoki(), text_embedding=None)).load()
    long = FudokiJudge(tiny_fudoki()).score([Image.new("RGB", (8, 8))], [Prompt("red " * 600)])[0]
    assert "longer than the 500 tokens" in (long.reason or "")


def test_states_of_two_texts() -> None:
    sampler, star = sampler_of(), Condition("a blue star")
    parts = [sampler.init(c, (i,), seed=0) for i, c in enumerate((CONDITION, star))]
    end = sampler.advance(State.cat(parts), sampler.num_steps)
    assert torch.equal(end.latents[1:], sampler.advance(parts[1], sampler.num_steps).latents)
