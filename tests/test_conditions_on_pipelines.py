"""Rows of one state that differ in their conditions, on tiny pipelines: each as if it were alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_diffusers_sampler import STEPS, build, sampler_of
from torch import Tensor

from tiny_pipelines import TINY
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.errors import ConfigError
from tts_vision.ledger import Ledger
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.pipelines.schedule import levels_if_known
from tts_vision.rng import row_seed
from tts_vision.testing.contracts import close
from tts_vision.types import Media, State, Video

SEED = 5
TEXTS = ("two red circles", "a blue star", "a green square on the left of a yellow triangle")
PIPELINES = (
    "stable_diffusion",
    "stable_diffusion_xl",
    "stable_diffusion_3",
    "flux",
    "pixart_sigma",
    "cogview4",
    "qwen_image",
    "z_image",
    "hunyuan_dit",
    "wan",
    "ltx",
    "cogvideox",
)


def mixed_state(sampler: DiffusersSampler, conditions: Sequence[Condition]) -> State:
    """One particle of each condition, at step 0."""
    return State.cat([sampler.init(c, [uid], seed=SEED) for uid, c in enumerate(conditions)])


def plain(pipe: Any, name: str, uid: int, output_type: str = "latent", **call: Any) -> Any:
    """The pipeline's own call, from the noise of a particle."""
    return pipe(
        **{**TINY[name].kwargs, **call},
        num_inference_steps=STEPS,
        generator=torch.Generator("cpu").manual_seed(row_seed(SEED, uid)),
        output_type=output_type,
        return_dict=False,
    )[0]


def check_alone(
    sampler: DiffusersSampler, conditions: Sequence[Condition], *, expected: Sequence[Tensor] | None = None
) -> State:
    """Checks that a batch of conditions equals each alone, finished and decoded, and returns its end."""
    parts = [sampler.init(c, [uid], seed=SEED) for uid, c in enumerate(conditions)]
    start = State.cat(parts)
    half = sampler.num_steps // 2
    state = sampler.advance(start, half)
    # forks and reindexing between steps, back in the order of the conditions
    back = [len(conditions) - 1 - i for i in range(len(conditions))]
    state = sampler.advance(state.select(back), sampler.num_steps - half).select(back)
    assert state.conditions == tuple(conditions)
    media = sampler.decode(state)
    for i in range(len(conditions)):
        alone = sampler.advance(parts[i], sampler.num_steps)
        assert close(state.latents[i : i + 1], alone.latents, 1e-5)
        if expected is not None:
            assert torch.equal(alone.latents, expected[i])
        assert farthest(media[i], sampler.decode(alone)[0]) <= 1
    return state


def farthest(a: Media, b: Media) -> int:
    """The largest difference of two images or clips, of 255."""
    first, second = (m.frames.numpy() if isinstance(m, Video) else np.asarray(m) for m in (a, b))
    return int(np.abs(first.astype(int) - second).max())


def count_encodings(pipe: Any) -> list[str]:
    """Gets the name of an encoder each time that it runs."""
    ran: list[str] = []
    for name, encoder in pipe.components.items():
        if name.startswith("text_encoder") and encoder is not None:
            forward = encoder.forward

            @functools.wraps(forward)
            def counted(*args: Any, name: str = name, forward: Any = forward, **kwargs: Any) -> Any:
                ran.append(name)
                return forward(*args, **kwargs)

            encoder.forward = counted
    return ran


# Texts


@pytest.mark.parametrize("name", PIPELINES)
def test_a_batch_of_prompts_equals_the_prompts_alone_and_the_pipelines_own_call(name: str) -> None:
    pipe = build(TINY[name])
    sampler = sampler_of(pipe, TINY[name])
    conditions = [Condition(text) for text in TEXTS]
    expected = [plain(pipe, name, uid, prompt=text) for uid, text in enumerate(TEXTS)]
    assert not torch.equal(expected[0], expected[1])
    check_alone(sampler, conditions, expected=expected)


