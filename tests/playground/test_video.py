"""The video model of the playground: its network, its training, its files, its call, and chunk by chunk.

All but the last part run on an untrained tiny model.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tts_vision
from tts_vision import Prompt, Video
from tts_vision.condition import Condition
from tts_vision.config import ModelOptions, SamplerOptions
from tts_vision.errors import ConfigError, PipelineError, VerifierError
from tts_vision.pipelines import playground
from tts_vision.pipelines.bundled import load_playground_video
from tts_vision.pipelines.chunk_sampler import ChunkSampler
from tts_vision.pipelines.chunks.model import Chunk
from tts_vision.pipelines.playground import (
    measure,
    motion,
    motion_checker,
    tracks,
    train_motion_judge,
    train_video,
    video,
    video_bank,
    video_judge,
    video_judge_data,
)
from tts_vision.pipelines.playground.motion import CHUNK, CHUNKS
from tts_vision.pipelines.playground.train_flow import FlowSize, build_flow
from tts_vision.pipelines.playground.training import Budget
from tts_vision.pipelines.playground.video_pipeline import PlaygroundVideo, load_pipeline
from tts_vision.registry import lookup
from tts_vision.rng import row_seed
from tts_vision.testing.contracts import SamplerContract, VerifierContract
from tts_vision.types import FAILS_AT, Media
from tts_vision.verifier import Verifier
from tts_vision.verifiers.playground_judge import PlaygroundJudge
from tts_vision.verifiers.playground_motion_judge import PlaygroundMotionJudge

SIZE = FlowSize(heads=2, layers=1, time_dim=16, text_dim=32, text_layers=2)
TEXT = "a red circle moving left"


def image_model() -> tuple[Any, Any]:
    """A tiny image model whose output is not zero."""
    transformer, text_encoder = build_flow(SIZE, 0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for layer in (transformer.proj_out, transformer.transformer_blocks[0].norm1.linear):
            torch.nn.init.normal_(layer.weight, std=0.3)
    return transformer, text_encoder


def network() -> video.VideoNetwork:
    made = video.inflated(*image_model(), seed=2)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch.nn.init.normal_(made.transformer.patch_embed.proj.weight, std=0.3)
    for module in made.modules().values():
        module.eval().requires_grad_(False)
    return made


def pipe() -> PlaygroundVideo:
    return PlaygroundVideo(
        network(), video.load_autoencoder(), {"num_inference_steps": 3, "guidance_scale": 2.0}
    )


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights whose image model is the tiny one; the package's own autoencoder."""
    vae = video.load_autoencoder()
    transformer, text_encoder = image_model()
    transformer.half().save_pretrained(tmp_path / "weights" / "flow" / "transformer")
    text_encoder.half().save_pretrained(tmp_path / "weights" / "flow" / "text_encoder")
    vae.save_pretrained(tmp_path / "weights" / "flow" / "vae")
    monkeypatch.setenv(playground.WEIGHTS_VARIABLE, str(tmp_path / "weights"))
    return tmp_path / "weights"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(p, q), name


# --------------------------------------------------------------------------------------------- the network


def test_a_strip_has_the_frames_side_by_side() -> None:
    frames = torch.randn(2, 4, CHUNK, 8, 8)
    strip = video.as_strip(frames)
    assert strip.shape == (2, 4, 8, 32)
    for k in range(CHUNK):
        assert torch.equal(strip[..., 8 * k : 8 * k + 8], frames[:, :, k])
    assert torch.equal(video.as_frames(strip), frames)


def test_the_inflated_model_begins_as_the_image_model() -> None:
    transformer, text_encoder = image_model()
    made = video.inflated(transformer, text_encoder, seed=0)
    for name, weight in transformer.state_dict().items():
        other = made.transformer.state_dict()[name]
        if name == "patch_embed.proj.weight":
            assert torch.equal(other[:, : weight.shape[1]], weight) and not other[:, weight.shape[1] :].any()
        else:
            assert torch.equal(other, weight), name
    words = made.text_encoder.embed_tokens.weight
    assert torch.equal(words[: len(text_encoder.embed_tokens.weight)], text_encoder.embed_tokens.weight)
    # the conditions change nothing yet, and a frame alone is seen as the image model sees an image
    noisy, other = torch.randn(2, 2, 4, CHUNK, 8, 8).unbind()
    text, time = torch.randn(2, 20, 32), torch.tensor([0.3, 0.7])
    positions = video.rotary(made.transformer, "cpu")
    plain, begun = (
        video.velocity(
            made.transformer, video.conditioned(noisy, x, torch.full((2,), y)), time, text, positions
        )
        for x, y in ((torch.zeros_like(noisy), 0.0), (other, 1.0))
    )
    assert torch.equal(plain, begun)
    inside = positions[0].view(4, 4 * CHUNK, -1)[:, :4].flatten(0, 1)
    assert torch.allclose(inside, transformer.rope(torch.empty(1, 1, 8, 8))[0])


