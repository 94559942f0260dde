import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_rewards import (
    LONG,
    as_pixels,
    bert_tokenizer,
    check_slopes,
    doubled,
    odd_images,
    rename_key_in_file,
    shaken,
)
from torch import Tensor

from samples import clips, some_images
from tts_vision import Prompt
from tts_vision.errors import VerifierError
from tts_vision.registry import lookup
from tts_vision.testing.contracts import DifferentiableVerifierContract, values
from tts_vision.verifiers._backbones import CLIP_MEAN, CLIP_STD, standard_pixels
from tts_vision.verifiers.image_reward import ImageReward, RewardModel, published_name

PROMPT = Prompt("two red circles")
VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 80,
    "max_position_embeddings": 40,
}


class Tiny(ImageReward):
    """ImageReward at reduced width and depth."""

    vision_sizes: Mapping[str, Any] = {**VISION, "image_size": 32}
    text_sizes: Mapping[str, Any] = TEXT


def published_shapes(
    vision: int = 1024,
    depth: int = 24,
    text: int = 768,
    layers: int = 12,
    words: int = 30524,
    patches: int = 196,
) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the published file, after the authors' BLIP: timm's ViT, BERT, and the head."""
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, vision),
        "blip.visual_encoder.pos_embed": (1, patches + 1, vision),
        "blip.visual_encoder.patch_embed.proj.weight": (vision, 3, 16, 16),
        "blip.visual_encoder.patch_embed.proj.bias": (vision,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (words, text),
        "blip.text_encoder.embeddings.position_embeddings.weight": (512, text),
        "blip.text_encoder.embeddings.position_ids": (1, 512),
    }

    def linear(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (size,), (size,)

    for i in range(depth):
        block = f"blip.visual_encoder.blocks.{i}"
        norm(f"{block}.norm1", vision)
        linear(f"{block}.attn.qkv", 3 * vision, vision)
        linear(f"{block}.attn.proj", vision, vision)
        norm(f"{block}.norm2", vision)
        linear(f"{block}.mlp.fc1", 4 * vision, vision)
        linear(f"{block}.mlp.fc2", vision, 4 * vision)
    norm("blip.visual_encoder.norm", vision)
    norm("blip.text_encoder.embeddings.LayerNorm", text)
    for i in range(layers):
        layer = f"blip.text_encoder.encoder.layer.{i}"
        for attention, source in (("attention", text), ("crossattention", vision)):
            linear(f"{layer}.{attention}.self.query", text, text)
            linear(f"{layer}.{attention}.self.key", text, source)
            linear(f"{layer}.{attention}.self.value", text, source)
            linear(f"{layer}.{attention}.output.dense", text, text)
            norm(f"{layer}.{attention}.output.LayerNorm", text)
        linear(f"{layer}.intermediate.dense", 4 * text, text)
        linear(f"{layer}.output.dense", text, 4 * text)
        norm(f"{layer}.output.LayerNorm", text)
    linear("blip.vision_proj", 256, vision)
    linear("blip.text_proj", 256, text)
    for at, (out, into) in {0: (1024, text), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}.items():
        linear(f"mlp.layers.{at}", out, into)
    return shapes


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published layout, with the heads and the buffer that are saved and not used."""
    torch.manual_seed(8)
    model = shaken(RewardModel(Tiny.vision_sizes, Tiny.text_sizes))
    state = {published_name(key): value for key, value in model.state_dict().items()}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    for name, size in (("vision_proj", 48), ("text_proj", 32)):
        state[f"blip.{name}.weight"], state[f"blip.{name}.bias"] = torch.randn(256, size), torch.randn(256)
    path = tmp_path_factory.mktemp("image_reward") / "ImageReward.pt"
    torch.save(state, path)
    bert_tokenizer(path.parent / "bert")
    return path


def made(file: Path, **settings: Any) -> Tiny:
    return Tiny(checkpoint=str(file), tokenizer=str(file.parent / "bert"), device="cpu", **settings)


@pytest.fixture(scope="module")
def image_reward(file: Path) -> Tiny:
    return made(file, batch_size=3)


class TestContract(DifferentiableVerifierContract):
    @pytest.fixture
    def verifier(self, image_reward: Tiny) -> Tiny:
        return image_reward

    @pytest.fixture
    def media(self) -> list[Image.Image]:
        return some_images(4)