@pytest.mark.parametrize("name", ["stable_diffusion_3", "flux", "cogview4", "qwen_image", "wan"])
def test_each_distinct_text_is_encoded_once(name: str) -> None:
    pipe = build(TINY[name])
    ran = count_encodings(pipe)
    sampler = sampler_of(pipe, TINY[name])
    conditions = [Condition(text) for text in (*TEXTS, TEXTS[0])]
    state = mixed_state(sampler, conditions)
    once = len(ran)
    encoders = {part for part in pipe.components if part.startswith("text_encoder")}
    assert once <= (len(TEXTS) + 1) * len(encoders)  # the negative prompt too
    state = sampler.advance(state, 2)
    state = sampler.advance(state.select([2, 0, 1]), STEPS - 2)
    sampler.decode(state)
    assert len(ran) == once


def test_texts_that_one_padding_would_change_are_not_mixed() -> None:
    """CogView4 pads to the longest prompt of a call, in steps of 16 tokens."""
    entry = TINY["cogview4"]
    pipe = build(entry)
    sampler = sampler_of(pipe, entry)
    long = "a photo of two red circles and a blue star and one green triangle above three white squares"
    conditions = [Condition(text) for text in (*TEXTS[:2], long)]
    state = check_alone(sampler, conditions)
    groups = [sampler._group(condition) for condition in conditions]
    assert groups[0] == groups[1] != groups[2]
    # the pipeline's own call pads all texts to the longest, which is another image
    generators = [torch.Generator("cpu").manual_seed(row_seed(SEED, uid)) for uid in range(3)]
    padded = pipe(
        [condition.text for condition in conditions],
        **{**entry.kwargs, "num_inference_steps": STEPS},
        generator=generators,
        output_type="latent",
        return_dict=False,
    )[0]
    assert close(padded[2:], state.latents[2:], 1e-5)
    assert not close(padded[:1], state.latents[:1], 1e-3)


def test_a_mixed_batch_is_one_call_of_the_denoiser_per_step() -> None:
    pipe = build(TINY["stable_diffusion"])
    sampler = sampler_of(pipe, TINY["stable_diffusion"])
    state = mixed_state(sampler, [Condition(text) for text in TEXTS])
    rows: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    ledger = Ledger()
    sampler.bind(ledger)
    sampler.advance(state, 2)
    assert rows == [2 * len(TEXTS)] * 2
    assert ledger.spent == sampler.price(state, 2)


