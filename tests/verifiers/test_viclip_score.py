import math
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_viclip import FRAMES, GRID, HEADS, LAYERS, PATCH, TEXT_HEADS, tiny_viclip, viclip_state
from torch import Tensor

from samples import clips, some_images
from tts_vision import Prompt, Video
from tts_vision.errors import VerifierError
from tts_vision.media import read_media
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract, values
from tts_vision.verifiers.viclip_score import ViClipScore, viclip_pixels

PROMPT = Prompt("two red circles")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_viclip(tmp_path_factory.mktemp("viclip"))


@pytest.fixture(scope="module")
def tiny(file: Path) -> ViClipScore:
    return ViClipScore(checkpoint=str(file), device="cpu", batch_size=2)


class TestContract(VerifierContract):
    @pytest.fixture
    def verifier(self, tiny: ViClipScore) -> ViClipScore:
        return tiny

    @pytest.fixture
    def media(self) -> list[Video]:
        return [clips(1, frames=2)[0], *clips(2, frames=12, seed=1)]


def blocks(state: dict[str, Tensor], tower: str, x: Tensor, heads: int, *, causal: bool) -> Tensor:
    """The layers of a tower, from their formulas: ``(tokens, width)`` of one sample, head by head."""
    count, width = x.shape
    size = width // heads
    for layer in range(LAYERS):

        def weight(name: str, at: str = f"{tower}.transformer.resblocks.{layer}") -> Tensor:
            return state[f"{at}.{name}"]

        normed = F.layer_norm(x, (width,), weight("ln_1.weight"), weight("ln_1.bias"))
        query, key, value = (normed @ weight("attn.in_proj_weight").T + weight("attn.in_proj_bias")).split(
            width, 1
        )
        read = []
        for head in range(heads):
            part = slice(head * size, head * size + size)
            logits = query[:, part] @ key[:, part].T / math.sqrt(size)
            if causal:
                logits = logits.masked_fill(torch.ones(count, count).triu(1).bool(), -math.inf)
            read.append(logits.softmax(1) @ value[:, part])
        x = x + torch.cat(read, 1) @ weight("attn.out_proj.weight").T + weight("attn.out_proj.bias")
        normed = F.layer_norm(x, (width,), weight("ln_2.weight"), weight("ln_2.bias"))
        hidden = normed @ weight("mlp.c_fc.weight").T + weight("mlp.c_fc.bias")
        hidden = hidden / (1 + torch.exp(-1.702 * hidden))
        x = x + hidden @ weight("mlp.c_proj.weight").T + weight("mlp.c_proj.bias")
    return x


def seen(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """The video embedding, token by token in the authors' order: all frames of a patch together."""
    at = "vision_encoder."
    kernel = state[at + "conv1.weight"][:, :, 0].flatten(1)
    position, time = state[at + "positional_embedding"], state[at + "temporal_positional_embedding"][0]
    tokens = [state[at + "class_embedding"] + position[0]]
    for number in range(GRID**2):
        top, left = PATCH * (number // GRID), PATCH * (number % GRID)
        for t, frame in enumerate(pixels):
            patch = frame[:, top : top + PATCH, left : left + PATCH].flatten()
            tokens.append(kernel @ patch + position[1 + number] + time[t])
    width = len(tokens[0])
    x = F.layer_norm(torch.stack(tokens), (width,), state[at + "ln_pre.weight"], state[at + "ln_pre.bias"])
    first = blocks(state, "vision_encoder", x, HEADS, causal=False)[0]
    return (
        F.layer_norm(first, (width,), state[at + "ln_post.weight"], state[at + "ln_post.bias"])
        @ state[at + "proj"]
    )


def read(state: dict[str, Tensor], tokens: list[int]) -> Tensor:
    """The embedding of a text that ends with its end token; nothing behind that can matter."""
    at = "text_encoder."
    x = state[at + "token_embedding.weight"][tokens] + state[at + "positional_embedding"][: len(tokens)]
    last = blocks(state, "text_encoder", x, TEXT_HEADS, causal=True)[-1]
    normed = F.layer_norm(last, last.shape, state[at + "ln_final.weight"], state[at + "ln_final.bias"])
    return normed @ state[at + "text_projection"]


def test_is_the_cosine_of_both_embeddings(tiny: ViClipScore) -> None:
    state = viclip_state()
    media = [*clips(2, frames=16), clips(1, frames=3, seed=2)[0]]
    # <|startoftext|> a cat </w> <|endoftext|> in CLIP's vocabulary
    text = read(state, [49406, 320, 2368, 49407])
    chosen = [list(range(0, 16, 2)), list(range(0, 16, 2)), [0, 1, 2, 2, 2, 2, 2, 2]]
    expected = []
    for video, frames in zip(media, chosen, strict=True):
        clip = seen(state, viclip_pixels(video.frames[frames], GRID * PATCH))
        expected.append(float(F.cosine_similarity(clip, text, dim=0)))
    found = values(tiny.score(media, [Prompt("A  CAT")] * 3))
    assert found == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in found}) == 3 and FRAMES == 8


