import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torchvision.models import Inception_V3_Weights, inception_v3

from samples import some_images
from tts_vision import Prompt
from tts_vision.errors import VerifierError
from tts_vision.types import FeatureExtractor
from tts_vision.verifiers._backbones import INCEPTION_WEIGHTS, inception_pixels, load_inception
from tts_vision.verifiers.class_oracles import InceptionConfidence
from tts_vision.verifiers.inception_features import InceptionFeatures

PUBLISHED = Inception_V3_Weights.IMAGENET1K_V1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The whole network (27 million weights) at random, as torchvision saves it."""
    torch.manual_seed(0)
    model = inception_v3(weights=None, aux_logits=True, init_weights=False)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    state = {key: value for key, value in model.state_dict().items() if "num_batches" not in key}
    file = tmp_path_factory.mktemp("inception") / INCEPTION_WEIGHTS.rsplit("/", 1)[-1]
    torch.save(state, file)
    yield file
    file.unlink()  # a hundred megabytes


def test_the_network_its_weights_and_its_pixels_are_torchvisions(checkpoint: Path) -> None:
    assert PUBLISHED.url == INCEPTION_WEIGHTS
    media = some_images(2, size=(60, 90))
    pixels = inception_pixels(media)
    expected = torch.stack([PUBLISHED.transforms()(image) for image in media])
    assert pixels.shape == (2, 3, 299, 299) and torch.allclose(pixels, expected, atol=1e-6)
    own = inception_v3(weights=None, aux_logits=True, transform_input=True, init_weights=False).eval()
    own.load_state_dict(torch.load(checkpoint), strict=False)
    small = pixels[..., ::4, ::4]  # 75 pixels a side, the least that the network takes
    logits = load_inception(str(checkpoint), "x")(small)
    assert torch.allclose(logits, own(small), rtol=1e-3, atol=1e-5)
    assert (logits[0] - logits[1]).abs().max() > 0.01  # far beyond that, although the weights are random


def test_features_are_what_the_classifier_reads(checkpoint: Path) -> None:
    media = some_images(1, size=(60, 90))
    extractor = InceptionFeatures(checkpoint=str(checkpoint), device="cpu")
    assert isinstance(extractor, FeatureExtractor)
    assert extractor.features([]).shape == (0, 2048)
    row = extractor.features(media)
    assert row.shape == (1, 2048) and row.dtype == torch.float32 and row.std() > 0.1

    classifier = InceptionConfidence(checkpoint=str(checkpoint), device="cpu")
    score = classifier.score(media, [Prompt("tench")])[0]
    logits = classifier._model.fc(row).double()
    assert score.value == score.parts["probability"]
    assert score.value == pytest.approx(float(logits.softmax(-1)[0, 0]), rel=1e-2)
    assert score.parts["log_probability"] == pytest.approx(float(logits.log_softmax(-1)[0, 0]), rel=1e-2)
    assert score.parts["logit"] == pytest.approx(float(logits[0, 0]), rel=1e-3, abs=1e-3)


def test_a_renamed_key_is_named(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint)
    state["fc.kernel"] = state.pop("fc.weight")
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(VerifierError, match=r"'x' .* 1 missing \(fc.weight\) and 1 unexpected \(fc.kernel\)"):
        load_inception(str(tmp_path / "bad.pth"), "x")
    (tmp_path / "bad.pth").unlink()


@pytest.mark.download
def test_published_weights_know_a_class() -> None:
    """Checks the class of an image against another; needs TTS_VISION_INCEPTION (the file),
    TTS_VISION_IMAGE and its class number in TTS_VISION_IMAGE_CLASS.
    """
    from PIL import Image

    names = ("INCEPTION", "IMAGE", "IMAGE_CLASS")
    checkpoint, file, number = (os.environ.get(f"TTS_VISION_{name}", "") for name in names)
    if not number or not all(path and Path(path).exists() for path in (checkpoint, file)):
        pytest.skip(f"set {', '.join(f'TTS_VISION_{name}' for name in names)}")
    other = str((int(number) + 500) % 1000)
    image = Image.open(file)
    scores = InceptionConfidence(checkpoint=checkpoint).score([image] * 2, [Prompt(number), Prompt(other)])
    assert scores[0].value > 0.1 > scores[1].value
