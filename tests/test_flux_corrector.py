"""ReflectionFlow's corrector on a tiny random Flux, with a LoRA that peft made and diffusers saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from torch import Tensor

import tts_vision
from tiny_pipelines import TINY
from tts_vision.config import ModelOptions
from tts_vision.correcting import load_corrector
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.pipelines import flux_correction, flux_corrector
from tts_vision.pipelines.flux_correction import CorrectionTransformer, FluxReflectionEditPipeline
from tts_vision.pipelines.flux_corrector import load_flux_corrector
from tts_vision.types import Media, Modality, Prompt, Score
from tts_vision.verifier import ALONE, Asked, Verifier

# the modules that the release trains, as its configuration names them
TARGETS = (
    r"(.*x_embedder|.*(?<!single_)transformer_blocks\.[0-9]+\."
    r"(norm1\.linear|attn\.to_k|attn\.to_q|attn\.to_v|attn\.to_out\.0|ff\.net\.2)"
    r"|.*single_transformer_blocks\.[0-9]+\.(norm\.linear|proj_mlp|proj_out|attn.to_k|attn.to_q|attn.to_v))"
)
N, M, WORDS = 6, 4, 5
SIZES = {"height": 16, "width": 16, "num_inference_steps": 2, "max_sequence_length": 16}


@pytest.fixture(scope="module")
def flux() -> Any:
    return TINY["flux"].build()


@pytest.fixture(scope="module")
def adapted(flux: Any) -> FluxTransformer2DModel:
    """The transformer with a LoRA by peft, which changes all tokens."""
    found: FluxTransformer2DModel = copy.deepcopy(flux.transformer)
    found.add_adapter(LoraConfig(r=4, lora_alpha=8, init_lora_weights="gaussian", target_modules=TARGETS))
    generator = torch.Generator().manual_seed(0)
    for name, weight in found.named_parameters():
        if "lora_B" in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    return found.eval().requires_grad_(False)


def lora_of(adapted: FluxTransformer2DModel) -> dict[str, Tensor]:
    return {f"transformer.{key}": value for key, value in get_peft_model_state_dict(adapted).items()}


def grid(n: int, columns: int) -> Tensor:
    ids = torch.zeros(n, 3)
    ids[:, 1], ids[:, 2] = torch.arange(n) // columns, torch.arange(n) % columns
    return ids


def inputs(model: Any, seed: int = 0) -> dict[str, Tensor]:
    generator, c = torch.Generator().manual_seed(seed), model.config
    return {
        "image": torch.randn(2, N, c.in_channels, generator=generator),
        "condition": torch.randn(2, M, c.in_channels, generator=generator),
        "text": torch.randn(2, WORDS, c.joint_attention_dim, generator=generator),
        "pooled": torch.randn(2, c.pooled_projection_dim, generator=generator),
    }


def run(
    model: Any, tokens: Tensor, ids: Tensor, given: dict[str, Tensor], time: float, scale: float
) -> Tensor:
    with torch.no_grad():
        (found,) = model(
            hidden_states=tokens,
            encoder_hidden_states=given["text"],
            pooled_projections=given["pooled"],
            timestep=torch.full((2,), time),
            img_ids=ids,
            txt_ids=torch.zeros(WORDS, 3),
            guidance=torch.full((2,), scale),
            return_dict=False,
        )
    return found


def marked(ids: Tensor) -> Tensor:
    """The positions of a condition, as Kontext marks them."""
    ids = ids.clone()
    ids[:, 0] = 1
    return ids


def moved(ids: Tensor) -> Tensor:
    """Where a condition of two columns stands."""
    ids = ids.clone()
    ids[:, 2] -= 2
    return ids


def test_without_a_condition_it_is_flux(flux: Any, adapted: Any) -> None:
    model, given = CorrectionTransformer.of(flux.transformer), inputs(flux.transformer)
    model.add_lora(lora_of(adapted), 2.0)
    wanted = run(flux.transformer, given["image"], grid(N, 3), given, 0.7, 3.5)
    assert torch.equal(run(model, given["image"], grid(N, 3), given, 0.7, 3.5), wanted)


def test_without_a_lora_and_at_time_0_the_condition_is_like_further_tokens(flux: Any) -> None:
    model, given = CorrectionTransformer.of(flux.transformer), inputs(flux.transformer)
    tokens = torch.cat((given["image"], given["condition"]), 1)
    wanted = run(flux.transformer, tokens, torch.cat((grid(N, 3), moved(grid(M, 2)))), given, 0.0, 1.0)
    found = run(model, tokens, torch.cat((grid(N, 3), marked(grid(M, 2)))), given, 0.0, 1.0)
    assert torch.allclose(found[:, :N], wanted[:, :N], atol=1e-5) and not found[:, N:].any()
    later = run(model, tokens, torch.cat((grid(N, 3), marked(grid(M, 2)))), given, 0.7, 3.5)
    same = run(flux.transformer, tokens, torch.cat((grid(N, 3), moved(grid(M, 2)))), given, 0.7, 3.5)
    assert not torch.allclose(later[:, :N], same[:, :N], atol=1e-3), "its time stays 0"


def test_the_condition_alone_goes_through_the_lora(flux: Any, adapted: Any) -> None:
    model, given = CorrectionTransformer.of(flux.transformer), inputs(flux.transformer)
    model.add_lora(lora_of(adapted), 2.0)  # alpha 8 over rank 4
    # no image: text and condition are the two streams of a Flux whose layers of images peft has changed
    rope = model.pos_embed(torch.cat((torch.zeros(WORDS, 3), moved(grid(M, 2)))))
    with torch.no_grad():
        at = model.time_text_embed(torch.zeros(2), torch.full((2,), 1000.0), given["pooled"])
        embedded = model._for_condition("x_embedder", given["condition"])
        text = model.context_embedder(given["text"])
        _, condition = model.streams(torch.empty(2, 0, embedded.shape[-1]), text, embedded, at, at, rope)
        found = model.proj_out(model.norm_out(condition, at))
    # single blocks of peft change the text's rows too, so only double blocks are compared
    singles, adapted.single_transformer_blocks = adapted.single_transformer_blocks, torch.nn.ModuleList()
    mine, model.single_transformer_blocks = model.single_transformer_blocks, torch.nn.ModuleList()
    try:
        with torch.no_grad():
            _, condition = model.streams(torch.empty(2, 0, embedded.shape[-1]), text, embedded, at, at, rope)
            doubles = model.proj_out(model.norm_out(condition, at))
        wanted = run(adapted, given["condition"], moved(grid(M, 2)), given, 0.0, 1.0)
    finally:
        adapted.single_transformer_blocks, model.single_transformer_blocks = singles, mine
    assert torch.allclose(doubles, wanted, atol=1e-5)
    assert not torch.allclose(found, doubles, atol=1e-3)


def test_single_blocks_change_the_condition_as_peft_changes_all_rows(flux: Any, adapted: Any) -> None:
    model, given = CorrectionTransformer.of(flux.transformer), inputs(flux.transformer)
    model.add_lora(lora_of(adapted), 2.0)
    width = model.x_embedder.out_features
    x = torch.randn(2, M, width, generator=torch.Generator().manual_seed(1))
    block, where = model.single_transformer_blocks[0], "single_transformer_blocks.0."
    rope = model.pos_embed(moved(grid(M, 2)))
    with torch.no_grad():
        at = model.time_text_embed(torch.zeros(2), torch.full((2,), 1000.0), given["pooled"])
        doubles, model.transformer_blocks = model.transformer_blocks, torch.nn.ModuleList()
        nothing = torch.empty(2, 0, width)
        _, found = model.streams(nothing, nothing, x, at, at, rope)
        model.transformer_blocks = doubles
        for each in adapted.single_transformer_blocks:
            _, x = each(x, nothing, at, rope)
    assert where and block is not None and torch.allclose(found, x, atol=1e-5)


def test_a_lora_must_fit_in_all_of_its_weights(flux: Any, adapted: Any) -> None:
    model, state = CorrectionTransformer.of(flux.transformer), lora_of(adapted)
    first = next(iter(state))
    with pytest.raises(PipelineError, match=f"lacks {first} and has none besides"):
        model.add_lora({key: value for key, value in state.items() if key != first})
    with pytest.raises(PipelineError, match=r"lacks none and has transformer\.more besides"):
        model.add_lora({**state, "transformer.more": state[first]})
    with pytest.raises(PipelineError, match=r"must fit the transformer but do not.*size mismatch"):
        model.add_lora({**state, first: state[first][:, 1:]})


def test_the_published_layout_has_343_layers() -> None:
    with torch.device("meta"):
        model = CorrectionTransformer(guidance_embeds=True)  # FLUX.1-dev's sizes are diffusers' defaults
    found = [name for name, _ in model.named_modules() if flux_correction._LAYERS.fullmatch(name)]
    assert len(found) == 1 + 19 * 6 + 38 * 6
    assert {"x_embedder", "transformer_blocks.18.ff.net.2", "single_transformer_blocks.37.proj_out"} <= set(
        found
    )


@pytest.fixture(scope="module")
def folders(flux: Any, adapted: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Flux, and a LoRA as the release saves it."""
    base, lora = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("lora")
    flux.save_pretrained(base)
    FluxPipeline.save_lora_weights(lora, transformer_lora_layers=get_peft_model_state_dict(adapted))
    return base, lora


