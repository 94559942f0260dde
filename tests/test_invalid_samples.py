"""Invalid samples: broken, flagged by the pipeline, not decodable; and verifiers that change samples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tiny_pipelines import TINY
from toy_plugins import MODEL, VERIFIER
from toy_search import toy_context
from tts_vision import search
from tts_vision.candidates import Candidate
from tts_vision.condition import Condition
from tts_vision.context import SearchContext
from tts_vision.errors import CapabilityError, PipelineError, VerifierError
from tts_vision.figures import contact_sheet
from tts_vision.media import pixels, read_media, read_text
from tts_vision.pipelines.decoding import DecodeWatch
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.registry import lookup
from tts_vision.replays import replay
from tts_vision.results import load_result
from tts_vision.runner import conduct
from tts_vision.sampler import Sampler
from tts_vision.scoring import safe_scores
from tts_vision.testing.contracts import Ranked, kill_everywhere
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward, position_of
from tts_vision.trace import answers
from tts_vision.types import Decoded, Invalid, Media, Modality, Prompt, Score, State, Video
from tts_vision.verifier import ALONE, Asked, Verifier

NAN = float("nan")
PROMPT = "two red circles"
ALGORITHMS = (
    "best_of_n",
    "zero_order",
    "search_over_paths",
    "evosearch",
    "fk_steering",
    "das",
    "beam_search",
    "greedy",
)


def is_bad(media: Media) -> bool:
    """Whether the toy's sample lies left of the middle: about 2 of 3."""
    return bool(position_of(media)[0] < -0.5)


class Broken(GaussianMixtureSampler):
    """The toy, of whose samples and previews some are invalid; of every second one nothing is left."""

    def __init__(self, *, num_steps: int = 5, bad: Callable[[Media], bool] = is_bad, **settings: Any) -> None:
        super().__init__(num_steps=num_steps, **settings)
        self.bad = bad

    def _broken(self, media: Sequence[Media], uids: Sequence[int]) -> list[Decoded]:
        return [
            Invalid("broken on purpose", None if uid % 2 else m) if self.bad(m) else m
            for m, uid in zip(media, uids)
        ]

    def decode(self, state: State) -> list[Decoded]:  # type: ignore[override]
        return self._broken(super().decode(state), state.uids)

    def preview(self, state: State) -> list[Decoded]:  # type: ignore[override]
        return self._broken(super().preview(state), state.uids)


class Counting(TargetReward):
    """Prefers invalid samples, and notes which samples it is asked about."""

    name = "counting"

    def __init__(self) -> None:
        super().__init__((-9.0, 0.0))
        self.seen: list[Media] = []

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        self.seen += media
        return super().score(media, prompts, asked)


# Judging


def test_nobody_is_asked_about_an_invalid_sample_and_it_never_wins() -> None:
    verifier = Counting()
    ctx = toy_context(Broken(), verifier)
    scores = ctx.score(ctx.finish(ctx.init(12)))
    invalid = [uid for uid, c in ctx.candidates.items() if c.score.is_invalid]
    assert 2 < len(invalid) < 11
    assert scores.isnan().nonzero().flatten().tolist() == invalid
    assert not any(map(is_bad, verifier.seen)) and len(verifier.seen) == 12 - len(invalid)
    assert ctx.ledger.spent.verifier_calls == len(verifier.seen)
    assert ctx.ledger.spent.decodes == 12
    assert ctx.best is not None and ctx.best.uid not in invalid
    for uid in invalid:
        assert ctx.candidates[uid].score.reason == "invalid sample: broken on purpose"
        assert (ctx.candidates[uid].media is None) == bool(uid % 2)
    # and it stays scored: a second time costs nothing
    ctx.score(ctx.finish(ctx.init(1)))
    assert ctx.ledger.spent.decodes == 13