def test_the_transformer_gets_the_chunk_before_and_its_last_frame() -> None:
    noisy, previous = torch.randn(2, 2, 4, CHUNK, 8, 8).unbind()
    strip = video.conditioned(noisy, previous, torch.tensor([0.0, 1.0]))
    frames = video.as_frames(strip)
    assert torch.equal(frames[:, :4], noisy)
    assert not frames[0, 4:13].any() and torch.equal(frames[1, 4:8], previous[1])
    assert torch.equal(frames[1, 8:12], previous[1, :, -1:].expand(-1, CHUNK, -1, -1))
    assert (frames[1, 12] == 1).all()
    assert torch.equal(frames[0, 13:, :, 0, 0], torch.eye(CHUNK))


def test_every_caption_fits_and_has_no_unknown_word() -> None:
    tokenizer = video.build_motion_tokenizer()
    rng = np.random.default_rng(0)
    texts = [motion.sample_caption(rng, motion.sample_training_spec(rng)) for _ in range(500)]
    longest = "a video of a red circle moving to the left and a blue star moving to the right"
    for text in [longest, *texts, *(record["prompt"] for record in motion.load_prompts())]:
        ids = tokenizer(text).input_ids
        assert len(ids) <= video.MAX_TOKENS and tokenizer.unk_token_id not in ids
    assert video.token_ids(texts).shape == (500, video.MAX_TOKENS)
    assert torch.equal(video_bank.words_of(texts).long(), video.token_ids(texts))


# ------------------------------------------------------------------------------------------------ training


def bank() -> video_bank.ClipBank:
    latents = torch.randn(6, CHUNKS, 4, CHUNK, 8, 8, generator=seeded(0)).half()
    tokens = torch.randint(3, 40, (6, CHUNKS, 2, video.MAX_TOKENS), generator=seeded(1), dtype=torch.uint8)
    return video_bank.ClipBank(latents, tokens)


def test_a_resumed_model_equals_an_uninterrupted_one(tmp_path: Path, weights: Path) -> None:
    results = []
    for name, stops in (("whole", [None]), ("parts", [2, None])):
        (tmp_path / name).mkdir()
        for stop in stops:
            result = train_video.train_video(
                tmp_path / name, bank(), Budget(steps=4), batch_size=4, stop_after=stop
            )
        results.append(result)
    for a, b in zip(results[0][0].modules().values(), results[1][0].modules().values()):
        assert_same(a, b)
    averages = [result[1].shadow for result in results]
    assert all(torch.equal(averages[0][key], averages[1][key]) for key in averages[0])
    before = train_video.build_network(11).transformer
    for name, weight in results[0][0].transformer.named_parameters():
        changed = not torch.equal(weight, before.get_parameter(name))
        assert changed != ("norm1.linear" in name), name


def test_training_learns(tmp_path: Path, weights: Path) -> None:
    """A few steps on the chunks of few clips: the error of the velocity falls."""
    clips = bank()
    made, _ = train_video.train_video(
        tmp_path, clips, Budget(steps=60), batch_size=16, learning_rate=3e-3, caption_dropout=0.0
    )
    before = train_video.build_network(11)

    @torch.no_grad()
    def error(net: video.VideoNetwork) -> float:
        clean, noise = clips.latents[:, 1].float(), torch.randn(6, 4, CHUNK, 8, 8, generator=seeded(5))
        time = torch.full((6,), 0.8)
        text = video.encoded(net.text_encoder, clips.tokens[:, 1, 0].long())
        strip = video.conditioned(0.2 * clean + 0.8 * noise, clips.latents[:, 0].float(), torch.ones(6))
        positions = video.rotary(net.transformer, "cpu")
        found = video.velocity(net.transformer.eval(), strip, time, text, positions)
        return float((found - (noise - clean)).square().mean())

    assert error(made) < 0.9 * error(before)