def test_the_pipeline_shows_the_image_to_the_model(folders: tuple[Path, Path], flux: Any) -> None:
    base, lora = folders
    options = ModelOptions(device="cpu", dtype="float32")
    pipe = load_flux_corrector(f"flux-corrector:base={base},lora={lora}", options=options)
    assert isinstance(pipe, FluxReflectionEditPipeline) and isinstance(
        pipe.transformer, CorrectionTransformer
    )
    red, blue = (Image.new("RGB", (40, 24), colour) for colour in ("red", "blue"))
    seen: list[Tensor] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["img_ids"]), with_kwargs=True
    )

    def drawn(image: Image.Image | None) -> Tensor:
        call = {"generator": torch.Generator().manual_seed(0), "output_type": "pt", **SIZES}
        found: Tensor = pipe(image, "two red circles", condition_size=32, **call).images
        return found

    first, other, none = drawn(red), drawn(blue), drawn(None)
    hook.remove()
    side = 32 // (pipe.vae_scale_factor * 2)
    assert first.shape[-2:] == (16, 16) and int((seen[0][:, 0] == 1).sum()) == side * side
    assert not torch.equal(first, other)
    plain = flux("two red circles", generator=torch.Generator().manual_seed(0), output_type="pt", **SIZES)
    assert torch.allclose(none, plain.images, atol=1e-5)
    assert flux_corrector._scale_of(lora / flux_corrector.FILE) == 1.0, "the release names no alpha"