def test_every_published_weight_has_its_place() -> None:
    with torch.device("meta"):
        model = RewardModel(ImageReward.vision_sizes, ImageReward.text_sizes)
    mapped = {published_name(key): tuple(value.shape) for key, value in model.state_dict().items()}
    published = published_shapes()
    unused = re.compile(r"blip\.(vision_proj|text_proj|text_encoder\.embeddings\.position_ids)")
    assert mapped == {name: shape for name, shape in published.items() if not unused.match(name)}
    assert len(published) - len(mapped) == 5
    assert model.vision.config.layer_norm_eps == 1e-6 and model.text.config.num_attention_heads == 12
    assert model.text.config.layer_norm_eps == 1e-12 and model.text.config.hidden_act == "gelu"


def by_hand(state: dict[str, Tensor], pixels: Tensor, tokens: Tensor) -> Tensor:
    """The reward of one image and its tokens without padding, from the published weights alone."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (query, key, value))
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
        return (weights @ v).transpose(0, 1).flatten(1)

    eye = "blip.visual_encoder"
    patches = F.conv2d(
        pixels, state[f"{eye}.patch_embed.proj.weight"], state[f"{eye}.patch_embed.proj.bias"], stride=16
    )
    x = torch.cat((state[f"{eye}.cls_token"][0], patches[0].flatten(1).T)) + state[f"{eye}.pos_embed"][0]
    for i in range(2):
        block = f"{eye}.blocks.{i}"
        q, k, v = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x, 1e-6)).chunk(3, dim=-1)
        x = x + linear(f"{block}.attn.proj", attend(q, k, v, heads=3))
        hidden = F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x, 1e-6)))
        x = x + linear(f"{block}.mlp.fc2", hidden)
    seen = norm(f"{eye}.norm", x, 1e-6)

    bert = "blip.text_encoder"
    words = state[f"{bert}.embeddings.word_embeddings.weight"][tokens]
    places = state[f"{bert}.embeddings.position_embeddings.weight"][: len(tokens)]
    y = norm(f"{bert}.embeddings.LayerNorm", words + places, 1e-12)
    for i in range(2):
        layer = f"{bert}.encoder.layer.{i}"
        for attention, other in (("attention", None), ("crossattention", seen)):
            name = f"{layer}.{attention}"
            source = y if other is None else other
            found = attend(
                linear(f"{name}.self.query", y),
                linear(f"{name}.self.key", source),
                linear(f"{name}.self.value", source),
                heads=2,
            )
            y = norm(f"{name}.output.LayerNorm", linear(f"{name}.output.dense", found) + y, 1e-12)
        hidden = F.gelu(linear(f"{layer}.intermediate.dense", y))
        y = norm(f"{layer}.output.LayerNorm", linear(f"{layer}.output.dense", hidden) + y, 1e-12)
    z = y[0]
    for at in (0, 2, 4, 6, 7):
        z = linear(f"mlp.layers.{at}", z)
    return (z[0] - 0.16717362830052426) / 1.0333394966054072


def test_against_the_authors_mathematics(file: Path, image_reward: Tiny) -> None:
    """Padding must not be looked at, the first token decides, and the image is seen through every layer."""
    media, texts = some_images(2, size=(60, 90)), ["two red circles", "star"]
    state = torch.load(file, weights_only=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = (file.parent / "bert" / "vocab.txt").read_text().split("\n")
    assert vocabulary[:5] == words
    pixels = standard_pixels(media, resize=32, crop=32, mean=CLIP_MEAN, std=CLIP_STD)
    expected = []
    for i, text in enumerate(texts):
        tokens = torch.tensor([2, *(vocabulary.index(word) for word in text.split()), 3])
        expected.append(float(by_hand(state, pixels[i : i + 1], tokens)))
    found = values(image_reward.score(media, [Prompt(text) for text in texts]))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_gradients_against_finite_differences(file: Path) -> None:
    verifier = made(file)
    verifier.load()
    doubled(verifier, verifier._model)
    check_slopes(lambda x: verifier.rewards(x, [PROMPT, Prompt("a star")]), as_pixels(some_images(2)))
    assert not any(p.requires_grad for p in verifier._model.parameters())


def test_long_prompts_are_cut_and_odd_images_scored(image_reward: Tiny) -> None:
    scores = image_reward.score([*odd_images(), clips(1)[0]], [PROMPT] * 6)
    assert [math.isnan(score.value) for score in scores] == [False] * 5 + [True]
    assert "got a clip" in (scores[-1].reason or "")
    assert scores[0].value == pytest.approx(image_reward.score(some_images(1), [PROMPT])[0].value, rel=1e-4)
    cut = Prompt(" ".join(LONG.split()[:33]))  # 35 tokens with the first and the last
    rows = image_reward.score(some_images(1) * 3, [Prompt(LONG), cut, Prompt(" ".join(LONG.split()[:32]))])
    assert rows[0].value == pytest.approx(rows[1].value, rel=1e-4) != rows[2].value
    assert image_reward.score([], []) == []


def test_half_precision_keeps_the_head(file: Path, image_reward: Tiny) -> None:
    half = made(file, dtype="bfloat16")
    found, expected = (values(v.score(some_images(3), [PROMPT] * 3)) for v in (half, image_reward))
    assert {weight.dtype for weight in half._model.mlp.parameters()} == {torch.float32}
    assert {weight.dtype for weight in half._model.text.parameters()} == {torch.bfloat16}
    assert found == pytest.approx(expected, rel=0.1, abs=0.1)
    assert half.rewards(as_pixels(some_images(1)).bfloat16(), [PROMPT]).dtype == torch.float32


def test_published_special_tokens_are_known(image_reward: Tiny) -> None:
    image_reward.load()
    first = len((Path(image_reward.tokenizer) / "vocab.txt").read_text().split("\n"))
    assert image_reward._tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [first, first + 1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("blip.visual_encoder.blocks.1.attn.qkv.bias", "blip.visual_encoder.blocks.1.attn.kqv.bias"),
        (
            "blip.text_encoder.encoder.layer.1.crossattention.self.key.weight",
            "blip.text_encoder.other.weight",
        ),
        ("blip.visual_encoder.norm.weight", "blip.visual_encoder_m.norm.weight"),
        ("mlp.layers.7.weight", "mlp.layers.8.weight"),
    ],
)
def test_a_renamed_key_is_named(file: Path, tmp_path: Path, old: str, new: str) -> None:
    bad = rename_key_in_file(file, tmp_path / "bad.pt", old, new)
    verifier = Tiny(checkpoint=str(bad), tokenizer=str(file.parent / "bert"), device="cpu")
    message = rf"1 missing \({re.escape(old)}\) and 1 unexpected \({re.escape(new)}\)"
    with pytest.raises(VerifierError, match=message):
        verifier.load()


def test_other_weights_are_refused(file: Path, tmp_path: Path) -> None:
    state = torch.load(file, weights_only=True)
    state["mlp.layers.7.weight"] = torch.zeros(1, 17)
    torch.save(state, tmp_path / "ImageReward.pt")
    with pytest.raises(VerifierError, match=r"is \(1, 17\) instead of \(1, 16\)"):
        Tiny(checkpoint=str(tmp_path), tokenizer=str(file.parent / "bert"), device="cpu").load()
    with pytest.raises(VerifierError, match="'image_reward' must be an existing path or a hub id"):
        Tiny(checkpoint="/nowhere", device="cpu").load()
    assert lookup("verifier", "image_reward").target is ImageReward


@pytest.mark.download
def test_published_weights_give_the_authors_scores() -> None:
    """THUDM/ImageReward and the authors' images assets/images/1.webp to 4.webp, in the folder
    TTS_VISION_IMAGE_REWARD_IMAGES. For "a painting of an ocean with clouds and birds, day time, low depth
    field effect" their README gives 0.5812, 0.2745, -1.4132 and -2.0296, and says that a device may change
    them slightly.
    """
    folder = Path(os.environ.get("TTS_VISION_IMAGE_REWARD_IMAGES", ""))
    files = [folder / f"{number}.webp" for number in (1, 2, 3, 4)]
    if not all(file.is_file() for file in files):
        pytest.skip("set TTS_VISION_IMAGE_REWARD_IMAGES to assets/images of THUDM/ImageReward")
    prompt = Prompt("a painting of an ocean with clouds and birds, day time, low depth field effect")
    found = values(ImageReward().score([Image.open(file) for file in files], [prompt] * 4))
    assert found == pytest.approx([0.5812, 0.2745, -1.4132, -2.0296], abs=0.02)