def test_the_bank_is_that_of_its_seed_and_is_encoded_by_the_image_models_autoencoder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one = video_bank.load_bank(tmp_path / "a", 3, 7, 1, "cpu")
    two = video_bank.load_bank(tmp_path / "b", 3, 7, 1, "cpu")
    assert torch.equal(one.latents, two.latents) and torch.equal(one.tokens, two.tokens)
    assert one.latents.shape == (3, CHUNKS, 4, CHUNK, 8, 8) and one.tokens.shape == (3, CHUNKS, 2, 20)
    frames, _ = video_bank.drawn_clips(7 * 1_000_003, 3)
    vae = video.load_autoencoder()
    shown = vae.decode(one.latents[1, 2].float().transpose(0, 1) / vae.config.scaling_factor).sample
    drawn = torch.from_numpy(frames[1, 8:12]).permute(0, 3, 1, 2) / 127.5 - 1
    assert (shown - drawn).abs().mean() < 0.03


def test_the_script_trains_and_exports_what_the_loaders_load(tmp_path: Path, weights: Path) -> None:
    threads = torch.get_num_threads()
    sizes = [
        "--clips",
        "4",
        "--own",
        "8",
        "--unseen",
        "8",
        "--batch-size",
        "2",
    ]
    folders = ["--work-dir", str(tmp_path / "work"), "--output", str(weights)]
    shutil.copytree(Path(playground.__file__).with_name("weights") / "judge", weights / "judge")
    try:
        train_video.main([*folders, *sizes, "--steps", "1", "--workers", "1", "--threads", "1"])
    finally:
        torch.set_num_threads(threads)
    made = load_playground_video()
    assert made.tts_vision_defaults == train_video.DEFAULTS
    assert_same(made.network.transformer, train_video.trained_network(tmp_path / "work").transformer)
    (clip,) = made(TEXT, num_inference_steps=1, generator=seeded(0))
    assert clip.frames.shape == (16, 64, 64, 3) and clip.fps == 8
    (score,) = PlaygroundMotionJudge(path=weights / "motion_judge").score([clip], [Prompt(TEXT)])
    assert 0 <= score.value <= 1
    log = (tmp_path / "work" / "train.log").read_text()
    assert "clips of the model, right up to each chunk" in log
    # a later training goes on from what was exported
    again = train_video.build_network(0, weights / "video")
    assert_same(again.transformer, made.network.transformer)
    trains = {name for name, p in again.transformer.named_parameters() if p.requires_grad}
    assert trains == {n for n, p in again.transformer.named_parameters() if "norm1.linear" not in n}
    assert all(p.requires_grad for p in again.text_encoder.parameters())


# ---------------------------------------------------------------------------------------------------- files


def test_a_saved_model_shares_what_is_the_image_models(tmp_path: Path, weights: Path) -> None:
    from safetensors.torch import load_file

    made = network()
    image, _ = video.load_image_model()
    for module in made.modules().values():
        module.half().float()
    video.save_network(made, tmp_path / "video", {"num_inference_steps": 5}, image)
    stored = load_file(tmp_path / "video" / video.WEIGHTS)
    assert "transformer.patch_embed.proj.weight" in stored
    assert "transformer.transformer_blocks.0.norm1.linear.weight" not in stored
    loaded, defaults = video.load_network(tmp_path / "video")
    assert defaults == {"num_inference_steps": 5}
    for a, b in zip(made.modules().values(), loaded.modules().values()):
        assert_same(a, b)


def test_another_image_model_or_damaged_files_are_refused(tmp_path: Path, weights: Path) -> None:
    image, _ = video.load_image_model()
    video.save_network(network(), tmp_path / "video", {}, image)
    with torch.no_grad():
        image.transformer_blocks[0].norm1.linear.weight += 1
    image.half().save_pretrained(weights / "flow" / "transformer")
    with pytest.raises(PipelineError, match="shares weights with the image model"):
        load_pipeline(tmp_path / "video")
    (tmp_path / "video" / video.WEIGHTS).write_bytes(b"broken")
    with pytest.raises(PipelineError, match="cannot be read"):
        load_pipeline(tmp_path / "video")
    with pytest.raises(PipelineError, match="cannot be read"):
        load_pipeline(tmp_path / "nothing")
    with pytest.raises(PipelineError, match="train_video"):
        load_playground_video()


