"""One primitive for all questions: probabilities of answers, on two families of models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_vlms
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from samples import some_images
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.model_verifier import UnusableSample
from tts_vision.verifiers._vlm import VisionLanguageModel, nucleus

QUESTIONS = ["Does this figure show a cat?", "no", "Please answer the user: two red circles, a figure?"]


@pytest.fixture(scope="module", params=[tiny_vlms.qwen_vl, tiny_vlms.idefics3])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make: Callable[[Path], Path] = request.param
    return make(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def vlm(folder: Path) -> VisionLanguageModel:
    return VisionLanguageModel(str(folder), owner="eye", device="cpu")


@pytest.fixture
def shown() -> list[list[Image.Image]]:
    """Lists of images of different number and size."""
    wide, tall = some_images(2, (64, 40)), some_images(1, (30, 60), seed=1)
    return [[wide[0]], [tall[0]], wide]


def test_is_what_its_parts_compute(folder: Path, vlm: VisionLanguageModel) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    image = some_images(1)[0]
    chat = [
        {
            "role": "user",
            "content": [{"type": "image", "image": image}, {"type": "text", "text": "Clear?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": [{"type": "text", "text": "Good?"}]},
    ]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        probabilities = model(**inputs).logits[0, -1].softmax(-1)
    vocabulary = processor.tokenizer.get_vocab()
    yes, no = (
        sum(float(probabilities[vocabulary[t]]) for t in tokens if t in vocabulary)
        for tokens in (
            ("yes", "Yes", "YES", "Ġyes", "ĠYes", "ĠYES"),
            ("no", "No", "NO", "Ġno", "ĠNo", "ĠNO"),
        )
    )
    assert vlm.yes_probabilities([[image]], [["Clear?", "yes", "Good?"]]) == pytest.approx([yes / (yes + no)])


def test_the_pool_has_the_variants_in_case_with_and_without_a_space(vlm: VisionLanguageModel) -> None:
    found = set(vlm._tokenizer.convert_ids_to_tokens(vlm.token_ids(["yes"])))
    assert {"yes", "Yes", "YES", "Ġyes"} <= found <= {"yes", "Yes", "YES", "Ġyes", "ĠYes", "ĠYES"}


def test_batches_change_nothing(vlm: VisionLanguageModel, shown: list[list[Image.Image]]) -> None:
    together = vlm.yes_probabilities(shown, QUESTIONS)
    alone = [vlm.yes_probabilities([s], [q])[0] for s, q in zip(shown, QUESTIONS)]
    assert alone == pytest.approx(together, abs=1e-6)
    assert vlm.yes_probabilities(shown[::-1], QUESTIONS[::-1])[::-1] == pytest.approx(together, abs=1e-6)
    assert len({round(p, 5) for p in together}) == 3


def test_a_full_memory_halves_the_batches_for_good(
    folder: Path, shown: list[list[Image.Image]], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = VisionLanguageModel(str(folder), owner="eye", device="cpu", batch_size=8)
    expected = vlm.yes_probabilities(shown, QUESTIONS)
    sizes: list[int] = []
    generate = vlm._generate

    def limited(inputs: Any, length: int, **settings: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(inputs, length, **settings)

    monkeypatch.setattr(vlm, "_generate", limited)
    for _ in range(2):
        assert vlm.yes_probabilities(shown, QUESTIONS) == pytest.approx(expected, abs=1e-6)
    assert vlm.batch_size == 1 and sizes == [3, 2, 1, 1, 1, 1, 1, 1]
    assert vlm.generate(shown, QUESTIONS, max_new_tokens=4) == [
        vlm.generate([s], [q], max_new_tokens=4)[0] for s, q in zip(shown, QUESTIONS)
    ]


def test_more_questions_than_a_batch(vlm: VisionLanguageModel, folder: Path) -> None:
    one = VisionLanguageModel(str(folder), owner="eye", device="cpu", batch_size=2)
    shown = [[p] for p in some_images(5)]
    assert one.yes_probabilities(shown, ["?"] * 5) == pytest.approx(vlm.yes_probabilities(shown, ["?"] * 5))


def test_two_answers_share_all_probability(vlm: VisionLanguageModel) -> None:
    pair = [some_images(2)]
    first = vlm.answer_probabilities(pair, ["Which?"], ["first"], ["second"])[0]
    second = vlm.answer_probabilities(pair, ["Which?"], ["second"], ["first"])[0]
    assert 0 < first < 1 and first + second == pytest.approx(1)


def test_order_of_images_and_turns_matter(vlm: VisionLanguageModel) -> None:
    a, b = some_images(2)
    ways = [([a, b], "?"), ([b, a], "?"), ([a, b], ["?", "yes", "?"]), ([], "?")]
    found = vlm.yes_probabilities([shown for shown, _ in ways], [asked for _, asked in ways])
    assert len({round(p, 6) for p in found}) == 4


def test_generates_what_greedy_search_gives(vlm: VisionLanguageModel) -> None:
    image = some_images(1)
    token = int(vlm.next_token_logits([image], ["?"])[0].argmax())
    (text,) = vlm.generate([image], ["?"], max_new_tokens=1)
    assert text == vlm._tokenizer.decode([token], skip_special_tokens=True).strip()


def test_sampled_tokens_follow_their_generators(vlm: VisionLanguageModel) -> None:
    def draw(seeds: list[int]) -> list[str]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        found = vlm.first_tokens([[p] for p in some_images(len(seeds))], ["?"] * len(seeds), generators)
        assert all(int((f.probabilities > 0).sum()) == 50 for f in found)
        return [f.text for f in found]

    assert draw([1, 2, 3]) == draw([1, 2, 3])
    assert draw([1, 2, 3])[:1] == draw([1])
    assert len(set(draw(list(range(12))))) > 2


def test_no_global_random_state_is_touched(vlm: VisionLanguageModel) -> None:
    before = torch.random.get_rng_state()
    vlm.first_tokens([[]], ["?"], [torch.Generator()])
    vlm.generate([[]], ["?"], max_new_tokens=2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_nucleus_keeps_the_fewest_that_hold_the_mass() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert nucleus(logits, 0, 1.0).isfinite().tolist() == [True] * 4
    assert nucleus(logits, 3, 1.0).isfinite().tolist() == [True, True, True, False]
    assert nucleus(logits, 0, 0.7).isfinite().tolist() == [True, True, False, False]
    assert nucleus(logits, 0, 0.1).isfinite().tolist() == [True, False, False, False]


def test_a_word_that_is_no_token_is_refused(vlm: VisionLanguageModel) -> None:
    with pytest.raises(VerifierError, match="has none for 'zebra'"):
        vlm.answer_probabilities([[]], ["?"], ["zebra"], ["no"])
    with pytest.raises(VerifierError, match="share one"):
        vlm.answer_probabilities([[]], ["?"], ["yes"], ["no", "Yes"])


def test_a_question_must_not_smuggle_in_an_image(vlm: VisionLanguageModel) -> None:
    placeholder = vlm._processor.image_token
    with pytest.raises(UnusableSample, match="stands for an image"):
        vlm.yes_probabilities([some_images(1)], [f"{placeholder} a cat"])


def test_a_dialogue_ends_with_the_user(vlm: VisionLanguageModel) -> None:
    with pytest.raises(ValueError, match="user's turn"):
        vlm.yes_probabilities([some_images(1)], [["?", "yes"]])


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"dtype": "float3"}])
def test_settings_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        VisionLanguageModel("a/b", owner="eye", **wrong)  # type: ignore[arg-type]


def test_weights_are_loaded_strictly(tmp_path: Path) -> None:
    folder = tiny_vlms.qwen_vl(tmp_path)
    file = folder / "model.safetensors"
    state = load_file(file)
    state["visual.merger.wrong.weight"] = state.pop(
        next(k for k in state if k.endswith("merger.ln_q.weight"))
    )
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(VerifierError, match=r"merger\.ln_q\.weight.*merger\.wrong\.weight"):
        VisionLanguageModel(str(folder), owner="eye").load()


def test_a_model_without_chat_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VerifierError, match="chat template"):
        VisionLanguageModel(str(tiny_vlms.qwen_vl(tmp_path, chat=False)), owner="eye").load()


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VerifierError, match="eye"):
        VisionLanguageModel(str(tmp_path / "nothing"), owner="eye").load()
