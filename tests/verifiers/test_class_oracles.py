import math
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_backbones import rename_key, tiny_clip, tiny_dino, tiny_dinov2

from samples import clips, some_images
from tts_vision import Prompt
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.imagenet import class_of
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract
from tts_vision.verifiers._backbones import clip_standard_pixels, standard_pixels
from tts_vision.verifiers.class_oracles import ClipClassifier, DinoClassifier, InceptionConfidence

TENCH = Prompt("tench")


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dinov2(tmp_path_factory.mktemp("dinov2") / "tiny", classes=1000)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


class TestDinoContract(VerifierContract):
    @pytest.fixture
    def verifier(self, dinov2: Path) -> DinoClassifier:
        return DinoClassifier(checkpoint=str(dinov2), device="cpu", batch_size=3)

    @pytest.fixture
    def media(self) -> list[Image.Image]:
        return some_images(4)

    @pytest.fixture
    def prompt(self) -> Prompt:
        return TENCH


class TestClipContract(TestDinoContract):
    @pytest.fixture
    def verifier(self, clip: Path) -> ClipClassifier:  # type: ignore[override]
        return ClipClassifier(checkpoint=str(clip), device="cpu", batch_size=3)


@pytest.mark.parametrize(
    ("prompt", "number"),
    [
        (Prompt("207"), 207),
        (Prompt(" Golden Retriever "), 207),
        (Prompt("anything", {"class_id": 207}), 207),
        (Prompt("anything", {"class_id": "0"}), 0),
        (Prompt("anything", {"class_id": "tench"}), 0),
        (Prompt("smooth green snake"), 55),  # OpenAI's name
        (Prompt("green snake"), 55),  # torchvision's
        (Prompt("construction crane"), 517),
    ],
)
def test_the_class_is_a_number_or_a_name(prompt: Prompt, number: int) -> None:
    assert class_of(prompt) == number


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (Prompt("two red circles"), "got 'two red circles'; put the number"),
        (Prompt("1000"), "got '1000'"),
        (Prompt("tench", {"class_id": -1}), "got '-1'"),
        (Prompt("cardigan"), r"got 'cardigan', the name of classes 264, 474;"),  # a dog, and what it may wear
    ],
)
def test_what_is_no_class_is_refused(prompt: Prompt, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        class_of(prompt)


def test_dino_against_transformers(dinov2: Path) -> None:
    from transformers import Dinov2Model

    media = some_images(2, size=(60, 90))
    classifier = DinoClassifier(checkpoint=str(dinov2), device="cpu")
    scores = classifier.score(media, [Prompt("3"), Prompt("999")])
    head = classifier._model.classifier
    body = Dinov2Model.from_pretrained(dinov2)
    with torch.no_grad():
        tokens = body(standard_pixels(media, resize=256, crop=224)).last_hidden_state
        logits = head(torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), -1)).double()
    logs = logits.log_softmax(-1)
    assert [score.value for score in scores] == pytest.approx(
        [float(logits[0, 3]), float(logits[1, 999])], rel=1e-4
    )
    assert scores[1].parts == pytest.approx(
        {
            "logit": float(logits[1, 999]),
            "log_probability": float(logs[1, 999]),
            "probability": float(logs[1, 999].exp()),
        },
        rel=1e-3,
    )
    for value in ("probability", "log_probability"):
        other = DinoClassifier(checkpoint=str(dinov2), device="cpu", value=value)  # type: ignore[arg-type]
        score = other.score(media[1:], [Prompt("999")])[0]
        assert score.value == pytest.approx(scores[1].parts[value], rel=1e-3)


