"""Decoding by unmasking: golden schedules, and token for token the scheduler of diffusers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import AmusedScheduler
from diffusers.schedulers import scheduling_amused
from torch import Tensor

from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines.tokens.masked import Decoding, gumbel, mask_ratios, spread, step_noise
from tts_vision.tokens import draw

V = 11
# Show-o's, of 256 tokens in 18 steps
MASKS = [255, 252, 247, 240, 232, 221, 209, 196, 181, 164, 146, 127, 108, 87, 66, 44, 22, 1]
TEMPERATURES = [0.94, 0.84, 0.70, 0.54, 0.39]


def test_masks_of_each_step() -> None:
    masks = Decoding(num_inference_steps=18).masks(256)
    # the last step of the published loop leaves one token masked, which nothing reads
    assert masks == [256, *MASKS[:-1], 0]
    assert Decoding(num_inference_steps=1).masks(256) == [256, 0]
    # where the cosine stands still, one token more becomes known in each step
    assert Decoding(num_inference_steps=50).masks(256)[:4] == [256, 255, 254, 253]


def test_temperature_compounds() -> None:
    found = Decoding(num_inference_steps=18).temperatures
    assert [round(t, 2) for t in found[:5]] == TEMPERATURES and found[-1] == 0
    product = 1.0
    for step, temperature in enumerate(found):
        product *= 1 - (step + 1) / 18
        assert temperature == pytest.approx(product)
    doubled = Decoding(num_inference_steps=18, temperature=2).temperatures
    assert doubled == pytest.approx([2 * t for t in found])


@pytest.mark.parametrize(("given", "steps"), [((2, 0), 12), (3.0, 7), ([1.5, 0.5], 4)])
def test_temperature_falls_linearly_as_in_diffusers(given: Any, steps: int) -> None:
    scheduler = AmusedScheduler(mask_token_id=V)
    scheduler.set_timesteps(steps, temperature=given)
    found = Decoding(num_inference_steps=steps, temperature=given, annealing="linear").temperatures
    assert list(found) == scheduler.temperatures.tolist()  # type: ignore[union-attr]


def test_schedules() -> None:
    r = torch.arange(1, 9) / 8
    assert mask_ratios("linear", 8).tolist() == (1 - r).clamp(1e-6).tolist()
    assert mask_ratios("pow2", 8).tolist() == (1 - r**2).clamp(1e-6).tolist()
    assert mask_ratios("pow0.5", 4)[0] == pytest.approx(0.5)
    sigmoid = mask_ratios("sigmoid", 8)
    assert sigmoid[3] == pytest.approx(0.5) and sigmoid[-1] == pytest.approx(1e-6)
    start, end = 1 / (1 + math.exp(3)), 1 / (1 + math.exp(-3))
    quarter = 1 / (1 + math.exp(1.5))
    assert sigmoid[1] == pytest.approx((end - quarter) / (end - start), abs=1e-6)
    for schedule in ("cosine", "linear", "sigmoid", "pow3"):
        assert (mask_ratios(schedule, 20).diff() < 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"schedule": "cube"},
            "schedule must be cosine, linear, sigmoid or a power such as pow2 but got 'cube'",
        ),
        ({"num_inference_steps": 0}, "num_inference_steps must be a number of at least 1 but got 0"),
        ({"temperature": -1}, "temperature must be a number of at least 0"),
        ({"temperature": "hot"}, "temperature must be a number of at least 0"),
        ({"temperature": (2, 0)}, r"A temperature that compounds is one number but got \(2, 0\)"),
        ({"annealing": "slow"}, "annealing must be compound or linear but got 'slow'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Decoding(**settings)


class Reference:
    """The scheduler of diffusers, given the random numbers of our own."""

    def __init__(self, decoding: Decoding, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoding = decoding
        self.scheduler = AmusedScheduler(mask_token_id=V, masking_schedule=decoding.schedule)
        self.scheduler.set_timesteps(decoding.num_inference_steps)
        self.scheduler.temperatures = torch.tensor(decoding.temperatures)
        self.uniform = torch.empty(0)

        def multinomial(probabilities: Tensor, n: int, generator: Any = None) -> Tensor:
            return draw(probabilities, self.uniform[:, 0].flatten())[:, None]

        def noise(like: Tensor, generator: Any = None) -> Tensor:
            u = self.uniform[:, 1]
            return -torch.log((-torch.log(u.clamp(1e-20))).clamp(1e-20))

        monkeypatch.setattr(scheduling_amused.torch, "multinomial", multinomial)
        monkeypatch.setattr(scheduling_amused, "gumbel_noise", noise)

    def step(self, step: int, logits: Tensor, codes: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        self.uniform = uniform
        timestep = self.decoding.num_inference_steps - 1 - step
        output = self.scheduler.step(logits, timestep, codes)
        return output.pred_original_sample, output.prev_sample  # type: ignore[union-attr, return-value]


@pytest.mark.parametrize("guidance", [0.0, 1.75])
@pytest.mark.parametrize("steps", [4, 18, 50])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_token_for_token_the_scheduler_of_diffusers(
    steps: int, guidance: float, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compounded temperatures and guidance of the form ``(1 + w) c - w u`` go in from outside."""
    S, B = 64, 3
    decoding = Decoding(num_inference_steps=steps, schedule=schedule)
    reference = Reference(decoding, monkeypatch)
    generator = torch.Generator().manual_seed(steps)
    table, uncond = (torch.randn(V + 1, S, V, generator=generator) * 2 for _ in range(2))

    def logits(codes: Tensor) -> Tensor:
        cond = table[codes, torch.arange(S)].roll(1, 1)
        return (1 + guidance) * cond - guidance * uncond[codes, torch.arange(S)].roll(-1, 1)

    ours = theirs = torch.full((B, S), V)
    known = []
    for step in range(steps):
        uniform = spread(step_noise(5, (0, 3, 8), step, S))
        guess, ours = decoding.unmasked(step, logits(ours), ours, uniform)
        their_guess, theirs = reference.step(step, logits(theirs), theirs, uniform)
        assert torch.equal(guess, their_guess) and torch.equal(ours, theirs), f"step {step}"
        known.append((ours == V).sum(1).tolist())
    assert known == [[m] * B for m in decoding.masks(S)[1:]]
    assert len({tuple(row.tolist()) for row in ours}) == B