def test_the_order_of_frames_matters(tiny: ViClipScore) -> None:
    video = clips(1, frames=8)[0]
    forth, back = values(tiny.score([video, Video(video.frames.flip(0))], [PROMPT] * 2))
    assert abs(forth - back) > 1e-4


def test_long_prompts_are_cut_at_32_tokens(tiny: ViClipScore) -> None:
    video = clips(1)[0]
    same, longer, other = (
        Prompt("cat " * n + end) for n, end in ((30, ""), (29, "cat and a dog"), (29, "dog"))
    )
    scores = values(tiny.score([video] * 3, [same, longer, other]))
    assert scores[0] == scores[1] != scores[2]


def test_frames_are_resized_as_rounded_bytes() -> None:
    noise = (
        torch.randint(0, 2, (1, 9, 9, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8) * 255
    )
    pixels = viclip_pixels(noise, 224)
    mean, std = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    levels = (pixels * std.view(1, 3, 1, 1) + mean.view(1, 3, 1, 1)) * 255
    assert levels.min() == pytest.approx(0, abs=1e-3) and levels.max() == pytest.approx(255, abs=1e-3)
    assert (levels - levels.round()).abs().max() < 1e-3
    assert viclip_pixels(noise[:, :, :6], 32).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("key", ["vision_encoder.ln_post.weight", "text_encoder.text_projection", "temp"])
def test_weights_are_loaded_strictly(tmp_path: Path, key: str) -> None:
    state = viclip_state()
    state["stranger"] = state.pop(key)
    file = tiny_viclip(tmp_path, state)
    with pytest.raises(
        VerifierError, match=rf"'viclip_score'.*1 missing \({key}\) and 1 unexpected \(stranger\)"
    ):
        ViClipScore(checkpoint=str(file), device="cpu").load()


def test_weights_of_another_shape_and_other_models_are_refused(tmp_path: Path) -> None:
    state = viclip_state()
    state["vision_encoder.ln_pre.bias"] = torch.zeros(3)
    with pytest.raises(VerifierError, match=r"ln_pre\.bias"):
        ViClipScore(checkpoint=str(tiny_viclip(tmp_path / "shape", state)), device="cpu").load()
    no_video = {key: value for key, value in viclip_state().items() if key.startswith("text")}
    with pytest.raises(VerifierError, match="must be those of a ViCLIP but they lack"):
        ViClipScore(checkpoint=str(tiny_viclip(tmp_path / "text", no_video)), device="cpu").load()
    state = viclip_state() | {"text_encoder.token_embedding.weight": torch.zeros(100, 64)}
    with pytest.raises(VerifierError, match="49408 tokens of CLIP but have 100"):
        ViClipScore(checkpoint=str(tiny_viclip(tmp_path / "words", state)), device="cpu").load()
    with pytest.raises(VerifierError, match=r"must hold ViClip-InternVid-10M-FLT\.pth"):
        ViClipScore(checkpoint=str(tmp_path), device="cpu").load()


def test_images_are_unscored(tiny: ViClipScore) -> None:
    image, video = tiny.score([some_images(1)[0], clips(1)[0]], [PROMPT] * 2)
    assert math.isnan(image.value) and "got an image" in (image.reason or "")
    assert video.value == pytest.approx(tiny.score([clips(1)[0]], [PROMPT])[0].value, abs=1e-6)


def test_is_registered() -> None:
    entry = lookup("verifier", "viclip_score")
    assert entry.target is ViClipScore and "Apache-2.0" in entry.notes["licence"]


@pytest.mark.download
def test_published_weights_prefer_the_true_prompt() -> None:
    """Needs the published file in TTS_VISION_VICLIP, a clip in TTS_VISION_CLIP and its prompt in
    TTS_VISION_CLIP_PROMPT.
    """
    file, clip = (os.environ.get(f"TTS_VISION_{name}", "") for name in ("VICLIP", "CLIP"))
    prompt = os.environ.get("TTS_VISION_CLIP_PROMPT", "")
    if not (Path(file).is_file() and Path(clip).is_file() and prompt):
        pytest.skip("set TTS_VISION_VICLIP, TTS_VISION_CLIP and TTS_VISION_CLIP_PROMPT")
    video = read_media(Path(clip))
    true, false = ViClipScore(checkpoint=file).score([video] * 2, [Prompt(prompt), Prompt("a page of text")])
    assert true.value > false.value
