"""Scales of a real image that particles continue: encoded, shared, paid for, recorded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_infinity import SCHEDULE, tiny_infinity
from tiny_var import VAR_SCHEDULE, var, vqvae
from typer.testing import CliRunner

import tts_vision
from tts_vision.algorithms.beam_search import beam_search
from tts_vision.cli import app
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.ledger import Ledger
from tts_vision.pipelines.var.class_pipeline import VARPipeline
from tts_vision.pipelines.var.given import covering
from tts_vision.pipelines.var.infinity import Infinity
from tts_vision.pipelines.var_sampler import ScaleSampler
from tts_vision.rehearsal import rehearse
from tts_vision.testing.contracts import SamplerContract
from tts_vision.testing.toys import TargetReward
from tts_vision.types import Cost, Prompt, State

TEXT = "two red circles"
CONDITION = Condition(TEXT)
SIDE = 4 * SCHEDULE.final[0] * 2  # stride 4, cells in patches of 2


def photo(seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def options(scales: int = 2, **more: Any) -> SamplerOptions:
    kwargs = {"gt_leak": scales, **more}
    return SamplerOptions(pipeline_kwargs=kwargs)


def sampler_of(scales: int = 2, **more: Any) -> ScaleSampler:
    return ScaleSampler(tiny_infinity(), options=options(scales, **{"image": photo(), **more}))


def var_of(**settings: Any) -> ScaleSampler:
    kwargs = {"gt_leak": 2, "image": photo(size=(24, 24)), "top_k": 0, "top_p": 0.0, **settings}
    return ScaleSampler(VARPipeline(var(), vqvae()), options=SamplerOptions(pipeline_kwargs=kwargs))


class TestContinuedInfinity(SamplerContract):
    @pytest.fixture
    def sampler(self) -> ScaleSampler:
        return sampler_of()


class TestContinuedVAR(SamplerContract):
    @pytest.fixture
    def condition(self) -> Condition:
        return Condition("a fish", overrides={"class_id": 3})

    @pytest.fixture
    def sampler(self) -> ScaleSampler:
        return var_of()


def bits_by_hand(image: Image.Image, scales: int) -> torch.Tensor:
    """The signs of the remainders, scale by scale, as Infinity's tokenizer defines them."""
    vae = tiny_infinity().vae
    rest = vae.encode(torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 127.5 - 1)
    found = []
    for h, w in SCHEDULE.grids[:scales]:
        down = F.adaptive_avg_pool2d(rest, (2 * h, 2 * w))
        found.append(F.pixel_unshuffle((down > 0).float(), 2).flatten(2).transpose(1, 2))
        code = ((down > 0).float() * 2 - 1) / math.sqrt(4)
        rest = rest - F.interpolate(code, rest.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat(found, 1).to(torch.uint8)


@pytest.mark.parametrize("scales", [1, 3])
def test_the_first_scales_are_those_of_the_image(scales: int) -> None:
    sampler = sampler_of(scales)
    state = sampler.init(CONDITION, (0, 1, 2), seed=4)
    assert sampler.num_steps == len(SCHEDULE) - scales and sampler.last_noisy_step == sampler.num_steps - 1
    assert torch.equal(state.latents, bits_by_hand(photo(), scales).expand(3, -1, -1))
    end = sampler.advance(state, sampler.num_steps)
    given = SCHEDULE.starts[scales]
    assert torch.equal(end.latents[:, :given], state.latents)
    assert end.latents.shape[1] == SCHEDULE.starts[-1]
    assert len(np.unique(end.latents[:, given:].flatten(1).numpy(), axis=0)) == 3


def test_ids_of_a_vocabulary_are_the_nearest_embeddings() -> None:
    sampler, vae = var_of(), vqvae()
    tokens = sampler.init(Condition("3"), (0,), seed=0).latents
    features = vae.encode(torch.tensor(np.asarray(photo(size=(24, 24)))).permute(2, 0, 1)[None] / 127.5 - 1)
    table = vae.quantizer.embedding.weight
    first = torch.cdist(features.mean((2, 3)), table).argmin(-1)
    assert tokens[0, 0] == first[0]
    rest = features - vae.quantizer.contribution(first[None], VAR_SCHEDULE, 0)
    second = torch.cdist(F.adaptive_avg_pool2d(rest, 2).flatten(2).transpose(1, 2), table[None]).argmin(-1)
    assert torch.equal(tokens[:, 1:], second) and tokens.shape == (1, 5)


def test_stepwise_equals_whole_and_the_scales_after_follow_from_those_given() -> None:
    sampler = sampler_of(guidance_scale=3.0)
    state = sampler.init(CONDITION, (0, 1), seed=5)
    for _ in range(sampler.num_steps):
        state = sampler.advance(state)
    call: dict[str, Any] = {"gt_leak": 2, "image": photo(), "guidance_scale": 3.0}
    whole = tiny_infinity()(TEXT, seed=5, n=2, **call)
    for stepwise, image in zip(sampler.decode(state), whole):
        assert np.array_equal(np.asarray(stepwise), np.asarray(image))
    tokens = tiny_infinity()(TEXT, seed=5, n=2, output_type="tokens", **call)
    assert torch.equal(tokens, state.latents)
    other = tiny_infinity()(TEXT, seed=5, n=2, output_type="tokens", **{**call, "image": photo(1)})
    given = SCHEDULE.starts[2]
    assert not torch.equal(other[:, given:], tokens[:, given:])
    # the model is the one that goes on from these tokens anyway: a sampler without an image, put there
    free = ScaleSampler(tiny_infinity(), options=SamplerOptions(pipeline_kwargs={"guidance_scale": 3.0}))
    put = State(tokens[:, :given], 2, (0, 1), (CONDITION,) * 2, 5)
    assert torch.equal(free.advance(put, 3).latents, tokens)


def test_keys_and_values_of_given_scales_are_paid_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, ledger, rows = sampler_of(3), Ledger(), []
    scale = Infinity.scale
    monkeypatch.setattr(
        Infinity, "scale", lambda self, c, *args: rows.append(len(c.pooled)) or scale(self, c, *args)
    )
    state = sampler.init(CONDITION, (0, 1, 2), seed=0)
    sampler.bind(ledger)
    assert not rows
    planned = sampler.price(state, 1)
    state = sampler.advance(state)
    assert ledger.spent == planned == sampler.cost(CONDITION, 0, 1)
    assert ledger.spent.nfe == sum(rows) == 2 * 4, "three scales given and one drawn, shared by all rows"
    assert ledger.spent.tokens == 2 * SCHEDULE.starts[4]
    state = sampler.advance(state)
    assert ledger.spent.nfe == sum(rows) == 2 * 4 + 2 * 3
    back = sampler.renoise(state, 0)
    sampler.advance(back)
    assert ledger.spent.nfe == sum(rows) == 2 * 4 + 2 * 3 + 2 * 4, "made again, and paid for again"
    assert sampler.cost(CONDITION, 0, 2) == sampler.cost(CONDITION, 0, 1) + sampler.cost(CONDITION, 1, 1)
    free = ScaleSampler(tiny_infinity())
    assert sampler.cost(CONDITION, 0, 2) == free.cost(CONDITION, 0, 5)


def test_each_condition_may_have_an_image_of_its_own() -> None:
    sampler = ScaleSampler(tiny_infinity(), options=options(2))
    with pytest.raises(ConfigError, match=r"gt_leak=2 continues the first scales of an image but none is"):
        sampler.init(CONDITION, (0,), seed=0)
    own = [Condition(TEXT, images=photo(seed)) for seed in (0, 1)]
    both = State.cat([sampler.init(c, (uid,), seed=0) for uid, c in enumerate(own)])
    assert not torch.equal(*both.latents)
    end = sampler.advance(both, sampler.num_steps)
    alone = sampler.advance(both.select([1]), sampler.num_steps)
    assert torch.equal(end.latents[1:], alone.latents)
    before = sampler_of(image=photo(7)).init(own[1], (0,), seed=0)
    assert torch.equal(before.latents, both.latents[1:]), "that of a condition goes first"
    changed = sampler.recondition(State(both.latents, 0, (0, 1), (own[1], own[0]), 0))
    assert torch.equal(changed.latents, both.latents.flip(0))


def test_images_of_other_sizes_cover_the_sample_and_are_cropped_in_the_centre() -> None:
    plain = Image.new("RGB", (8, 4), (255, 0, 0))
    plain.paste((0, 0, 255), (2, 0, 6, 4))
    assert covering(plain, 4, 4)[:, 0].T.tolist() == [[-1, -1, 1]] * 4
    assert covering(plain.convert("RGBA"), 4, 4).shape == (3, 4, 4)
    assert covering(photo(size=(7, 31)), 9, 5).shape == (3, 9, 5)
    exact = photo(size=(6, 5))
    assert torch.equal(covering(exact, 5, 6), torch.tensor(np.asarray(exact)).permute(2, 0, 1) / 127.5 - 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gt_leak": 5, "image": photo()}, r"gt_leak must be a number of scales from 0 to 4.* but got 5"),
        ({"gt_leak": True, "image": photo()}, "gt_leak must be a number of scales from 0 to 4"),
        ({"gt_leak": "two"}, "but got 'two'"),
        ({"image": photo()}, "but gt_leak is 0; set gt_leak to the number of scales"),
        ({"gt_leak": 1, "image": torch.zeros(3, 8, 8)}, "image must be a PIL image but got Tensor"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    for pipe in (tiny_infinity(), VARPipeline(var(), vqvae())):
        with pytest.raises(ConfigError, match=message):
            pipe.configured(settings)


def test_images_without_given_scales_are_refused() -> None:
    with pytest.raises(ConfigError, match="or set gt_leak to continue an image"):
        ScaleSampler(tiny_infinity()).init(Condition(TEXT, images=photo()), (0,), seed=0)
    with pytest.raises(ConfigError, match="no images but image and no embeddings but got mask_image"):
        sampler_of().init(Condition(TEXT, images={"mask_image": photo()}), (0,), seed=0)


@pytest.mark.parametrize("preview", ["decode", "expected", "complete"])
def test_previews_and_rehearsals_count_from_the_first_scale_drawn(preview: str) -> None:
    def context() -> SearchContext:
        given = options(2, image=photo()).model_copy(update={"preview": preview})
        return SearchContext(
            ScaleSampler(tiny_infinity(), options=given), TargetReward(), Prompt(TEXT), seed=0
        )

    planned, ctx = rehearse(context(), beam_search, {"width": 2}), context()
    beam_search(ctx, width=2)
    assert planned is not None and 0 < ctx.ledger.spent.nfe <= planned.nfe
    prices = {"decode": (), "expected": (3,), "complete": (3, 4)}[preview]
    free = ScaleSampler(tiny_infinity())
    expected = sum((free.cost(CONDITION, k, 1) for k in prices), Cost())
    assert ctx.sampler.preview_cost(CONDITION, 1) == expected


def brightness(images: Any, prompts: Any) -> list[float]:
    return [float(np.asarray(image).mean()) for image in images]


def test_a_folder_holds_the_image_for_resume_and_replay(tmp_path: Path) -> None:
    pipe, kwargs = tiny_infinity(), {"gt_leak": 2, "image": photo()}

    def search(folder: str, **more: Any) -> Any:
        return tts_vision.search(
            pipe,
            TEXT,
            algorithm="beam_search",
            verifier=brightness,
            budget="4x",
            output=tmp_path / folder,
            **more,
        )

    result = search("a", pipeline_kwargs=kwargs)
    config = (tmp_path / "a" / "config.yaml").read_text()
    assert "image: <Image " in config
    assert len([*(tmp_path / "a" / "conditions").iterdir()]) == 1
    replayed = tts_vision.replay(tmp_path / "a", pipe=pipe, verifier=brightness)
    assert replayed.max_difference == 0
    assert search("a", pipeline_kwargs=kwargs, resume=True).best.uid == result.best.uid
    with pytest.raises(ConfigError, match="image"):
        search("a", pipeline_kwargs={**kwargs, "image": photo(3)}, resume=True)
    for file in (tmp_path / "a" / "conditions").iterdir():
        file.unlink()
    with pytest.raises(ConfigError, match=r"image of the pipeline must be at hand but got '<Image \w+>'"):
        tts_vision.replay(tmp_path / "a", pipe=pipe)


def test_from_the_command_line(tmp_path: Path) -> None:
    photo(5).save(tmp_path / "photo.png")
    arguments = ["generate", "a photo of two red circles", "--model", "playground-var", "--budget", "3x"]
    folder = tmp_path / "out"
    given = ["--set", "pipeline.gt_leak=2", "--set", f"pipeline.image={tmp_path / 'photo.png'}"]
    done = CliRunner().invoke(app, [*arguments, *given, "--output", str(folder)])
    assert done.exit_code == 0, done.output
    (tmp_path / "photo.png").unlink()
    again = CliRunner().invoke(app, ["replay", str(folder)])
    assert again.exit_code == 0, again.output
    missing = CliRunner().invoke(app, [*arguments, *given])
    assert missing.exit_code and "must be the file of an image but" in missing.output
    written = CliRunner().invoke(app, ["generate", "--config", str(folder / "config.yaml"), "--trust"])
    assert written.exit_code and "must be at hand" in written.output


def test_a_killed_search_goes_on_from_its_folder_alone(tmp_path: Path) -> None:
    photo(5).save(tmp_path / "photo.png")
    folder = tmp_path / "out"
    command = f"generate|two red circles|--model|playground-var|-a|beam_search|--budget|3x|--output|{folder}"
    given = ["--set", "pipeline.gt_leak=2", "--set", f"pipeline.image={tmp_path / 'photo.png'}"]
    with pytest.MonkeyPatch.context() as patch:
        calls: list[int] = []
        advance = ScaleSampler.advance

        def dying(self: ScaleSampler, state: State, steps: int = 1) -> State:
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return advance(self, state, steps)

        patch.setattr(ScaleSampler, "advance", dying)
        assert CliRunner().invoke(app, [*command.split("|"), *given]).exit_code
    (tmp_path / "photo.png").unlink()
    done = CliRunner().invoke(app, ["resume", str(folder)])
    assert done.exit_code == 0, done.output
    assert not list((tmp_path / "out").glob("*.part"))
    assert [*folder.glob("best.png")]