def test_a_pipeline_that_takes_no_lists_computes_one_text_after_another() -> None:
    pipe = build(TINY["stable_diffusion"])
    encode = pipe.encode_prompt

    def picky(prompt: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(prompt, list):
            raise ValueError("one prompt at a time")
        return encode(prompt, *args, **kwargs)

    pipe.encode_prompt = picky
    sampler = sampler_of(pipe, TINY["stable_diffusion"])
    check_alone(sampler, [Condition(text) for text in TEXTS])
    assert len({sampler._group(Condition(text)) for text in TEXTS}) == 3


def test_encoders_of_several_texts_at_once_are_taken_apart() -> None:
    """A pipeline that encodes its prompt and its negative prompt in one batch."""
    pipe = build(TINY["flux"])
    encode, encoder = pipe.encode_prompt, pipe.text_encoder
    ran = count_encodings(pipe)

    def both(prompt: Any, *args: Any, **kwargs: Any) -> Any:
        texts = [prompt] if isinstance(prompt, str) else prompt
        ids = pipe.tokenizer([*texts, *["blurry"] * len(texts)], padding="max_length", return_tensors="pt")
        shift = encoder(ids.input_ids).pooler_output.chunk(2)[0]
        embeds, pooled, text_ids = encode(prompt, *args, **kwargs)
        return embeds, pooled + shift.repeat_interleave(len(pooled) // len(texts), 0), text_ids

    pipe.encode_prompt = both
    sampler = sampler_of(pipe, TINY["flux"])
    conditions = [Condition(text) for text in TEXTS]
    check_alone(sampler, conditions)
    assert ran.count("text_encoder") == 2 * len(TEXTS)  # alone as the pipeline does it, and never again


# Negative texts, guidance and other overrides


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_xl", "cogview4", "wan"])
def test_rows_with_negative_texts_of_their_own(name: str) -> None:
    pipe = build(TINY[name])
    sampler = sampler_of(pipe, TINY[name])
    negatives = ("a black circle", None, "two white stars", "")
    conditions = [Condition(TEXTS[0], negative_text=text) for text in negatives]
    expected = [
        plain(pipe, name, uid, prompt=TEXTS[0], negative_prompt=text) for uid, text in enumerate(negatives)
    ]
    check_alone(sampler, conditions, expected=expected)


@pytest.mark.parametrize(
    ("name", "argument", "values", "nfe"),
    [
        ("stable_diffusion", "guidance_scale", (4.0, 1.0, 9.0), (2, 1, 2)),
        ("stable_diffusion_3", "guidance_scale", (2.0, 1.0, 7.0), (2, 1, 2)),
        ("flux", "guidance_scale", (1.0, 3.5, 9.0), (1, 1, 1)),
        ("pixart_sigma", "guidance_scale", (4.0, 1.0, 4.0), (2, 1, 2)),
        ("wan", "guidance_scale", (1.0, 3.0, 3.0), (1, 2, 2)),
        ("stable_diffusion", "guidance_rescale", (0.0, 0.5, 1.0), (2, 2, 2)),
    ],
)
def test_rows_with_overrides_of_their_own(
    name: str, argument: str, values: tuple[Any, ...], nfe: tuple[int, ...]
) -> None:
    pipe = build(TINY[name])
    sampler = sampler_of(pipe, TINY[name])
    conditions = [Condition(text, overrides={argument: v}) for text, v in zip(TEXTS, values)]
    expected = [
        plain(pipe, name, uid, **{"prompt": text, argument: value})
        for uid, (text, value) in enumerate(zip(TEXTS, values))
    ]
    costs = [sampler.cost(condition, 0, STEPS).nfe for condition in conditions]
    assert costs == [STEPS * n for n in nfe]
    ledger = Ledger()
    sampler.bind(ledger)
    state = check_alone(sampler, conditions, expected=expected)
    assert (
        ledger.spent.nfe == 2 * sum(costs) == 2 * sampler.price(mixed_state(sampler, conditions), STEPS).nfe
    )
    assert not torch.equal(state.latents[0], state.latents[1])


def lora(pipe: Any, part: str, name: str = "tiny") -> None:
    """Adds a LoRA with random weights to a network of a pipeline."""
    from peft import LoraConfig

    network = getattr(pipe, part)
    targets = ["q_proj", "v_proj"] if part.startswith("text") else ["to_q", "to_v"]
    network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets), adapter_name=name)
    generator = torch.Generator().manual_seed(1)
    for key, weight in network.named_parameters():
        if "lora_" in key:
            weight.data = torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize(
    ("name", "argument", "part"),
    [
        ("stable_diffusion", "cross_attention_kwargs", "unet"),
        ("stable_diffusion", "cross_attention_kwargs", "text_encoder"),
        ("stable_diffusion_3", "joint_attention_kwargs", "transformer"),
        ("flux", "joint_attention_kwargs", "transformer"),
    ],
)
def test_rows_with_scales_of_a_lora_of_their_own(name: str, argument: str, part: str) -> None:
    pipe = build(TINY[name])
    lora(pipe, part)
    sampler = sampler_of(pipe, TINY[name])
    scales = (0.0, 0.5, 1.0)
    conditions = [Condition(TEXTS[0], overrides={argument: {"scale": scale}}) for scale in scales]
    expected = [
        plain(pipe, name, uid, **{"prompt": TEXTS[0], argument: {"scale": scale}})
        for uid, scale in enumerate(scales)
    ]
    check_alone(sampler, conditions, expected=expected)
    from_one_noise = [sampler.advance(sampler.init(c, [0], seed=SEED), STEPS).latents for c in conditions]
    assert not close(from_one_noise[0], from_one_noise[1], 1e-3)
    assert not close(from_one_noise[1], from_one_noise[2], 1e-3)


# Images and embeddings


def ramp_image(red: int, green: int) -> Image.Image:
    """A smooth image, 16 x 16."""
    ramp = np.linspace(0, 255, 16, dtype=np.uint8)
    blue = np.broadcast_to(ramp, (16, 16))
    return Image.fromarray(np.stack([np.full_like(blue, red), np.full_like(blue, green), blue], -1))


