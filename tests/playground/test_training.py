from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny

from tts_vision.pipelines import playground
from tts_vision.pipelines.bundled import load_playground_masked
from tts_vision.pipelines.playground import (
    train,
    train_clip,
    train_flow,
    train_tokenizers,
    train_tokens,
    train_vae,
    train_var,
)
from tts_vision.pipelines.playground.tokenizer import MAX_TOKENS, build_tokenizer, vocabulary
from tts_vision.pipelines.playground.train_flow import FlowSize
from tts_vision.pipelines.playground.training import Average, Bank, Budget, load_bank, warm_then_decay
from tts_vision.pipelines.var.bsq import MultiScaleBSQ
from tts_vision.pipelines.var.folder import load_pipeline

SIZE = FlowSize(heads=2, layers=1, time_dim=16, text_dim=32, text_layers=2)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return load_bank(tmp_path_factory.mktemp("bank"), 32, seed=0, workers=1)


def assert_same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(p, q), name


def test_a_resumed_flow_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(32, 4, 8, 8, generator=generator)
    tokens = torch.randint(3, 40, (32, 3, MAX_TOKENS), generator=generator, dtype=torch.uint8)
    results = []
    for name, stops in (("whole", [None]), ("parts", [2, None])):
        (tmp_path / name).mkdir()
        for stop in stops:
            result = train_flow.train_flow(
                tmp_path / name, latents, tokens, Budget(steps=4), SIZE, batch_size=4, stop_after=stop
            )
        results.append(result)
    for a, b in zip(results[0][:2], results[1][:2]):
        assert_same(a, b)
    averages = [result[2].shadow for result in results]
    assert all(torch.equal(averages[0][key], averages[1][key]) for key in averages[0])


def test_a_resumed_autoencoder_equals_an_uninterrupted_one(tmp_path: Path, bank: Bank) -> None:
    models = []
    for name, stops in (("whole", [None]), ("parts", [1, None])):
        (tmp_path / name).mkdir()
        for stop in stops:
            vae = train_vae.train_vae(
                tmp_path / name, bank, Budget(steps=3), width=8, batch_size=4, stop_after=stop
            )
        models.append(vae)
    assert_same(*models)
    assert models[0].config.scaling_factor == models[1].config.scaling_factor