def test_invalid_previews_have_no_score() -> None:
    ctx = toy_context(Broken(), Counting())
    state = ctx.advance(ctx.init(12), 3)
    scores = ctx.score(state)
    assert 0 < int(scores.isnan().sum()) < 12
    assert ctx.best_preview is not None and not math.isnan(ctx.best_preview.score.value)
    stage = ctx.score(state, "another prompt")
    assert torch.equal(stage.isnan(), scores.isnan())
    assert ctx.ledger.spent.verifier_calls == 2 * int((~scores.isnan()).sum())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_lives_with_invalid_samples(algorithm: str) -> None:
    entry = lookup("algorithm", algorithm)
    # das follows the gradient, so it is not drawn to what is invalid
    verifier = TargetReward() if algorithm == "das" else Counting()
    ctx = toy_context(Broken(num_steps=6), verifier, times=12)
    conduct(ctx, entry.target, {}, entry.size)
    assert any(c.score.is_invalid for c in ctx.candidates.values())
    assert ctx.best is not None and not is_bad(ctx.best.load())
    assert ctx.ledger.spent.nfe <= 12 * 6


@pytest.mark.parametrize("algorithm", ["fk_steering", "evosearch", "beam_search"])
def test_every_kill_is_survived(algorithm: str, tmp_path: Path) -> None:
    target = lookup("algorithm", algorithm).target
    size = lookup("algorithm", algorithm).size
    kill_everywhere(partial(target, **{size: 4}), Broken, Counting(), tmp_path, most=12)


class MeanColour:
    """Features of any image."""

    name = "mean_colour"
    accepts: frozenset[Modality] = frozenset({"image", "video"})

    def __init__(self) -> None:
        self.seen: list[Media] = []

    def features(self, media: Sequence[Media]) -> Tensor:
        self.seen += media
        found = torch.tensor([[*pixels(m).mean((0, 1, 2))] for m in media], dtype=torch.float32)
        for m in media:
            if isinstance(m, Image.Image):
                m.paste((0, 0, 0), (0, 0, *m.size))
        return found


def test_invalid_samples_are_embedded_as_they_are_or_as_black() -> None:
    ctx, extractor = toy_context(Broken()), MeanColour()
    state = ctx.finish(ctx.init(8))
    rows = ctx.features(state, extractor)
    assert rows.isfinite().all() and rows.shape == (8, 3)
    ctx.score(state)
    assert ctx.ledger.spent.decodes == 8, "decoded once for both"
    for row, candidate in zip(rows, ctx.candidates.values()):
        assert bool(row.any()) == (candidate.media is not None)
        if candidate.media is not None:
            assert np.asarray(candidate.load()).any(), "the extractor painted a copy"
    none = toy_context(Broken(bad=lambda media: True))
    state = none.finish(none.init(2))
    assert none.features(state.select([1]), extractor).tolist() == [[0.0, 0.0, 0.0]]
    assert extractor.seen[-1].size == (64, 64)  # type: ignore[union-attr]


def test_kills_between_decoding_embedding_and_scoring(tmp_path: Path) -> None:
    def algorithm(ctx: SearchContext) -> State:
        state = ctx.advance(ctx.init(6), 2)
        ctx.features(state, MeanColour())
        scores = ctx.score(state)
        kept = scores.nan_to_num(-math.inf).topk(3).indices.tolist()
        state = ctx.finish(ctx.select(state, kept))
        ctx.features(state, MeanColour())
        ctx.score(state)
        return state

    kill_everywhere(algorithm, Broken, Counting(), tmp_path)


@pytest.mark.parametrize("verifier", [Ranked(Counting()), None])
def test_values_that_settle_leave_invalid_samples_out(verifier: Verifier | None) -> None:
    from tts_vision.verifiers.cascade import Cascade

    settling = verifier or Cascade([TargetReward(), Counting()])
    ctx = toy_context(Broken(), settling)
    scores = ctx.score(ctx.finish(ctx.init(12)))
    ctx.score(ctx.finish(ctx.init(4)))
    for uid, candidate in ctx.candidates.items():
        invalid = candidate.score.is_invalid
        assert math.isnan(candidate.score.value) == invalid
        assert uid >= 12 or math.isnan(scores[uid]) == invalid
    assert ctx.best is not None and not ctx.best.score.is_invalid