def test_rows_with_input_images_of_their_own() -> None:
    name = "stable_diffusion_img2img"
    pipe = build(TINY[name])
    settings = {"guidance_scale": 4.0, "strength": 0.7, "num_inference_steps": STEPS}
    sampler = DiffusersSampler(pipe, options=SamplerOptions(pipeline_kwargs=settings))
    images = [ramp_image(0, 250), ramp_image(200, 30)]
    conditions = [
        Condition(TEXTS[0], images=images[0]),
        Condition(TEXTS[1], images={"image": images[1]}),
        Condition(TEXTS[0], images=images[1]),
        Condition(TEXTS[0], images=images[0]),
    ]
    expected = [
        plain(pipe, name, uid, prompt=c.text, image=c.images["image"].value)
        for uid, c in enumerate(conditions)
    ]
    check_alone(sampler, conditions, expected=expected)
    assert not close(expected[0], expected[3], 1e-3)
    assert sampler._group(conditions[0]) == sampler._group(conditions[3])


@pytest.mark.parametrize("name", ["stable_diffusion", "wan"])
def test_rows_with_embeddings_in_the_place_of_their_text(name: str) -> None:
    pipe = build(TINY[name])
    sampler = sampler_of(pipe, TINY[name])
    device = torch.device("cpu")
    encoded = [pipe.encode_prompt(text, device=device, **_encoding(name)) for text in TEXTS[:2]]
    conditions = [
        Condition("written in no tokenizer", embeddings={"prompt_embeds": encoded[0][0]}),
        Condition(TEXTS[1]),
        Condition(
            "circle " * 500,  # too long for the encoder, which does not see it
            embeddings={"prompt_embeds": encoded[1][0], "negative_prompt_embeds": encoded[0][0]},
        ),
        Condition(TEXTS[0]),
    ]
    expected = [
        plain(pipe, name, 0, prompt=TEXTS[0]),
        plain(pipe, name, 1, prompt=TEXTS[1]),
        plain(pipe, name, 2, prompt=TEXTS[1], negative_prompt=TEXTS[0]),
        plain(pipe, name, 3, prompt=TEXTS[0]),
    ]
    check_alone(sampler, conditions, expected=expected)
    several = sampler.advance(sampler.init(conditions[0], [0, 7], seed=SEED), STEPS).latents
    assert close(several[:1], expected[0], 1e-5)


def _encoding(name: str) -> dict[str, Any]:
    if name == "wan":
        return {"max_sequence_length": 16}
    return {"num_images_per_prompt": 1, "do_classifier_free_guidance": True}


def test_embeddings_take_the_place_of_the_texts_in_the_settings() -> None:
    pipe = build(TINY["stable_diffusion"])
    kwargs = {**TINY["stable_diffusion"].kwargs, "num_inference_steps": STEPS, "negative_prompt": "blurry"}
    sampler = DiffusersSampler(pipe, options=SamplerOptions(pipeline_kwargs=kwargs))
    embeds, negative = pipe.encode_prompt(TEXTS[0], torch.device("cpu"), 1, True, negative_prompt=TEXTS[1])
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    state = sampler.advance(sampler.init(Condition("x", embeddings=given), [0], seed=SEED), STEPS)
    own = plain(pipe, "stable_diffusion", 0, prompt=TEXTS[0], negative_prompt=TEXTS[1])
    assert torch.equal(state.latents, own)


# Previews, gradients, going back, new conditions