@pytest.mark.parametrize(("templates", "count"), [("simple", 7), ("openai", 80)])
def test_clip_is_its_temperature_times_a_cosine(clip: Path, templates: str, count: int) -> None:
    from open_clip import zero_shot_metadata as published
    from transformers import AutoTokenizer, CLIPModel

    phrases = getattr(published, f"{templates.upper()}_IMAGENET_TEMPLATES")
    assert len(phrases) == count
    media = some_images(2, size=(60, 90))
    model, tokenizer = CLIPModel.from_pretrained(clip), AutoTokenizer.from_pretrained(clip)
    expected = []
    with torch.no_grad():
        for image, number in zip(media, (0, 517), strict=True):
            embeddings = []
            for phrase in phrases:
                words = tokenizer(phrase(published.IMAGENET_CLASSNAMES[number]), return_tensors="pt")
                embedding = model.text_projection(model.text_model(**words).pooler_output)[0]
                embeddings.append(embedding / embedding.norm())
            vector = torch.stack(embeddings).mean(0)
            image = model.visual_projection(
                model.vision_model(clip_standard_pixels(model, [image])).pooler_output
            )[0]
            cosine = float(image @ vector / image.norm() / vector.norm())
            expected.append(float(model.logit_scale.exp()) * cosine)
    classifier = ClipClassifier(checkpoint=str(clip), templates=templates, device="cpu")  # type: ignore[arg-type]
    scores = classifier.score(media, [TENCH, Prompt("517")])
    assert [score.value for score in scores] == pytest.approx(expected, rel=1e-3)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)


def test_bad_images_are_unscored_and_spoil_nothing(dinov2: Path, clip: Path) -> None:
    media = [clips(1)[0], Image.new("RGB", (1, 1)), some_images(1)[0].convert("RGBA"), some_images(1)[0]]
    for classifier in (
        DinoClassifier(checkpoint=str(dinov2), device="cpu"),
        ClipClassifier(checkpoint=str(clip), device="cpu"),
    ):
        scores = classifier.score(media, [TENCH] * 4)
        assert [math.isnan(score.value) for score in scores] == [True, False, False, False]
        assert "got a clip" in (scores[0].reason or "")
        assert scores[2].value == pytest.approx(scores[3].value, rel=1e-4)
        assert classifier.score([], []) == []
        with pytest.raises(ConfigError, match="A class of ImageNet must be"):
            classifier.score(media[-1:], [Prompt("two red circles")])


def test_weights_must_fit(dinov2: Path, clip: Path, tmp_path: Path) -> None:
    bad = rename_key(dinov2, tmp_path / "bad", "classifier.weight", "head.weight")
    with pytest.raises(VerifierError, match=r"1 missing \(classifier.weight\) and 1 unexpected \(head"):
        DinoClassifier(checkpoint=str(bad), device="cpu").load()
    bad = rename_key(clip, tmp_path / "clip", "text_projection.weight", "text.weight")
    with pytest.raises(VerifierError, match=r"1 missing \(text_projection.weight\) and 1 unexpected \(text"):
        ClipClassifier(checkpoint=str(bad), device="cpu").load()
    small = tiny_dinov2(tmp_path / "small", classes=10)
    with pytest.raises(VerifierError, match=r"head for 1000 classes but .* is dinov2 for 10"):
        DinoClassifier(checkpoint=str(small), device="cpu").load()
    with pytest.raises(VerifierError, match="dino_classifier"):  # a backbone has no head
        DinoClassifier(checkpoint=str(tiny_dino(tmp_path / "dino")), device="cpu").load()
    assert lookup("verifier", "dino_classifier").target is DinoClassifier
    assert lookup("verifier", "clip_classifier").target is ClipClassifier
    assert lookup("verifier", "inception_confidence").target is InceptionConfidence


@pytest.mark.download
@pytest.mark.parametrize("kind", [DinoClassifier, ClipClassifier])
def test_published_weights_know_a_class(kind: type[DinoClassifier] | type[ClipClassifier]) -> None:
    """Checks the class of an image against another; needs TTS_VISION_DINO_CLASSIFIER or
    TTS_VISION_CLIP_CLASSIFIER, TTS_VISION_IMAGE and its class number in TTS_VISION_IMAGE_CLASS.
    """
    names = (kind.name.upper(), "IMAGE", "IMAGE_CLASS")
    checkpoint, file, number = (os.environ.get(f"TTS_VISION_{name}", "") for name in names)
    if not number or not all(path and Path(path).exists() for path in (checkpoint, file)):
        pytest.skip(f"set {', '.join(f'TTS_VISION_{name}' for name in names)}")
    other = str((int(number) + 500) % 1000)
    scores = kind(checkpoint=checkpoint).score([Image.open(file)] * 2, [Prompt(number), Prompt(other)])
    assert scores[0].value > scores[1].value
