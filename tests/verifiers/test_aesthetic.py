import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_backbones import tiny_clip
from tiny_rewards import as_pixels, check_slopes, doubled, odd_images, rename_key_in_file, tiny_siglip
from torch import Tensor, nn

from samples import clips, some_images
from tts_vision import Prompt
from tts_vision.errors import VerifierError
from tts_vision.registry import lookup
from tts_vision.testing.contracts import DifferentiableVerifierContract, values
from tts_vision.verifiers._backbones import clip_standard_pixels
from tts_vision.verifiers.aesthetic import HEADS, Aesthetic, AestheticV25

PROMPT = Prompt("not read")
MLP_FILE = "sac+logos+ava1-l14-linearMSE.pth"
LINEAR_FILE = "sa_0_4_vit_l_14_linear.pth"
V25_FILE = "aesthetic_predictor_v2_5.pth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three published heads at reduced width, and their backbones in ``clip`` and ``siglip``."""
    folder = tmp_path_factory.mktemp("aesthetic")
    tiny_clip(folder / "clip")
    tiny_siglip(folder / "siglip")
    torch.manual_seed(9)
    sizes = [1024, 128, 64, 16, 1]
    for name, file, places, width in (
        ("layers", MLP_FILE, (0, 2, 4, 6, 7), 16),
        ("scoring_head", V25_FILE, (0, 2, 4, 6, 8), 32),
    ):
        state = {}
        for at, into, out in zip(places, [width, *sizes], sizes):
            state[f"{name}.{at}.weight"] = torch.randn(out, into) / math.sqrt(into)
            state[f"{name}.{at}.bias"] = torch.randn(out) * 0.1
        torch.save(state, folder / file)
    torch.save({"weight": torch.randn(1, 16) * 10, "bias": torch.tensor([5.0])}, folder / LINEAR_FILE)
    return folder


def made(folder: Path, kind: str, **settings: object) -> Aesthetic | AestheticV25:
    place = {"checkpoint": str(folder), "device": "cpu", **settings}
    if kind == "v2.5":
        return AestheticV25(**{"backbone": str(folder / "siglip"), **place})  # type: ignore[arg-type]
    return Aesthetic(**{"head": kind, "backbone": str(folder / "clip"), **place})  # type: ignore[arg-type]


KINDS = ["mlp", "linear", "v2.5"]


class TestContract(DifferentiableVerifierContract):
    @pytest.fixture(params=KINDS)
    def verifier(self, folder: Path, request: pytest.FixtureRequest) -> Aesthetic | AestheticV25:
        return made(folder, request.param, batch_size=3)

    @pytest.fixture
    def media(self) -> list[Image.Image]:
        return some_images(4)

    @pytest.fixture
    def resize_tolerance(self) -> float:
        return 5e-2  # of scores from 1 to 10


def clip_units(folder: Path, media: list[Image.Image]) -> Tensor:
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder / "clip")
    with torch.no_grad():
        seen = model.vision_model(clip_standard_pixels(model, media)).pooler_output
        embeddings = model.visual_projection(seen)
    return embeddings / embeddings.norm(dim=-1, keepdim=True)


def test_the_linear_head_is_a_dot_product(folder: Path) -> None:
    media = some_images(3, size=(60, 90))
    head = torch.load(folder / LINEAR_FILE, weights_only=True)
    expected = (clip_units(folder, media) @ head["weight"][0] + head["bias"]).tolist()
    found = values(made(folder, "linear").score(media, [PROMPT] * 3))
    assert found == pytest.approx(expected, rel=1e-4)
    assert abs(found[0] - 5) <= 10 * head["weight"].norm()