@pytest.mark.parametrize("name", ["stable_diffusion", "flux", "wan"])
def test_previews_and_gradients_are_those_of_each_row(name: str) -> None:
    sampler = sampler_of(build(TINY[name]), TINY[name])
    conditions = [
        Condition(TEXTS[0]),
        Condition(TEXTS[1], overrides={"guidance_scale": 2.0}),
        Condition(TEXTS[2]),
        Condition(TEXTS[0], overrides={"guidance_scale": 2.0}),
    ]
    seen: list[int] = []

    def reward(pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        weights = torch.linspace(0.5, 1.5, pixels[0].numel())
        return pixels.flatten(1) @ weights / pixels[0].numel()

    state = sampler.advance(mixed_state(sampler, conditions), 2)
    previews = sampler.preview(state)
    ledger = Ledger()
    sampler.bind(ledger)
    ahead = sampler.gradient(state, 1, reward)
    assert seen == [4]  # once, for all rows in order
    assert ledger.spent.nfe == sum(sampler.gradient_cost(c, 2, 1).nfe for c in conditions)
    for row in range(len(conditions)):
        part = state.select([row])
        assert farthest(previews[row], sampler.preview(part)[0]) <= 1
        alone = sampler.gradient(part, 1, reward)
        for key in ("gradient", "reward", "guidance_gain"):
            assert close(ahead.carry[key][row : row + 1], alone.carry[key], 1e-3), key
        assert close(ahead.latents[row : row + 1], alone.latents, 1e-5)


@pytest.mark.parametrize("name", ["stable_diffusion", "flux"])
def test_stochastic_steps_and_renoising_are_those_of_each_row(name: str) -> None:
    sampler = sampler_of(build(TINY[name]), TINY[name], stochastic=True)
    conditions = [Condition(t, overrides={"guidance_scale": s}) for t, s in zip(TEXTS, (1.0, 3.0, 3.0))]
    state = sampler.advance(mixed_state(sampler, conditions), 3)
    back = sampler.renoise(state, 1)
    assert back.conditions == state.conditions and back.step == 1
    end = sampler.advance(back, 2)
    for row in range(3):
        alone = sampler.renoise(state.select([row]), 1)
        assert torch.equal(alone.latents, back.latents[row : row + 1])
        alone = sampler.advance(alone, 2)
        assert close(end.latents[row : row + 1], alone.latents, 1e-5)
        noise = end.carry["step_noise"]
        assert isinstance(noise, Tensor) and torch.equal(noise[row : row + 1], alone.carry["step_noise"])


def test_the_noise_that_a_scheduler_draws_itself_stays_with_its_row() -> None:
    name = "stable_diffusion"
    pipe = build(TINY[name], "euler_a")
    conditions = [Condition(t, overrides={"guidance_scale": s}) for t, s in zip(TEXTS, (3.0, 1.0, 3.0))]
    expected = [
        plain(pipe, name, uid, prompt=c.text, guidance_scale=c.overrides["guidance_scale"])
        for uid, c in enumerate(conditions)
    ]
    check_alone(sampler_of(pipe, TINY[name]), conditions, expected=expected)


@pytest.mark.parametrize(("name", "scheduler"), [("stable_diffusion", "dpm++"), ("wan", None)])
def test_a_new_condition_goes_on_from_the_solvers_history(name: str, scheduler: str | None) -> None:
    """As the pipeline's own call whose prompt changes in the middle of its loop."""
    pipe = build(TINY[name], scheduler)
    sampler = sampler_of(pipe, TINY[name])
    old, new = Condition(TEXTS[0]), Condition(TEXTS[1], overrides={"guidance_scale": 2.0})
    state = sampler.advance(sampler.init(old, [0, 1], seed=SEED), 2)
    changed = sampler.recondition(_with(state, [old, new]))
    assert any(key.startswith("solver/") for key in changed.carry) and "preview" not in changed.carry
    end = sampler.advance(changed, STEPS - 2)
    plain_end = sampler.advance(state, STEPS - 2)
    assert close(end.latents[:1], plain_end.latents[:1], 1e-5)
    assert not close(end.latents[1:], plain_end.latents[1:], 1e-3)
    alone = sampler.advance(sampler.recondition(_with(state.select([1]), [new])), STEPS - 2)
    assert close(end.latents[1:], alone.latents, 1e-5)


def test_a_sampler_of_a_resumed_search_finds_out_again_which_rows_go_together() -> None:
    """States come from the disk there, and nothing was initialised in this session."""
    entry = TINY["flux"]
    sampler = sampler_of(build(entry), entry)
    state = sampler.advance(mixed_state(sampler, [Condition(text) for text in TEXTS]), 2)
    fresh = sampler_of(build(entry), entry)
    assert torch.equal(fresh.advance(state, 2).latents, sampler.advance(state, 2).latents)
    # the shift of its schedule depends on the size, which is unknown before the first call
    again = sampler_of(build(entry), entry)
    assert levels_if_known(again._calls.schedule()) != again._known_levels(state.conditions[0])
    assert torch.equal(again.renoise(state, 1).latents, sampler.renoise(state, 1).latents)


# Refusals


def _with(state: State, conditions: Sequence[Condition]) -> State:
    from dataclasses import replace

    return replace(state, conditions=tuple(conditions))


REFUSED = [
    ("stable_diffusion", {"overrides": {"guidance_scal": 2}}, "Overrides.*did you mean 'guidance_scale'"),
    ("stable_diffusion", {"overrides": {"latents": None}}, "latents is set by the search"),
    ("stable_diffusion", {"overrides": {"num_images_per_prompt": 2}}, "is set by the search"),
    ("stable_diffusion", {"overrides": {"num_inference_steps": 4}}, "keep the 6 steps.*makes them 4"),
    ("stable_diffusion", {"overrides": {"timesteps": [9, 5, 1]}}, "keep the 6 steps|can take but"),
    ("flux", {"overrides": {"sigmas": [1.0, 0.5, 0.2]}}, "keep the 6 steps.*makes them 3"),
    ("flux", {"overrides": {"sigmas": [1.0, 0.9, 0.8, 0.7, 0.5, 0.2]}}, "moves them to other timesteps"),
    ("stable_diffusion_img2img", {"overrides": {"strength": 0.4}}, "keep the 4 steps.*makes them 2"),
    ("stable_diffusion_xl", {"overrides": {"denoising_end": 0.5}}, "keep the 6 steps.*makes them 2"),
    ("stable_diffusion", {"images": Image.new("RGB", (16, 16))}, "Images of a condition.*got 'image'"),
    ("flux", {"images": {"mask": Image.new("L", (16, 16))}}, "Images of a condition.*got 'mask'"),
    (
        "stable_diffusion",
        {"embeddings": {"pooled_prompt_embeds": torch.zeros(1, 4)}},
        "Embeddings.*'pooled_prompt_embeds'",
    ),
    ("stable_diffusion", {"embeddings": {"latents": torch.zeros(1, 4)}}, "latents is set by the search"),
    ("stable_diffusion", {"embeddings": {"prompt_embeds": torch.zeros(2, 77, 16)}}, "of one row.*shape"),
    ("stable_diffusion", {"negative_text": "circle " * 500}, r"at most \d+ tokens.*shorten it"),
    (
        "stable_diffusion",
        {"negative_text": "a", "overrides": {"negative_prompt": "b"}},
        "set each argument once",
    ),
    ("stable_diffusion", {"overrides": {"height": 15}}, "can take but.*divisible by 8"),
]


@pytest.mark.parametrize(("name", "fields", "message"), REFUSED)
def test_conditions_that_cannot_be_taken_are_refused(name: str, fields: dict[str, Any], message: str) -> None:
    sampler = sampler_of(build(TINY[name]), TINY[name], steps=6)
    condition = Condition("two red circles", **fields)
    with pytest.raises(ConfigError, match=message):
        sampler.init(condition, [0], seed=0)
    good = sampler.init(Condition("two red circles"), [0, 1], seed=0)
    with pytest.raises(ConfigError, match=message):
        sampler.recondition(_with(good, [good.conditions[0], condition]))


def test_a_new_condition_of_another_size_is_refused() -> None:
    sampler = sampler_of(build(TINY["stable_diffusion"]), TINY["stable_diffusion"])
    wide = Condition("two red circles", overrides={"width": 32})
    state = sampler.init(Condition("two red circles"), [0], seed=0)
    with pytest.raises(
        ConfigError, match=r"keep the shape of the latents, \(4, 8, 8\).*makes it \(4, 8, 16\)"
    ):
        sampler.recondition(_with(state, [wide]))
    # of that size from the start it is fine
    assert sampler.decode(sampler.advance(sampler.init(wide, [0], seed=0), STEPS))[0].size == (32, 16)


def test_a_text_within_one_tokenizers_limit_is_taken() -> None:
    sampler = sampler_of(build(TINY["stable_diffusion"]), TINY["stable_diffusion"])
    sampler.init(Condition("two red circles", negative_text="a blue star"), [0], seed=0)
    raised = {**TINY["flux"].kwargs, "num_inference_steps": STEPS, "max_sequence_length": 16}
    flux = DiffusersSampler(build(TINY["flux"]), options=SamplerOptions(pipeline_kwargs=raised))
    with pytest.raises(ConfigError, match="at most 77 tokens"):
        flux.init(Condition("circle " * 90), [0], seed=0)
    flux.init(Condition("circle " * 90, overrides={"max_sequence_length": 256}), [0], seed=0)