def test_a_base_or_a_lora_that_is_none_is_told(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, lora = folders
    options = ModelOptions(device="cpu", dtype="float32")
    TINY["stable_diffusion"].build().save_pretrained(tmp_path / "sd3")
    with pytest.raises(PipelineError, match="must be a Flux but got a StableDiffusionPipeline"):
        load_flux_corrector(f"flux-corrector:base={tmp_path / 'sd3'},lora={lora}", options=options)
    with pytest.raises(PipelineError, match=r"must hold pytorch_lora_weights\.safetensors"):
        load_flux_corrector(f"flux-corrector:base={base},lora={base}", options=options)
    with pytest.raises(ConfigError, match="must be one of base, lora"):
        load_flux_corrector("flux-corrector:vae=x", options=options)


class Bright(Verifier):
    name = "bright"
    accepts: frozenset[Modality] = frozenset({"image"})

    def score(self, media: Any, prompts: Any, asked: Asked = ALONE) -> list[Score]:
        def value(image: Media) -> float:
            assert isinstance(image, Image.Image)
            return sum(image.convert("L").getdata()) / 255 / image.width / image.height

        return [Score(value=value(image), reason="too dark", satisfied=False) for image in media]


def test_a_search_corrects_images_by_it(folders: tuple[Path, Path], flux: Any) -> None:
    base, lora = folders
    result = tts_vision.search(
        flux,
        Prompt("two red circles"),
        algorithm="reflection_flow",
        algorithm_params={
            "n": 2,
            "rounds": 1,
            "branches": 1,
            "corrector": f"flux_corrector:base={base},lora={lora},condition_size=32",
        },
        verifier=Bright(),
        budget="40x",
        pipeline_kwargs={**SIZES, "guidance_scale": 3.5},
    )
    (reflection,) = result.reflections
    (correction,) = reflection.corrections
    (link,) = result.lineage(correction.uids[0])
    assert link.sampler.startswith("flux-corrector:base=") and link.sampler.endswith("condition_size=32")
    assert link.condition is not None
    assert link.condition["text"] == "two red circles [Reflexion]: too dark"
    made = next(c for c in result.population if c.uid == correction.uids[0])
    assert isinstance(made.load(), Image.Image)


def test_its_parameters() -> None:
    from toy_search import toy_context

    with pytest.raises(ConfigError, match="condition_size must be a multiple of 16 but got 500"):
        load_corrector("flux_corrector:condition_size=500", toy_context())