def test_the_mlp_is_five_linear_layers(folder: Path) -> None:
    """Without activations between them, the head is one affine map, which is multiplied out here."""
    media = some_images(3, size=(60, 90))
    state = torch.load(folder / MLP_FILE, weights_only=True)
    weight, bias = torch.eye(16, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
    for at in (0, 2, 4, 6, 7):
        layer = state[f"layers.{at}.weight"].double()
        weight, bias = layer @ weight, layer @ bias + state[f"layers.{at}.bias"].double()
    expected = (clip_units(folder, media).double() @ weight[0] + bias).tolist()
    found = values(made(folder, "mlp").score(media, [PROMPT] * 3))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_version_2_5_step_by_step(folder: Path) -> None:
    from transformers import SiglipVisionModel

    media = some_images(3, size=(60, 90))
    squashed = [image.resize((32, 32), Image.Resampling.BICUBIC) for image in media]
    pixels = torch.from_numpy(np.stack([np.asarray(p, dtype=np.float32) for p in squashed]) / 127.5 - 1)
    with torch.no_grad():
        seen = SiglipVisionModel.from_pretrained(folder / "siglip")(pixels.permute(0, 3, 1, 2)).pooler_output
        x = seen / seen.norm(dim=-1, keepdim=True)
        state = torch.load(folder / V25_FILE, weights_only=True)
        for at in (0, 2, 4, 6, 8):
            x = F.linear(x, state[f"scoring_head.{at}.weight"], state[f"scoring_head.{at}.bias"])
    found = values(made(folder, "v2.5").score(media, [PROMPT] * 3))
    assert found == pytest.approx(x[:, 0].tolist(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_against_finite_differences(folder: Path, kind: str) -> None:
    verifier = made(folder, kind)
    verifier.load()
    doubled(verifier, verifier._model, verifier._head)
    check_slopes(lambda x: verifier.rewards(x, [PROMPT] * 2), as_pixels(some_images(2)))
    parameters = [*verifier._model.parameters(), *verifier._head.parameters()]
    assert not any(p.requires_grad for p in parameters)
    assert not any(module.training for module in verifier._head.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_is_not_read_and_odd_images_scored(folder: Path, kind: str) -> None:
    verifier = made(folder, kind)
    scores = verifier.score([*odd_images(), clips(1)[0]], [PROMPT] * 6)
    assert [math.isnan(score.value) for score in scores] == [False] * 5 + [True]
    assert "got a clip" in (scores[-1].reason or "")
    (same,) = verifier.score(some_images(1), [Prompt("something else")])
    assert scores[0].value == pytest.approx(same.value, rel=1e-4)
    assert verifier.score([], []) == []


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_keeps_the_head(folder: Path, kind: str) -> None:
    half = made(folder, kind, dtype="bfloat16")
    found, expected = (values(v.score(some_images(3), [PROMPT] * 3)) for v in (half, made(folder, kind)))
    assert all(weight.dtype == torch.float32 for weight in half._head.parameters())
    assert found == pytest.approx(expected, rel=0.1, abs=0.1)


@pytest.mark.parametrize(
    ("kind", "file", "old", "new"),
    [
        ("mlp", MLP_FILE, "layers.7.bias", "layers.8.bias"),
        ("linear", LINEAR_FILE, "bias", "offset"),
        ("v2.5", V25_FILE, "scoring_head.8.bias", "scoring_head.7.bias"),
    ],
)
def test_a_renamed_key_is_named(
    folder: Path, tmp_path: Path, kind: str, file: str, old: str, new: str
) -> None:
    bad = rename_key_in_file(folder / file, tmp_path / file, old, new)
    with pytest.raises(VerifierError, match=rf"1 missing \({old}\) and 1 unexpected \({new}\)"):
        made(folder, kind, checkpoint=str(bad)).load()


def test_heads_are_not_mixed_up(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        VerifierError, match=r"10 missing \(layers.0.bias, .* and 2 unexpected \(bias, weight"
    ):
        made(folder, "mlp", checkpoint=str(folder / LINEAR_FILE)).load()
    with pytest.raises(VerifierError, match=r"must hold sac\+logos\+ava1-l14-linearMSE.pth"):
        made(folder, "mlp", checkpoint=str(folder / "clip")).load()
    torch.save({"weight": torch.zeros(1, 17), "bias": torch.zeros(1)}, tmp_path / "wide.pth")
    with pytest.raises(VerifierError, match=r"'weight' is \(1, 17\) instead of \(1, 16\)"):
        made(folder, "linear", checkpoint=str(tmp_path / "wide.pth")).load()
    assert {name: url.rsplit("/", 1)[-1] for name, url in HEADS.items()} == {
        "mlp": MLP_FILE,
        "linear": LINEAR_FILE,
    }
    assert [Aesthetic(head=name, device="cpu").checkpoint for name in HEADS] == list(HEADS.values())
    assert lookup("verifier", "aesthetic").target is Aesthetic
    entry = lookup("verifier", "aesthetic_v2.5")
    assert entry.target is AestheticV25 and "AGPL-3.0" in entry.notes["licence"]


def test_the_published_names_are_those_of_linear_layers() -> None:
    from tts_vision.verifiers.aesthetic import MLP, MLPv25

    for head, name, places in ((MLP(768), "layers", "02467"), (MLPv25(1152), "scoring_head", "02468")):
        wanted = {f"{name}.{at}.{kind}" for at in places for kind in ("weight", "bias")}
        assert set(head.state_dict()) == wanted
        assert not any(isinstance(module, (nn.ReLU, nn.GELU)) for module in head.modules())


@pytest.mark.download
@pytest.mark.parametrize("kind", [Aesthetic, AestheticV25])
def test_published_weights_rate_an_image(kind: type[Aesthetic] | type[AestheticV25]) -> None:
    """The published heads and backbones, and any good photo in TTS_VISION_IMAGE: it must score from 3 to 9,
    and above the same photo as noise of its pixels; a known score of a public image could not be confirmed.
    """
    file = os.environ.get("TTS_VISION_IMAGE", "")
    if not Path(file).is_file():
        pytest.skip("set TTS_VISION_IMAGE to a photo")
    photo = Image.open(file).convert("RGB").resize((256, 256))
    pixels = np.asarray(photo).reshape(-1, 3)
    noise = Image.fromarray(np.random.default_rng(0).permutation(pixels).reshape(256, 256, 3))
    good, bad = values(kind().score([photo, noise], [PROMPT] * 2))
    assert 3 < good < 9 and good > bad