def test_noise_is_gumbel() -> None:
    noise = gumbel(spread(torch.randn(400_000, generator=torch.Generator().manual_seed(0))))
    assert noise.mean() == pytest.approx(0.5772, abs=0.01)
    assert noise.std() == pytest.approx(math.pi / math.sqrt(6), abs=0.01)
    assert gumbel(torch.tensor([0.0, 1 - 2**-24])).isfinite().all()


def test_tokens_follow_their_probabilities() -> None:
    """In one step, which draws all tokens at once."""
    logits = torch.randn(1, 8, V, generator=torch.Generator().manual_seed(1)).expand(4000, -1, -1)
    uniform = spread(step_noise(0, range(4000), 0, 8))
    _, codes = Decoding(num_inference_steps=1).unmasked(0, logits, torch.full((4000, 8), V), uniform)
    shares = torch.nn.functional.one_hot(codes, V).float().mean(0)
    assert torch.allclose(shares, logits[0].softmax(-1), atol=0.03)


def test_the_two_numbers_of_a_token_are_independent() -> None:
    noise = step_noise(0, range(64), 3, 256)
    a, b = noise[:, 0].flatten(), noise[:, 1].flatten()
    assert abs(float((a * b).mean())) < 0.03
    assert torch.equal(noise[5:6], step_noise(0, (5,), 3, 256))
    assert not torch.equal(noise, step_noise(0, range(64), 4, 256))


def test_without_noise_the_likeliest_and_the_surest() -> None:
    logits = torch.zeros(1, 4, V)
    for token, (code, strength) in enumerate([(3, 1.0), (5, 4.0), (1, 3.0), (0, 2.0)]):
        logits[0, token, code] = strength
    guess, codes = Decoding(num_inference_steps=2, schedule="linear").unmasked(
        0, logits, torch.full((1, 4), V), None
    )
    assert guess.tolist() == [[3, 5, 1, 0]] and codes.tolist() == [[V, 5, 1, V]]


def test_known_tokens_stay_as_they_are() -> None:
    decoding = Decoding(num_inference_steps=4, temperature=50.0)
    codes = torch.full((2, 16), V)
    codes[:, :5] = 2
    logits = torch.full((2, 16, V), -50.0)
    logits[..., 7] = 0
    for step in range(4):
        _, codes = decoding.unmasked(step, logits, codes, spread(step_noise(0, (0, 1), step, 16)))
        assert (codes[:, :5] == 2).all()
    assert (codes[:, 5:] == 7).all()


def test_a_part_of_an_image_follows_the_schedule_too() -> None:
    """Twenty of 256 tokens from half-way on: as many in each step, in proportion, as of a whole image."""
    decoding = Decoding(num_inference_steps=18)
    codes = torch.zeros(1, 256, dtype=torch.long)
    codes[:, 100:120] = V
    start = torch.tensor([20 / 256 / decoding.ratio_before(9)])
    logits = torch.randn(1, 256, V, generator=torch.Generator().manual_seed(0))
    left = []
    for step in range(9, 18):
        uniform = spread(step_noise(0, (0,), step, 256))
        _, codes = decoding.unmasked(step, logits, codes, uniform, start)
        left.append(int((codes == V).sum()))
    whole = [math.cos(math.pi / 2 * step / 18) / math.cos(math.pi / 4) for step in range(10, 18)]
    assert left == [*(max(1, math.floor(20 * share)) for share in whole), 0]


def test_logits_that_are_no_numbers_are_refused() -> None:
    logits = torch.zeros(1, 4, V)
    logits[0, 2, 3] = torch.nan
    with pytest.raises(PipelineError, match="Logits must be finite but step 0 has some that are NaN"):
        Decoding().unmasked(0, logits, torch.full((1, 4), V), None)