def test_the_model_is_loaded_in_the_precision_asked_for(tmp_path: Path, weights: Path) -> None:
    image, _ = video.load_image_model()
    video.save_network(network(), weights / "video", train_video.DEFAULTS, image)
    made = load_playground_video(options=ModelOptions(dtype="bfloat16"))
    assert {p.dtype for p in made.network.transformer.parameters()} == {torch.bfloat16}
    (clip,) = made(TEXT, num_frames=4, num_inference_steps=1, generator=seeded(0))
    assert len(clip.frames) == 4
    with pytest.raises(ConfigError, match="named without more"):
        load_playground_video("playground-video:small")


# --------------------------------------------------------------------------------------------- its own call


def test_the_call_is_repeatable_and_each_prompt_has_its_own_generator() -> None:
    made = pipe()
    both = made([TEXT, "a blue star growing"], generator=[seeded(1), seeded(2)], output_type="latent")
    assert isinstance(both, Tensor) and both.shape == (2, 4, 16, 8, 8)
    alone = made("a blue star growing", generator=seeded(2), output_type="latent")
    assert torch.equal(both[1:], alone)
    assert not torch.equal(both[:1], made(TEXT, generator=seeded(3), output_type="latent"))
    assert not torch.equal(made(TEXT)[0].frames, made(TEXT)[0].frames)


def test_the_call_goes_on_from_given_frames() -> None:
    made = pipe()
    whole = made(TEXT, generator=seeded(1), output_type="latent")
    generator = seeded(1)
    torch.randn(4, CHUNK, 8, 8, generator=generator)
    rest = made(TEXT, num_frames=12, generator=generator, video_latents=whole[:, :, :4], output_type="latent")
    assert torch.equal(rest, whole[:, :, 4:])
    still = made(
        TEXT, num_frames=4, generator=seeded(2), image_latents=whole[:, :, 3:4], output_type="latent"
    )
    four = whole[:, :, 3:4].expand(-1, -1, 4, -1, -1)
    again = made(TEXT, num_frames=4, generator=seeded(2), video_latents=four, output_type="latent")
    assert torch.equal(still, again)