def test_a_resumed_clip_equals_an_uninterrupted_one(tmp_path: Path, bank: Bank) -> None:
    models = []
    vae = train_vae.build_vae(8)
    latents = torch.randn(32, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for name, stops in (("whole", [None]), ("parts", [1, None])):
        (tmp_path / name).mkdir()
        for stop in stops:
            model, _ = train_clip.train_clip(
                tmp_path / name,
                bank,
                latents,
                vae,
                Budget(steps=2),
                width=16,
                batch_size=4,
                stop_after=stop,
            )
        models.append(model)
    assert_same(*models)


def test_the_script_trains_and_exports_what_the_loader_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    folders = ["--work-dir", str(tmp_path / "work"), "--output", str(tmp_path / "weights")]
    try:
        train.main([*folders, "--steps", "1", "--bank-size", "8", "--batch-size", "4", "--threads", "1"])
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setenv(playground.WEIGHTS_VARIABLE, str(tmp_path / "weights"))
    pipe = playground.load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    images = pipe("a star", num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 64, 64, 3)
    assert playground.weights_path("clip").is_dir()
    (image,) = load_pipeline(playground.weights_path("var"))("a star")
    assert image.size == (64, 64)
    (image,) = load_playground_masked()("a star", num_inference_steps=2)
    assert image.size == (64, 64)


def test_the_bank_is_the_same_each_time(tmp_path: Path, bank: Bank) -> None:
    again = load_bank(tmp_path, 32, seed=0, workers=1)
    assert (again.images == bank.images).all() and again.captions == bank.captions


def test_every_caption_fits_and_has_no_unknown_word(bank: Bank) -> None:
    tokenizer = build_tokenizer()
    longest = "a photo of two red circles to the left of three blue stars"
    for text in [longest, *(text for texts in bank.captions for text in texts)]:
        ids = tokenizer(text).input_ids
        assert len(ids) <= MAX_TOKENS
        assert tokenizer.unk_token_id not in ids and ids[-1] == tokenizer.eos_token_id


def test_the_tokenizer_pads_on_the_left_and_keeps_the_empty_text() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer("").input_ids == [tokenizer.eos_token_id]
    words = tokenizer(["A RED circle", "circle"], padding="longest").input_ids
    assert words[1][0] == tokenizer.pad_token_id
    assert words[0][:-1] == [vocabulary()[word] for word in ("a", "red", "circle")]


def test_the_budget_counts_steps_or_minutes() -> None:
    assert Budget(minutes=2).progress(5, 60.0) == 0.5
    assert Budget(minutes=2, steps=10).progress(5, 1e9) == 0.5


def test_the_learning_rate_rises_stays_and_falls() -> None:
    assert warm_then_decay(0.0) < 0.1
    assert warm_then_decay(0.3) == 1.0
    assert warm_then_decay(0.8) == pytest.approx(0.5)
    assert warm_then_decay(0.9999) < 0.01


def test_the_average_follows_the_weights() -> None:
    layer = torch.nn.Linear(1, 1)
    average = Average({"layer": layer}, decay=0.9)
    with torch.no_grad():
        layer.weight.fill_(5.0)
    for _ in range(400):
        average.update()
    copy = torch.nn.Linear(1, 1)
    average.copy_to("layer", copy)
    assert torch.allclose(copy.weight, layer.weight, atol=1e-3)


def latents_of(bank: Bank) -> tuple[AutoencoderTiny, torch.Tensor]:
    vae = train.autoencoder(Path("nothing trained here"))
    with torch.no_grad():
        pixels = bank.batch(torch.arange(len(bank.images)))
        return vae, (vae.encode(pixels).latents * vae.config.scaling_factor).half()


@pytest.mark.parametrize("name", ["scales", "codes"])
def test_a_resumed_tokenizer_equals_an_uninterrupted_one(tmp_path: Path, bank: Bank, name: str) -> None:
    vae, latents = latents_of(bank)
    stage = {"scales": train_tokenizers.train_scales, "codes": train_tokenizers.train_codes}[name]
    models = []
    for folder, stops in (("whole", [None]), ("parts", [2, None])):
        (tmp_path / folder).mkdir()
        for stop in stops:
            coder = stage(
                tmp_path / folder, bank, latents, vae, Budget(steps=4), batch_size=4, stop_after=stop
            )
        models.append(coder)
    assert_same(*models)
    assert_same(models[0], train_tokenizers.load_coder(name, tmp_path / "whole", vae))
    for name, parameter in vae.named_parameters():
        assert torch.equal(parameter, models[0].autoencoder.get_parameter(name)), "the autoencoder stays"


def test_a_resumed_autoregressive_model_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    features = 0.3 * torch.randn(32, 16, 8, 8, generator=generator)
    tokens = torch.randint(1, 40, (32, 3, MAX_TOKENS), generator=generator, dtype=torch.uint8)
    results = []
    for name, stops in (("whole", [None]), ("parts", [1, None])):
        (tmp_path / name).mkdir()
        for stop in stops:
            result = train_var.train_var(
                tmp_path / name,
                features,
                tokens,
                MultiScaleBSQ(16, 2),
                Budget(steps=3),
                batch_size=4,
                stop_after=stop,
            )
        results.append(result)
    for a, b in zip(results[0][:2], results[1][:2]):
        assert_same(a, b)


def test_quantised_prefixes_are_those_of_the_quantiser_and_pass_gradients(bank: Bank) -> None:
    vae, latents = latents_of(bank)
    coder, schedule = train_tokenizers.build_scales(vae), train_tokenizers.SCHEDULE
    features = coder.features(latents[:3].float()).detach().requires_grad_()
    kept, whole = train_tokenizers.quantised_scales(coder, features, torch.tensor([2, 5, 6]))
    bits, _, total = coder.quantizer.encode(features.detach(), schedule)
    assert torch.allclose(whole, total, atol=1e-6)
    for row, scales in enumerate((2, 5, 6)):
        one = coder.quantizer.summed(bits[row : row + 1, : schedule.starts[scales]], schedule, scales)
        assert torch.allclose(kept[row], one[0], atol=1e-6)
    (gradient,) = torch.autograd.grad(whole.sum(), features)
    assert torch.allclose(gradient.sum(), torch.tensor(float(gradient.numel())), rtol=1e-4)


def test_codes_are_signs_with_the_first_bit_on_top(bank: Bank) -> None:
    vae, latents = latents_of(bank)
    coder = train_tokenizers.build_codes(vae).eval()
    codebook = coder.codebook()
    assert codebook.shape == (512, 9) and codebook[256].tolist() == [1.0] + 8 * [-1.0]
    features = coder.features(latents[:2].float())
    ids = coder.ids(features)
    assert torch.equal(codebook[ids].transpose(1, 2).unflatten(2, coder.grid) > 0, features > 0)
    assert coder.decode(ids).shape == (2, 3, 64, 64)
    pixels = bank.batch(torch.arange(2))
    assert torch.equal(coder.encode(pixels), coder.ids(coder.features(coder.latents(pixels))))


def test_a_resumed_token_model_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 512, (16, 64), generator=generator, dtype=torch.int16)
    blocks = train_tokens.text_blocks(torch.tensor([[5, 6, 1, 0], [7, 1, 0, 0]]), 0)[:, None].repeat(8, 3, 1)
    results = []
    for name, stops in (("whole", [None]), ("parts", [1, None])):
        (tmp_path / name).mkdir()
        for stop in stops:
            result = train_tokens.train_tokens(
                tmp_path / name,
                codes,
                blocks,
                train_tokens.masked,
                Budget(steps=3),
                batch_size=4,
                stop_after=stop,
            )
        results.append(result)
    assert_same(results[0][0], results[1][0])


def test_text_blocks_end_where_the_image_begins() -> None:
    blocks = train_tokens.text_blocks(torch.tensor([[5, 6, 1, 0], [1, 0, 0, 0]]), 0)
    assert blocks.shape == (2, 18)
    assert blocks[0, -5:].tolist() == [train_tokens.T2I, train_tokens.END, 5, 6, 1]
    assert blocks[1, -3:].tolist() == [train_tokens.T2I, train_tokens.END, 1]
    assert (blocks[1, :-3] == train_tokens.PAD).all()


def test_corrupted_codes_follow_their_schedules() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 512, (400, 64), generator=generator)
    ids, hidden = train_tokens.masked(codes, generator)
    assert torch.equal(ids == train_tokens.MASK, hidden) and hidden.any(1).all()
    assert torch.equal(ids[~hidden], (codes + train_tokens.FIRST_CODE)[~hidden])
    # the mean of cos(pi r / 2) for r even in [0, 1]
    assert hidden.float().mean() == pytest.approx(2 / torch.pi, abs=0.03)
    signs = (torch.arange(512)[:, None] & 2 ** torch.arange(8, -1, -1)).ne(0).float() * 2 - 1
    moved, wanted = train_tokens.jumped(signs)(codes, generator)
    assert wanted.all() and (moved >= train_tokens.FIRST_CODE).all() and (moved < train_tokens.MASK).all()
    same = (moved - train_tokens.FIRST_CODE == codes).float().mean()
    assert 0.2 < same < 0.9  # from nearly none at time 0 to all at time 1
