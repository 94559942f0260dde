from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from toy_search import events, toy_context
from tts_vision.condition import Asset, Condition, conditions_of, distinct
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError, StorageError
from tts_vision.journal import Journal, read_asset
from tts_vision.media import pixels
from tts_vision.replays import recreate
from tts_vision.testing.contracts import kill_everywhere
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward
from tts_vision.trace import lineage
from tts_vision.types import Media, Prompt, Score, State
from tts_vision.verifier import ALONE, Asked

RED = Image.new("RGB", (4, 4), "red")


def full() -> Condition:
    return Condition(
        "a cat",
        "a dog",
        images={"image": RED, "mask_image": Image.new("L", (4, 4), 7)},
        embeddings={"prompt_embeds": torch.arange(6.0).view(1, 2, 3)},
        overrides={"guidance_scale": 3.0, "cross_attention_kwargs": {"scale": 0.5}},
    )


def test_equal_content_is_an_equal_condition() -> None:
    one, two = full(), full()
    assert one == two and hash(one) == hash(two) and len({one, two}) == 1
    assert Condition("a", overrides={"x": 1, "y": 2}) == Condition("a", overrides={"y": 2, "x": 1})
    assert Condition("a", images=RED) == Condition("a", images={"image": RED.copy()})


@pytest.mark.parametrize(
    "change",
    [
        {"text": "cats"},
        {"negative_text": None},
        {"images": {"image": RED}},
        {"images": {"mask_image": RED, "image": Image.new("L", (4, 4), 7)}},
        {"embeddings": {"prompt_embeds": torch.arange(6.0).view(1, 3, 2)}},
        {"embeddings": {"prompt_embeds": torch.arange(6.0).view(1, 2, 3).half()}},
        {"overrides": {"guidance_scale": 4.0}},
    ],
)
def test_any_other_content_is_another_condition(change: dict[str, Any]) -> None:
    assert replace(full(), **change) != full()


def test_it_cannot_change() -> None:
    image, tensor, settings = RED.copy(), torch.zeros(2), {"a": [1]}
    condition = Condition("x", images=image, embeddings={"e": tensor}, overrides={"o": settings})
    digest = condition.digest
    image.putpixel((0, 0), (0, 0, 0))
    tensor[0] = 1.0
    settings["a"].append(2)
    again = Condition("x", images=RED, embeddings={"e": torch.zeros(2)}, overrides={"o": {"a": [1]}})
    assert condition == again and condition.digest == digest
    with pytest.raises(AttributeError):
        condition.text = "y"  # type: ignore[misc]
    with pytest.raises(TypeError):
        condition.overrides["o"] = 1  # type: ignore[index]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "CMYK", "I;16"])
def test_images_and_tensors_survive_their_files(mode: str) -> None:
    image = Image.effect_noise((5, 3), 80).convert("RGB" if mode == "I;16" else mode)
    for value in (image, torch.randn(2, 3), torch.randn(1, 4).bfloat16(), torch.arange(3)):
        asset = Asset.of(value)
        loaded = Asset.load(asset.name, asset.dump())
        assert loaded.name == asset.name
        if isinstance(value, torch.Tensor):
            assert isinstance(loaded.value, torch.Tensor) and torch.equal(loaded.value, value)
            assert loaded.value.dtype == value.dtype
        else:
            assert np.array_equal(np.asarray(loaded.value), np.asarray(asset.value))


def test_an_asset_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    asset = Asset.of(RED)
    with pytest.raises(ConfigError, match="content it is named after"):
        Asset.load(asset.name, Asset.of(Image.new("RGB", (4, 4), "blue")).dump())
    journal = Journal(tmp_path)
    journal.keep(asset)
    stored = tmp_path / "conditions" / asset.name
    assert read_asset(tmp_path, asset.name).name == asset.name
    stored.write_bytes(stored.read_bytes()[:-20])
    with pytest.raises(StorageError, match="cannot be read"):
        read_asset(tmp_path, asset.name)
    for name in ("../trace.jsonl", "nothing.png"):
        with pytest.raises(StorageError, match="cannot be read"):
            read_asset(tmp_path, name)