def test_guidance_evaluates_twice_and_none_once() -> None:
    made = pipe()
    rows: list[int] = []
    made.network.transformer.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    made(TEXT, num_frames=8, num_inference_steps=3, guidance_scale=2.0, generator=seeded(0))
    assert rows == [2] * 6
    rows.clear()
    made(TEXT, num_frames=8, num_inference_steps=3, guidance_scale=1.0, generator=seeded(0))
    assert rows == [1] * 6


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"num_frames": 10}, "multiple of 4"),
        ({"num_frames": 68}, "at most 64"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"guidance_scale": -1.0}, "at least 0"),
        ({"video_latents": torch.zeros(1, 4, 3, 8, 8)}, "at least 4 latent frames"),
        ({"video_latents": torch.zeros(1, 4, 4, 4, 4)}, "must be a tensor"),
        ({"image_latents": torch.zeros(4, 8, 8)}, "must be a tensor"),
        ({name: torch.zeros(1, 4, 4, 8, 8) for name in ("video_latents", "image_latents")}, "one of them"),
    ],
)
def test_settings_out_of_range_are_refused(call: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        pipe()(TEXT, **call)


def test_unknown_settings_prompts_and_conditions_are_refused() -> None:
    made = pipe()
    with pytest.raises(ConfigError, match="got height, negative_prompt"):
        made.configured({"height": 64, "negative_prompt": "a"})
    with pytest.raises(ConfigError, match=r"got 'dog' in 'a red dog'"):
        made("a red dog")
    with pytest.raises(ConfigError, match="at most 19 words"):
        made(" ".join(["red"] * 20))
    with pytest.raises(ConfigError, match="one generator for each of the 2"):
        made([TEXT, TEXT], generator=seeded(0))
    model = made.configured({})
    with pytest.raises(ConfigError, match="a negative prompt"):
        model.encode(Condition(TEXT, negative_text="a star"))
    with pytest.raises(ConfigError, match="overrides"):
        model.encode(Condition(TEXT, overrides={"guidance_scale": 1.0}))


# ------------------------------------------------------------------------------------------- chunk by chunk


class TestChunks(SamplerContract):
    @pytest.fixture
    def sampler(self) -> ChunkSampler:
        return ChunkSampler(pipe())

    @pytest.fixture
    def condition(self) -> Condition:
        return Condition(TEXT)


class TestStepsWithinChunks(TestChunks):
    @pytest.fixture
    def sampler(self) -> ChunkSampler:
        return ChunkSampler(pipe(), options=SamplerOptions(inner_steps=True))


@pytest.mark.parametrize("inner", [False, True])
def test_an_unforked_particle_is_the_sample_of_the_own_call_bit_for_bit(inner: bool) -> None:
    made = pipe()
    sampler = ChunkSampler(made, options=SamplerOptions(inner_steps=inner))
    assert sampler.units == ((0, 3, 6, 9) if inner else (0, 1, 2, 3))
    state = sampler.init(Condition(TEXT), [3], seed=5)
    for _ in range(sampler.num_steps):
        state = sampler.advance(state)
    (clip,) = sampler.decode(state)
    (plain,) = made(TEXT, generator=seeded(row_seed(5, 3)))
    assert isinstance(clip, Video) and torch.equal(clip.frames, plain.frames) and clip.fps == plain.fps


def test_a_preview_is_the_exact_beginning_of_the_clip_and_few_frames_are_those_of_it() -> None:
    sampler, few = ChunkSampler(pipe()), ChunkSampler(pipe(), options=SamplerOptions(preview_frames=2))
    state = sampler.advance(sampler.init(Condition(TEXT), [0], seed=0), 2)
    (preview,), (pair,) = sampler.preview(state), few.preview(state)
    (clip,) = sampler.decode(sampler.advance(state, 2))
    assert isinstance(preview, Video) and isinstance(clip, Video) and isinstance(pair, Video)
    assert torch.equal(preview.frames, clip.frames[:8])
    assert torch.equal(pair.frames, clip.frames[[3, 7]]) and pair.fps == 2


def test_decoding_few_frames_decodes_no_others() -> None:
    made = pipe()
    decoded: list[int] = []
    own = made.vae.decode
    made.vae.decode = lambda z: (decoded.append(len(z)), own(z))[1]  # type: ignore[method-assign]
    latents = torch.randn(2, 4, 8, 8, 8, generator=seeded(0))
    pixels = made.configured({}).pixels(latents, [3, 7])
    assert pixels.shape == (2, 2, 3, 64, 64) and sum(decoded) == 4
    assert torch.equal(pixels, made.configured({}).pixels(latents)[:, [3, 7]])


def test_a_chunk_depends_on_the_chunk_before_alone() -> None:
    model = pipe().configured({})
    texts, noise = model.encode(Condition(TEXT)), torch.randn(1, 4, 4, 8, 8, generator=seeded(0))
    history = torch.randn(1, 4, 8, 8, 8, generator=seeded(1))

    def after(before: Tensor) -> Tensor:
        return model.denoise(texts, Chunk(2, 0, 3, before, noise, [seeded(0)]))[0]

    other = history.clone()
    other[:, :, :4] = 0
    assert torch.equal(after(history), after(other))
    other[:, :, 4:] = 0
    assert not torch.equal(after(history), after(other))


def test_searches_run_on_it() -> None:
    made, verifier = pipe(), lookup("verifier", "playground_motion").target()
    for algorithm in ("best_of_n", "tree_of_frames"):
        found = tts_vision.search(made, TEXT, algorithm=algorithm, verifier=verifier, budget="4x")
        assert isinstance(found.best.media, Video) and len(found.best.media.frames) == 16
        assert 0 <= found.best.score.value <= 1
    plain = tts_vision.search(made, TEXT, verifier=verifier, budget="1x", seed=5).best.media
    (own,) = made(TEXT, generator=seeded(row_seed(5, 0)))
    assert isinstance(plain, Video) and torch.equal(plain.frames, own.frames)


def test_measuring_counts_right_clips_by_form(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(measure, "load_playground_video", pipe)
    measure.main(["--model", "playground-video", "--n", "2", "--every", "59", "--no-clip", "--steps", "1"])
    text = capsys.readouterr().out
    assert "3 prompts, 2 samples each" in text and "| one_object | 0.0" in text and "| two_objects |" in text
    records = motion.load_prompts()[:2]
    rng = np.random.default_rng(0)
    clips = [
        Video(torch.from_numpy(motion.render(motion.sample_clip(rng, motion.spec_of(records[k])))), 8.0)
        for k in (0, 1, 1, 1)
    ]
    result = measure.judge_clips(clips, records, 2, with_judge=False)
    assert result["plain"].tolist() == [0.5, 1.0] and result["oracle"].tolist() == [1.0, 1.0]


# -------------------------------------------------------------------------------------------------- the judge


def clips_of(*texts: str, seed: int = 0) -> list[torch.Tensor]:
    """Drawn clips, right for the texts."""
    rng = np.random.default_rng(seed)
    clips = [motion.sample_clip(rng, motion.parse_spec(text)) for text in texts]
    return list(torch.from_numpy(motion.render_batch(clips)))


def own_clips(count: int) -> video_judge_data.OwnClips:
    """Drawn clips in the place of the model's: every second one of a prompt shows another."""
    rng = np.random.default_rng(0)
    specs = [motion.sample_training_spec(rng) for _ in range(count // 4) for _ in range(4)]
    shown = [spec if i % 2 else video_judge_data.altered(rng, spec) for i, spec in enumerate(specs)]
    frames = motion.render_batch([motion.sample_clip(rng, spec) for spec in shown])
    texts, right = video_judge_data.labelled(1, frames, [motion.caption(spec) for spec in specs])
    return video_judge_data.OwnClips(torch.from_numpy(frames), texts, torch.from_numpy(right))


def test_soft_tracks_measure_what_is_drawn() -> None:
    """Displacements and growth of drawn clips, against the centres and radii that they were drawn from."""
    texts = (
        "a red circle moving left",
        "a blue star growing",
        "a green ring moving down and a white cross shrinking",
    )
    rng = np.random.default_rng(3)
    for text in texts:
        spec = motion.parse_spec(text)
        scenes = motion.sample_clip(rng, spec)
        frames = torch.from_numpy(motion.render_batch([scenes])[0])
        found = tracks.features(frames, spec)
        assert found.shape == (CHUNKS, len(spec.actors), tracks.FEATURES)
        for chunk in range(CHUNKS):
            first, last = max(chunk * CHUNK - 1, 0), chunk * CHUNK + CHUNK - 1
            for k, actor in enumerate(spec.actors):
                a, b = scenes.scenes[first].things[k], scenes.scenes[last].things[k]
                along, aside, growth = found[chunk, k, :3].tolist()
                span = last - first
                way = {"left": (-1, 0), "down": (0, 1)}.get(str(actor.motion))
                if way:
                    assert along == pytest.approx(
                        ((b.x - a.x) * way[0] + (b.y - a.y) * way[1]) / span, abs=0.15
                    )
                    assert aside < 0.15
                else:
                    sense = 1 if actor.motion == "grow" else -1
                    assert growth == pytest.approx(50 * sense * np.log(b.radius / a.radius) / span, abs=0.4)


def test_tracks_of_first_chunks_never_see_later_ones() -> None:
    (clip,) = clips_of("a red circle moving left and a blue star growing")
    spec = motion.parse_spec("a red circle moving left and a blue star growing")
    whole = tracks.features(clip, spec)
    for chunks in range(1, CHUNKS + 1):
        assert torch.equal(tracks.features(clip[: chunks * CHUNK], spec), whole[:chunks])


def test_the_judge_learns_from_clips_which_motions_are_right() -> None:
    clips = own_clips(24)
    made = train_motion_judge.fit_judge(clips, steps=150)
    again = train_motion_judge.fit_judge(clips, steps=150)
    assert_same(made, again)
    logits = train_motion_judge.weigh(made, clips)
    assert logits.shape == (24, video_judge_data.TEXTS_PER_CLIP, CHUNKS, 2)
    chances = made.verdict(logits)[..., 0].sigmoid()
    assert float(chances.mean()) == pytest.approx(float(clips.right.float().mean()), abs=0.05)
    right = clips.right[:, 0, -1]
    assert float(chances[:, 0, -1][right].mean()) > float(chances[:, 0, -1][~right].mean()) + 0.3
    # nothing to tell apart: the weights stay
    before = made.verdict.weight.clone()
    alike = video_judge_data.OwnClips(clips.frames[:2], clips.texts[:2], torch.ones_like(clips.right[:2]))
    train_motion_judge.weigh(made, alike)
    assert torch.equal(made.verdict.weight, before)


def test_the_chance_of_a_clip_is_the_product_over_objects_and_chunks() -> None:
    made = video_judge.MotionJudge().eval().requires_grad_(False)
    tracked = torch.randn(3, CHUNKS, 2, tracks.FEATURES, generator=seeded(0))
    there = torch.tensor([[True, True], [True, False], [True, True]])
    each = made.moves(tracked.clamp(-4, 4))[..., 0].sigmoid()
    for i in range(3):
        chance = 1.0
        for chunk in range(CHUNKS):
            for k in range(2):
                chance *= float(each[i, chunk, k]) if there[i, k] else 1.0
            found = made.log_chances(tracked, there)[i, chunk]
            assert float(found.exp()) == pytest.approx(chance, rel=1e-4)
            assert float(video_judge.logit_of(found).sigmoid()) == pytest.approx(chance, rel=1e-3, abs=1e-6)


def test_areas_under_the_curve_are_shares_of_pairs_of_all_clips_and_of_a_prompt() -> None:
    logits = torch.randn(8, CHUNKS, generator=seeded(0))
    right = logits > logits.median(0).values
    right[4, 0] = ~right[4, 0]
    right[:, 3] = True
    first, *between, last = train_motion_judge.areas(logits, right)

    def pairs(rows: slice) -> float:
        good, scores = right[rows, 0], logits[rows, 0]
        return float((scores[good][:, None] > scores[~good]).float().mean())

    assert first == pytest.approx(pairs(slice(None))) and first < 1
    assert between == [1.0, 1.0] and math.isnan(last)
    by_prompt = [pairs(part) for part in (slice(0, 4), slice(4, 8)) if 0 < right[part, 0].sum() < 4]
    assert train_motion_judge.areas_within(logits[:, :1], right[:, :1])[0] == pytest.approx(
        np.mean(by_prompt)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        video_judge.save_judge(video_judge.MotionJudge(), tmp_path / "motion_judge")
    return tmp_path / "motion_judge"


class TestJudge(VerifierContract):
    @pytest.fixture
    def verifier(self, folder: Path) -> Verifier:
        return PlaygroundMotionJudge(path=folder, device="cpu")

    @pytest.fixture
    def prompt(self) -> Prompt:
        return Prompt(TEXT)

    @pytest.fixture
    def media(self) -> list[Media]:
        return [
            Video(frames, 8.0) for frames in clips_of(TEXT, "a blue star growing", "a white ring moving up")
        ]


def test_the_judge_reads_prompts_in_its_own_wording_and_says_when_clips_fail(folder: Path) -> None:
    verifier = PlaygroundMotionJudge(path=folder, device="cpu")
    clip = Video(clips_of(TEXT)[0], 8.0)
    texts = (TEXT, "a video of a red circle that moves left", "a blue star growing")
    one, same, other = verifier.score([clip] * 3, [Prompt(text) for text in texts])
    assert one.value == pytest.approx(same.value, abs=1e-6) and one.value != pytest.approx(
        other.value, abs=1e-6
    )
    assert one.value == one.parts["chunk_4"] and one.satisfied is None
    with torch.no_grad():
        for bias, failing in ((-99.0, True), (99.0, False)):
            verifier._model.verdict.bias.fill_(bias)
            (score,) = verifier.score([clip], [Prompt(TEXT)])
            assert score.parts.get(FAILS_AT) == (0.0 if failing else None)
    with pytest.raises(ConfigError, match="An object is a colour"):
        verifier.score([clip], [Prompt("a dog")])


def test_the_worst_frame_so_far_counts_as_the_judge_of_images_sees_it(folder: Path) -> None:
    verifier, images = PlaygroundMotionJudge(path=folder, device="cpu"), PlaygroundJudge(device="cpu")
    verifier.load()
    with torch.no_grad():  # the frames alone
        verifier._model.verdict.weight.copy_(torch.tensor([[0.0, 1.0]]))
        verifier._model.verdict.bias.zero_()
    text, still = "a red circle moving left and a blue star growing", "a red circle and a blue star"
    clips = [Video(frames, 8.0) for frames in clips_of(text, "a red circle growing")]
    for clip, score in zip(clips, verifier.score(clips, [Prompt(text)] * 2)):
        looked = [Image.fromarray(frame.numpy()) for frame in clip.frames[::2]]
        chances = [found.value for found in images.score(looked, [Prompt(still)] * 8)]
        for chunk in range(1, CHUNKS + 1):
            worst = min(chances[: 2 * chunk])
            assert score.parts[f"chunk_{chunk}"] == pytest.approx(max(worst, 1e-4), rel=1e-3)


def test_clips_that_the_judge_cannot_judge_are_unscored_with_the_reason(folder: Path) -> None:
    verifier = PlaygroundMotionJudge(path=folder, device="cpu")
    (frames,) = clips_of(TEXT)
    media = [Video(frames[:6], 8.0), Video(frames[[3, 7, 11, 15]], 2.0), Video(frames[:, :32], 8.0)]
    scores = verifier.score(media, [Prompt(TEXT)] * 3)
    for score, reason in zip(scores, ("but got 6 at 8", "but got 4 at 2", "but got 64x32")):
        assert np.isnan(score.value) and reason in (score.reason or "")


def test_a_missing_judge_is_told_of_before_anything_is_scored(weights: Path) -> None:
    with pytest.raises(VerifierError, match="motion_judge weights must lie in"):
        PlaygroundMotionJudge(device="cpu").load()


def test_a_damaged_judge_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(VerifierError, match="must hold the weights of this network but"):
        PlaygroundMotionJudge(path=folder, device="cpu").load()


# ---------------------------------------------------------------------------------------- the trained weights


def needs(part: str, stage: str) -> pytest.MarkDecorator:
    """Skips a test while a folder of weights is missing."""
    there = Path(playground.__file__).with_name("weights").joinpath(part).is_dir()
    reason = f"weights/{part} is not trained yet: 'train_video --stage {stage}' writes it"
    return pytest.mark.skipif(not there, reason=reason)


trained, judge_trained = needs("video", "video"), needs("motion_judge", "judge")


@pytest.fixture(scope="module")
def samples() -> list[tuple[dict[str, Any], Video]]:
    """Clips of the bundled model for evaluation prompts."""
    records = motion.load_prompts()[:6]
    prompts = [record["prompt"] for record in records]
    clips = measure.draw_clips(load_playground_video(), prompts, 3, 0, {})
    return [(records[i // 3], clip) for i, clip in enumerate(clips)]


@trained
def test_the_weights_are_small() -> None:
    files = playground.weights_path("video").iterdir()
    assert sum(file.stat().st_size for file in files) < 15_000_000


@trained
def test_it_is_right_often_enough_to_search_for_the_rest(samples: list) -> None:
    verdicts = [motion_checker.evaluate(clip.frames.numpy(), motion.spec_of(r)) for r, clip in samples]
    assert 0.05 < np.mean([verdict.correct for verdict in verdicts]) < 0.95
    assert np.mean([verdict.holds_until(0) for verdict in verdicts]) > 0.15


@judge_trained
def test_the_weights_of_the_judge_are_small() -> None:
    files = playground.weights_path("motion_judge").iterdir()
    assert sum(file.stat().st_size for file in files) < 8_000_000


@judge_trained
def test_the_judge_prefers_right_captions_of_drawn_clips() -> None:
    """Captions with one thing wrong: a shape, a colour, a motion, or those of two objects exchanged."""
    rng = np.random.default_rng(987)
    specs = [motion.sample_training_spec(rng) for _ in range(16)]
    frames = motion.render_batch([motion.sample_clip(rng, spec) for spec in specs])
    texts = [
        [motion.caption(s), *(motion.caption(video_judge_data.altered(rng, s)) for _ in range(2))]
        for s in specs
    ]
    media = [Video(torch.from_numpy(clip), 8.0) for clip in frames for _ in range(3)]
    scores = PlaygroundMotionJudge(device="cpu").score(media, [Prompt(t) for each in texts for t in each])
    values = np.array([score.value for score in scores]).reshape(-1, 3)
    assert (values[:, :1] > values[:, 1:]).mean() > 0.9


@trained
@judge_trained
def test_a_search_by_name_is_guided_by_the_motion_judge() -> None:
    found = tts_vision.search("playground-video", TEXT, budget="2x")
    assert isinstance(found.best.media, Video) and len(found.best.media.frames) == 16


def test_the_model_and_its_verifiers_are_known_by_name() -> None:
    assert lookup("model", "playground-video").verifier == "playground_motion_judge"
    assert lookup("verifier", "playground_motion_judge").target is PlaygroundMotionJudge