def everything(media: Media) -> bool:
    return True


@pytest.mark.parametrize("budget", ["4x", "nfe=20", "verifier_calls=6", "verifier_calls=6 and nfe=40"])
def test_a_search_whose_samples_are_all_invalid_ends_and_says_so(budget: str, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"at least one valid sample but all \d+ of .*broken on purpose"):
        search(
            Broken(bad=everything), PROMPT, verifier=TargetReward(), budget=budget, output=tmp_path / "out"
        )
    report = json.loads((tmp_path / "out" / "result.json").read_text())
    assert report["best"] is None and report["invalid_samples"] == len(report["population"]) > 0


def test_a_verifier_that_scores_nothing_is_still_to_blame_for_valid_samples() -> None:
    def blind(media: list[Media], prompts: list[str]) -> list[float]:
        return [NAN] * len(media)

    with pytest.raises(VerifierError, match="scored none of"):
        search(Broken(), PROMPT, verifier=blind, budget="8x")


def test_a_budget_of_calls_is_spent_on_valid_samples() -> None:
    result = search(Broken(), PROMPT, verifier=TargetReward(), budget="verifier_calls=8")
    assert result.spent.verifier_calls == 8 and len(result.population) > 8


# Reports


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("invalid") / "out"
    search(
        Broken(eta=0.0),
        PROMPT,
        verifier=Counting(),
        holdout_verifier=TargetReward(),
        budget="12x",
        seed=2,
        output=root,
    )
    return root


@pytest.mark.filterwarnings("ignore::tts_vision.errors.HoldoutWarning")
def test_the_report_has_the_reason(folder: Path) -> None:
    report = json.loads((folder / "result.json").read_text())
    invalid = [e for e in report["population"] if "invalid sample" in (e["reason"] or "")]
    assert report["invalid_samples"] == len(invalid) > 1
    assert report["population"][-len(invalid) :] == invalid, "last"
    for entry in invalid:
        assert entry["score"] is None and entry["reason"] == "invalid sample: broken on purpose"
        if entry["uid"] % 2:
            assert entry["file"] is None
        else:
            assert entry["file"] == f"population/{entry['uid']:05d}_invalid.png"
            assert read_text(folder / entry["file"])["reason"] == entry["reason"]
    result = load_result(folder)
    assert [c.uid for c in result.invalid] == [entry["uid"] for entry in invalid]
    assert f"{len(invalid)} of them invalid" in repr(result)
    assert all((c.path is None) == bool(c.uid % 2) for c in result.invalid)
    lost = next(c for c in result.invalid if c.path is None)
    with pytest.raises(Exception, match="must have pixels but that of particle"):
        lost.load()
    assert replay(folder, Broken(eta=0.0)).max_difference == 0


def test_the_holdout_is_not_asked_about_invalid_samples(folder: Path) -> None:
    result = load_result(folder)
    (event,) = answers(result.trace, "heldout")
    invalid = {c.uid for c in result.invalid}
    assert {uid for uid, score in zip(event.uids, event.scores) if score.is_invalid} == invalid
    assert result.holdout is not None
    assert result.holdout.calls == len(result.population) - len(invalid) and result.holdout.unscored == 0