def test_description_and_back() -> None:
    condition = full()
    assets = {asset.name: asset for asset in condition.assets}
    assert Condition.from_description(condition.describe(), assets.__getitem__) == condition
    assert Condition("a").describe() == {"text": "a"}
    arguments = condition.arguments()
    assert arguments["negative_prompt"] == "a dog" and arguments["guidance_scale"] == 3.0
    assert torch.equal(arguments["prompt_embeds"], torch.arange(6.0).view(1, 2, 3))
    assert set(arguments) == {
        "negative_prompt", "image", "mask_image", "prompt_embeds", "guidance_scale", "cross_attention_kwargs",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": 3}, "must be a string but got 3"),
        ({"text": "a", "overrides": {"x": RED}}, "plain JSON values"),
        ({"text": "a", "images": {"image": "cat.png"}}, "PIL images or tensors but got str"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Condition(**arguments)


def test_conditions_of_particles() -> None:
    default = Condition("x", overrides={"a": 1})
    assert conditions_of(None, 2, default) == [default, default]
    assert conditions_of("y", 1, default) == [Condition("y", overrides={"a": 1})]
    one, two = Condition("1"), Condition("2")
    assert conditions_of([one, two], 2, default) == [one, two]
    assert distinct([two, one, two]) == [two, one]
    with pytest.raises(ConfigError, match="one condition for each of 3 particles but got 2"):
        conditions_of([one, two], 3, default)


# In a search


class Texts(GaussianMixtureSampler):
    """The position of a sample says its text: the last coordinate is the length of the prompt."""

    def decode(self, state: State) -> list[Media]:
        lengths = torch.tensor([[float(len(c.text))] for c in state.conditions])
        return self._images(torch.cat([state.latents, lengths], 1))

    preview = decode


class Recording(TargetReward):
    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[str] = []

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        self.prompts += [prompt.text for prompt in prompts]
        return [Score(value=float(len(self.prompts))) for _ in media]


def stages(ctx: SearchContext) -> State:
    """Prompts change between particles and on the way; images are made of images."""
    x = ctx.init(3, [Condition("one"), Condition("two, two"), Condition("one")])
    x = ctx.advance(x, 2)
    ctx.score(x, prompt="the first stage")
    x = ctx.recondition(x, "a later stage", [0, 1, 1])
    x = ctx.advance(x, 1)
    kept = ctx.select(x, [2, 0])
    done = ctx.finish(kept)
    ctx.score(done)
    assert ctx.best is not None
    image = ctx.best.load()
    again = ctx.finish(ctx.init(2, Condition("of an image", images={"image": image})))
    ctx.score(again)
    return again


def test_conditions_go_with_their_rows() -> None:
    ctx = toy_context(Texts(num_steps=5), Recording())
    x = ctx.init(3, [Condition("one"), Condition("two, two"), Condition("one")])
    assert [c.text for c in ctx.select(ctx.advance(x), [1, 2]).conditions] == ["two, two", "one"]
    y = ctx.recondition(x, [Condition("three")], [1])
    assert y.uids == (3,) and y.conditions == (Condition("three"),)
    assert torch.equal(y.latents, x.latents[1:2])
    joined = State.cat([x, y])
    assert [c.text for c in joined.conditions] == ["one", "two, two", "one", "three"]
    births = [event for event in ctx.events if event.kind == "birth"]
    assert births[0].conditions == tuple(c.digest for c in x.conditions)
    # each condition is defined once
    assert set(births[0].defined) == {Condition("one").digest, Condition("two, two").digest}
    assert births[-1].defined == {Condition("three").digest: {"text": "three"}}


def test_the_prompt_of_the_user_judges_unless_told_otherwise() -> None:
    verifier = Recording()
    ctx = toy_context(Texts(num_steps=5), verifier)
    x = ctx.finish(ctx.init(2, "something else"))
    staged = ctx.score(x, prompt=["stage a", Prompt("stage b")])
    assert verifier.prompts == ["stage a", "stage b"] and staged.tolist() == [2.0, 2.0]
    assert not ctx.candidates and ctx.best is None
    ctx.score(x)
    assert verifier.prompts[2:] == ["x", "x"] and len(ctx.candidates) == 2
    assert [e.value for e in events(ctx, "stage_score")] == [["stage a", "stage b"]]
    assert ctx.ledger.spent.verifier_calls == 4


def test_every_candidate_is_made_again_from_its_record() -> None:
    sampler = Texts(num_steps=5)
    ctx = toy_context(sampler, Recording())
    stages(ctx)
    assert len(ctx.candidates) == 4
    for uid, candidate in ctx.candidates.items():
        chain = lineage(ctx.events, uid)
        assert chain[-1].condition is not None or chain[0].condition is not None
        again = recreate(ctx, chain, candidate.step, ctx._engine.journal.asset)
        assert np.array_equal(pixels(again), pixels(candidate.load()))


def test_survives_a_kill_anywhere(tmp_path: Path) -> None:
    class Length(TargetReward):
        def score(
            self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE
        ) -> list[Score]:
            return [Score(value=float(pixels(m).astype(float).mean())) for m in media]

    def without_media(ctx: SearchContext) -> State:
        x = ctx.advance(ctx.init(3, [Condition("one"), Condition("two"), Condition("one")]), 2)
        ctx.score(x, prompt="the first stage")
        x = ctx.recondition(x, [Condition("later", images=RED), Condition("two")], [0, 1])
        ctx.ask("critic", lambda: "fine", cost={"critic": 1})
        x = ctx.finish(x)
        ctx.score(x)
        return x

    kill_everywhere(without_media, lambda: Texts(num_steps=5), Length(), tmp_path)


def test_a_resumed_search_with_other_conditions_is_refused(tmp_path: Path) -> None:
    def search(text: str) -> None:
        ctx = toy_context(Texts(num_steps=5), Recording(), journal=Journal(tmp_path))
        x = ctx.init(2, text)
        if text == "one":
            ctx.interrupted("killed")
            return
        ctx.finish(x)

    search("one")
    with pytest.raises(StorageError, match="must repeat itself"):
        search("two")


def test_generators_share_one_search() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=5), Recording(), nfe=100)
    editor = Texts(num_steps=2)
    editor.name = "editor"
    edits = ctx.using(editor)
    x = ctx.finish(ctx.init(2))
    y = edits.finish(edits.init(2, "edited"))
    assert x.uids == (0, 1) and y.uids == (2, 3) and (ctx.num_steps, edits.num_steps) == (5, 2)
    edits.score(y)
    ctx.score(x)
    assert set(ctx.candidates) == set(edits.candidates) == {0, 1, 2, 3}
    assert ctx.ledger.spent.nfe == 2 * 5 + 2 * 2 and edits.best is ctx.best
    assert [e.sampler for e in ctx.events if e.kind == "birth"] == ["", "editor"]
    assert ctx.using(editor).capabilities == editor.capabilities
    twin = Texts(num_steps=3)
    twin.name = "editor"
    with pytest.raises(ConfigError, match="names of their own but two are 'editor'"):
        ctx.using(twin)
    with pytest.raises(ConfigError, match="must be a Sampler but got 'flux'"):
        ctx.using("flux")