def test_the_contact_sheet_marks_plain_and_invalid_samples(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    text = ImageDraw.ImageDraw.text

    def note(self: Any, xy: Any, label: str, *args: Any, **kwargs: Any) -> None:
        said.append(label)
        text(self, xy, label, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    result = load_result(folder)
    assert result.plain is not None
    sheet = contact_sheet(result.population, plain=result.plain.uid)
    assert sum("invalid" in label for label in said) == len(result.invalid)
    assert [label for label in said if "plain" in label] == [
        next(label for label in said if label.startswith("#0 "))
    ]
    blank = Candidate(5, Score.of_invalid("nothing"), 4)
    unscored = Candidate(6, Score.unscored("no"), 4, media=Image.new("RGB", (8, 8)))
    said.clear()
    other = contact_sheet([blank, unscored])
    assert said[1:] == ["#5  invalid", "#6  unscored"]
    assert sheet.size != other.size


def test_a_killed_search_with_invalid_samples_gives_the_same_report(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def stop_after(n: int) -> Any:
        seen: list[Any] = []

        def observe(context: SearchContext, event: Any) -> None:
            seen.append(event)
            if len(seen) == n:
                raise Killed

        return observe

    def run(name: str, **settings: Any) -> dict[str, Any]:
        search(
            Broken(),
            PROMPT,
            algorithm="evosearch",
            verifier=TargetReward(),
            budget="12x",
            output=tmp_path / name,
            max_batch=3,
            **settings,
        )
        return {**json.loads((tmp_path / name / "result.json").read_text()), "timing": None}

    whole = run("whole")
    assert whole["invalid_samples"]
    for n in (3, 6, 9, 14, 20):
        with pytest.raises(Killed):
            run(f"cut{n}", progress=stop_after(n))
        assert run(f"cut{n}", resume=True) == whole


# Decoding that fails


class Failing(GaussianMixtureSampler):
    """Fails on batches with a bad row."""

    def __init__(self, error: Exception) -> None:
        super().__init__(num_steps=4)
        self.error, self.sizes = error, list[int]()

    def decode(self, state: State) -> list[Media]:
        self.sizes.append(len(state))
        media = super().decode(state)
        if any(map(is_bad, media)):
            raise self.error
        return media


def test_a_decode_that_fails_is_tried_row_by_row() -> None:
    sampler = Failing(ValueError("bad row"))
    ctx = toy_context(sampler, Counting())
    ctx.score(ctx.finish(ctx.init(8)))
    assert sampler.sizes == [8] + [1] * 8
    reasons = {c.score.reason for c in ctx.candidates.values() if c.score.is_invalid}
    assert reasons == {"invalid sample: decoding raised ValueError: bad row"}
    assert ctx.best is not None and not is_bad(ctx.best.load())
    assert ctx.ledger.spent.decodes == 8
    assert 0 < ctx.ledger.spent.verifier_calls < 8


@pytest.mark.parametrize("error", [PipelineError("no image pipeline"), CapabilityError("no preview")])
def test_mistakes_of_a_setup_are_not_taken_for_bad_samples(error: Exception) -> None:
    ctx = toy_context(Failing(error), Counting())
    with pytest.raises(type(error), match=str(error)):
        ctx.score(ctx.finish(ctx.init(8)))


def test_memory_that_is_full_is_not_taken_for_a_bad_sample() -> None:
    class Small(GaussianMixtureSampler):
        def decode(self, state: State) -> list[Media]:
            if len(state) > 3:
                raise torch.OutOfMemoryError("full")
            return super().decode(state)

    ctx = toy_context(Small(num_steps=4))
    assert ctx.score(ctx.finish(ctx.init(8))).isfinite().all()


# Constant samples


def flat(media: list[Media], prompts: list[str]) -> list[float]:
    return [-float(np.ptp(pixels(m).reshape(-1, 3), axis=0).max()) for m in media]


class Blank(GaussianMixtureSampler):
    def decode(self, state: State) -> list[Media]:
        media = super().decode(state)
        return [Image.new("RGB", (16, 16), "green") if is_bad(m) else m for m in media]


def test_a_constant_image_is_reported_and_scored() -> None:
    result = search(Blank(num_steps=4), PROMPT, verifier=flat, budget="8x")
    constant = [c for c in result.population if c.score.reason == "constant image"]
    assert constant and len({c.score.value for c in constant}) == 1
    assert result.best in constant, "it is the verifier's choice"
    assert all(c.score.reason is None for c in result.population if c not in constant)


def test_the_remark_joins_the_verifier_s_reason() -> None:
    class Says(TargetReward):
        def score(
            self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE
        ) -> list[Score]:
            return [Score(value=1.0, reason="green") for _ in media]

    ctx = toy_context(Blank(num_steps=4), Says())
    ctx.score(ctx.finish(ctx.init(8)))
    assert {c.score.reason for c in ctx.candidates.values()} == {"green", "green; constant image"}


# Verifiers that change their input


class Vandal(Verifier):
    """Scores as another verifier does, then spoils what it was given; fails now and then."""

    name = "vandal"
    accepts: frozenset[Modality] = frozenset({"image", "video"})

    def __init__(self, how: str, score: Callable[[Media], float]) -> None:
        self.how, self.of, self.asked = how, score, 0

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        values = [self.of(m) for m in media]
        best = [] if asked.best is None else [asked.best.load()]
        for m in [*media, *best]:
            self._spoil(m)
        self.asked += 1
        if self.asked == 1 and len(media) > 1:
            raise RuntimeError("one by one, please")  # then the samples are asked about again
        return [Score(value=value) for value in values]

    def _spoil(self, media: Media) -> None:
        if isinstance(media, Video):
            media.frames.zero_()
        elif self.how == "draw":
            ImageDraw.Draw(media).rectangle((0, 0, 99, 99), fill="black")
        elif self.how == "pixel":
            access: Any = media.load()
            for x in range(media.width):
                access[x, 0] = (0, 0, 0)
        elif self.how == "shrink":
            media.thumbnail((2, 2))
        else:
            media.close()


def rightness(media: Media) -> float:
    return float(position_of(media)[0])


@pytest.mark.parametrize("how", ["draw", "pixel", "shrink", "close"])
@pytest.mark.parametrize("stored", [True, False])
def test_a_verifier_changes_nothing_but_its_own_copy(how: str, stored: bool, tmp_path: Path) -> None:
    def run(verifier: Any, holdout: Any, name: str) -> Any:
        output = tmp_path / name if stored else None
        sampler = GaussianMixtureSampler(num_steps=4)
        return search(
            sampler, PROMPT, verifier=verifier, holdout_verifier=holdout, budget="5x", output=output
        )

    spoilt = run(Vandal(how, rightness), Vandal(how, rightness), "spoilt")
    clean = run(lambda m, p: list(map(rightness, m)), lambda m, p: list(map(rightness, m)), "clean")
    assert spoilt.best.uid == clean.best.uid
    for a, b in zip(spoilt.population, clean.population):
        assert a.score.value == b.score.value and np.array_equal(pixels(a.load()), pixels(b.load()))
    (left,), (right,) = answers(spoilt.trace, "heldout"), answers(clean.trace, "heldout")
    assert (
        left.values
        == right.values
        == tuple(c.score.value for c in sorted(clean.population, key=lambda c: c.uid))
    )


def test_members_of_an_ensemble_do_not_see_each_other_s_marks() -> None:
    from tts_vision.verifiers.ensemble import Ensemble

    members = [Vandal("draw", rightness), Vandal("close", rightness), Vandal("pixel", rightness)]
    images = GaussianMixtureSampler(num_steps=2)
    state = images.advance(images.init(Condition("x"), range(4), seed=1), 2)
    media = images.decode(state)
    expected = [rightness(m) for m in media]
    found = safe_scores(Ensemble(members), media, [Prompt("x")] * 4)
    assert all(list(score.parts.values()) == [value] * 3 for score, value in zip(found, expected))
    assert [rightness(m) for m in media] == expected


def test_a_sample_that_is_loaded_is_a_copy() -> None:
    result = search(GaussianMixtureSampler(num_steps=4), PROMPT, verifier=TargetReward(), budget="2x")
    first = result.best.load()
    first.close()  # type: ignore[union-attr]
    assert position_of(result.best.load()).shape == (2,)


# Diffusers pipelines

CALL = {"height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": 4.0}


def quiet(name: str) -> Any:
    pipe = TINY[name].build()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampler_of(pipe: Any, **call: Any) -> DiffusersSampler:
    from tts_vision.config import SamplerOptions

    return DiffusersSampler(pipe, options=SamplerOptions(pipeline_kwargs=call or CALL))


def finished(sampler: Sampler, n: int = 4) -> State:
    return sampler.advance(sampler.init(Condition(PROMPT), range(n), seed=3), sampler.num_steps)


def breaking(pipe: Any, value: float, rows: Sequence[int]) -> Any:
    """The pipeline with an autoencoder that breaks some rows of each batch."""
    decode = pipe.vae.decode

    def broken(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        (x,) = decode(z, *args, **{**kwargs, "return_dict": False})
        x = x.clone()
        for row in rows:
            if row < len(x):
                x[(row, *[0] * (x.ndim - 1))] = value
        return (x,)

    pipe.vae.decode = broken
    return pipe


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_pixels_that_are_no_numbers_are_found_before_they_are_8_bit(value: float) -> None:
    sampler = sampler_of(quiet("stable_diffusion"))
    state = finished(sampler)
    clean = sampler.decode(state)
    broken = sampler_of(breaking(quiet("stable_diffusion"), value, [1, 3]))
    decoded = broken.decode(state)
    assert [isinstance(sample, Invalid) for sample in decoded] == [False, True, False, True]
    for row in (0, 2):
        assert decoded[row] == clean[row]
    for row in (1, 3):
        sample = decoded[row]
        assert isinstance(sample, Invalid) and sample.reason.startswith("pixels that are no finite numbers")
        assert isinstance(sample.media, Image.Image) and sample.media.size == (16, 16)


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_latents_that_are_no_numbers_are_found(value: float) -> None:
    sampler = sampler_of(quiet("stable_diffusion"))
    state = finished(sampler)
    clean = sampler.decode(state)
    state.latents[2, 0, 0, 0] = value
    decoded = sampler.decode(state)
    assert [isinstance(sample, Invalid) for sample in decoded] == [False, False, True, False]
    sample = decoded[2]
    assert isinstance(sample, Invalid) and sample.reason.startswith("latents that are no finite numbers")
    assert all(decoded[row] == clean[row] for row in (0, 1, 3))


def test_previews_are_looked_at_too() -> None:
    sampler = sampler_of(breaking(quiet("stable_diffusion"), NAN, [0]))
    state = sampler.advance(sampler.init(Condition(PROMPT), range(3), seed=3), 2)
    assert [isinstance(sample, Invalid) for sample in sampler.preview(state)] == [True, False, False]
    pipe = quiet("stable_diffusion")
    pipe.tts_vision_preview_vae = breaking(quiet("stable_diffusion"), NAN, [1]).vae
    sampler = sampler_of(pipe)
    state = sampler.advance(sampler.init(Condition(PROMPT), range(3), seed=3), 2)
    assert [isinstance(sample, Invalid) for sample in sampler.preview(state)] == [False, True, False]
    assert not any(isinstance(sample, Invalid) for sample in sampler.decode(finished(sampler)))


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_xl", "flux", "sana", "ltx", "wan"])
def test_looking_changes_no_pixel_and_decodes_nothing_twice(name: str) -> None:
    tiny = TINY[name]
    pipe = quiet(name)
    sampler = sampler_of(pipe, **{**tiny.kwargs, "num_inference_steps": 3})
    state = finished(sampler, 2)
    kind = "pil" if sampler.modality == "image" else "pt"
    calls = []
    decode = pipe.vae.decode
    pipe.vae.decode = lambda *args, **kwargs: calls.append(1) or decode(*args, **kwargs)
    unwatched = sampler._decode(state, None, kind)
    n = len(calls)
    watched = sampler.decode(state)
    assert len(calls) == 2 * n > 0
    assert not any(isinstance(sample, Invalid) for sample in watched)
    if kind == "pil":
        assert all(a == b for a, b in zip(watched, unwatched, strict=True))
    else:
        frames = (unwatched.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2)
        assert all(torch.equal(a.frames, b) for a, b in zip(watched, frames))  # type: ignore[union-attr]
    assert "decode" in pipe.vae.__dict__ and pipe.vae.decode is not decode  # ours, put back as it was
    assert len(calls) == 2 * n


def test_clips_that_are_no_numbers_are_found() -> None:
    sampler = sampler_of(breaking(quiet("ltx"), NAN, [1]), **{**TINY["ltx"].kwargs, "num_inference_steps": 3})
    decoded = sampler.decode(finished(sampler, 3))
    assert [isinstance(sample, Invalid) for sample in decoded] == [False, True, False]
    assert isinstance(decoded[1], Invalid) and isinstance(decoded[1].media, Video)


def test_broken_rows_are_unknown_where_an_autoencoder_takes_other_batches() -> None:
    watch = DecodeWatch()
    watched = watch.watching(lambda x: (x,))
    watched(torch.ones(3, 2))
    watched(torch.tensor([[1.0, NAN], [1.0, 1.0], [1.0, 1.0]]))
    assert watch.reasons(torch.ones(2, 2)) is None, "six rows for two samples, one of them broken"
    six = watch.reasons(torch.ones(6, 2))
    assert six is not None and [row is None for row in six] == [True] * 3 + [False] + [True] * 2
    alone = watch.reasons(torch.ones(1, 2))
    assert alone is not None and alone[0] is not None
    fine = DecodeWatch()
    fine.watching(lambda x: (x,))(torch.ones(5, 2))
    assert fine.reasons(torch.ones(2, 2)) == [None, None]


def test_rows_are_decoded_alone_where_the_broken_one_is_unknown() -> None:
    pipe = quiet("stable_diffusion")
    decode, sizes = pipe.vae.decode, list[int]()

    def twice(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As pipelines of clips do, more rows than samples; here the second half is thrown away again."""
        sizes.append(len(z))
        (x,) = decode(z, *args, **kwargs)
        x = torch.where((z > 90).any(), x * NAN, x)
        return (x.repeat(2, 1, 1, 1),)

    pipe.vae.decode = twice
    sampler = sampler_of(pipe)
    state = finished(sampler, 3)
    state.latents[1, 0, 0, 0] = 100.0
    decoded = sampler.decode(state)
    assert sizes == [3, 1, 1, 1]
    assert [isinstance(sample, Invalid) for sample in decoded] == [False, True, False]


def test_flags_of_any_kind_are_read() -> None:
    from types import SimpleNamespace

    def reasons(**flags: Any) -> list[str | None] | None:
        watch = DecodeWatch()
        watch.read(SimpleNamespace(**flags))
        return watch.reasons(torch.ones(2, 3))

    flagged = "blacked out by the pipeline's own safety checker"
    assert reasons() == reasons(nsfw_content_detected=None) == [None, None]
    assert reasons(nsfw_content_detected=[False, True]) == [None, flagged]
    assert reasons(nsfw_detected=np.array([True, False]), watermark_detected=[False, True]) == [flagged] * 2
    assert reasons(nsfw_content_detected=False) == [None, None]
    assert reasons(nsfw_content_detected=True) is None, "of which row?"


class Checker(torch.nn.Module):
    """A safety checker that flags bright images."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, images: Any, clip_input: Any) -> Any:
        flags = [bool(image.mean() > self.threshold) for image in images]
        for i, flag in enumerate(flags):
            if flag:
                images[i] = torch.zeros_like(images[i])
        return images, flags


class Extractor:
    def __call__(self, images: Any, return_tensors: str) -> Any:
        class Inputs(dict[str, Any]):
            pixel_values = torch.zeros(len(images), 3, 4, 4)

            def to(self, device: Any) -> Any:
                return self

        return Inputs()


def checked(threshold: float) -> Any:
    pipe = quiet("stable_diffusion")
    pipe.__dict__["safety_checker"], pipe.__dict__["feature_extractor"] = Checker(threshold), Extractor()
    return pipe


def test_images_that_the_pipeline_blacked_out_never_win(tmp_path: Path) -> None:
    plain = quiet("stable_diffusion")
    flags = [
        bool(
            checked(-0.095)(PROMPT, generator=torch.Generator().manual_seed(s), **CALL).nsfw_content_detected[
                0
            ]
        )
        for s in (3,)
    ]
    sampler = sampler_of(checked(-0.095))
    state = finished(sampler, 8)
    decoded = sampler.decode(state)
    invalid = [isinstance(sample, Invalid) for sample in decoded]
    assert 0 < sum(invalid) < 8 and invalid[0] == flags[0]
    clean = sampler_of(plain).decode(state)
    for sample, bare, bad in zip(decoded, clean, invalid):
        if not bad:
            assert sample == bare
            continue
        assert isinstance(sample, Invalid)
        assert sample.reason == "blacked out by the pipeline's own safety checker"
        assert isinstance(sample.media, Image.Image) and sample.media.getextrema() == ((0, 0),) * 3
    result = search(
        checked(-0.095),
        PROMPT,
        verifier="jpeg_compressibility",
        budget="8x",
        seed=3,
        pipeline_kwargs=CALL,
        output=tmp_path / "out",
    )
    assert len(result.invalid) == sum(invalid)
    assert np.asarray(result.best.load()).any()
    for candidate in result.invalid:
        assert candidate.path is not None and not pixels(read_media(candidate.path)).any()
        assert "safety checker" in str(candidate.score.reason)


def test_a_pipeline_without_a_checker_is_called_as_before() -> None:
    pipe, asked = quiet("stable_diffusion"), list[Any]()
    call = type(pipe).__call__
    sampler = sampler_of(pipe)
    state = finished(sampler, 1)

    class Spy(type(pipe)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            asked.append(kwargs["return_dict"])
            return call(self, *args, **kwargs)

    pipe.__class__ = Spy
    sampler.decode(state)
    assert asked == [False]


@pytest.mark.parametrize("where", ["vae", "unet"])
def test_a_search_with_broken_samples_has_a_valid_winner(where: str, tmp_path: Path) -> None:
    pipe = quiet("stable_diffusion")
    if where == "vae":
        breaking(pipe, NAN, [0, 2])
    else:
        forward = pipe.unet.forward

        def overflow(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            (out,) = forward(x, *args, **{**kwargs, "return_dict": False})
            out = out.clone()
            out[0] = NAN
            return (out,)

        pipe.unet.forward = overflow
    result = search(
        pipe,
        PROMPT,
        verifier=lambda m, p: [-float(np.asarray(i).mean()) for i in m],  # black would win
        budget="4x",
        pipeline_kwargs=CALL,
        output=tmp_path / "out",
    )
    assert result.invalid and np.asarray(result.best.load()).any()
    assert all("no finite numbers" in str(c.score.reason) for c in result.invalid)


def test_images_of_an_autoregressive_model_are_looked_at() -> None:
    from tts_vision.pipelines.bundled import load_playground_var
    from tts_vision.pipelines.var_sampler import ScaleSampler

    pipe = load_playground_var()
    sampler = ScaleSampler(pipe)
    state = sampler.advance(sampler.init(Condition("a red circle"), [0, 1], seed=0), sampler.num_steps)
    clean = sampler.decode(state)
    decode = pipe.vae.decode

    def broken(features: Tensor) -> Tensor:
        x = decode(features).clone()
        x[1, 0, 0, 0] = NAN
        return x

    object.__setattr__(pipe.vae, "decode", broken)
    decoded = sampler.decode(state)
    assert decoded[0] == clean[0] and isinstance(decoded[1], Invalid)
    assert decoded[1].reason.startswith("pixels that are no finite numbers")


def test_valid_samples_are_no_news(tmp_path: Path) -> None:
    result = search(MODEL, PROMPT, verifier=VERIFIER, budget="3x", output=tmp_path / "out")
    assert result.invalid == [] and "invalid" not in repr(result)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["invalid_samples"] == 0
