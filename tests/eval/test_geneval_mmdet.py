"""Checkpoints of mmdet become models of transformers with equal outputs, or are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tts_vision.errors import ConfigError, VerifierError
from tts_vision.eval.geneval.prompts import CLASSES
from tts_vision.types import Prompt
from tts_vision.verifiers._mask2former import Mask2Former
from tts_vision.verifiers._mmdet import COCO, FILE, is_mmdet, load_mmdet, regrouped
from tts_vision.verifiers._resize import opencv_bilinear
from tts_vision.verifiers.detector import Detector


@pytest.fixture(scope="module")
def model() -> Any:
    """A small Mask2Former of transformers with random weights, all of which matter."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    config = Mask2FormerConfig(
        backbone_config={
            "model_type": "swin",
            "embed_dim": 8,
            "depths": [2, 1, 2, 1],
            "num_heads": [1, 2, 2, 4],
            "window_size": 3,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_feedforward_dim=24,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=2,
        dim_feedforward=40,
        num_queries=12,
        num_labels=80,
    )
    built = Mask2FormerForUniversalSegmentation(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in built.named_parameters():
        spread = 0.3 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread
        if "norm" in name and name.endswith("weight"):
            parameter.data += 1
    return built


def as_mmdet(model: Any) -> dict[str, Tensor]:
    """The weights by mmdet's names, written for this test from the live names of transformers."""
    renamed: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    patterns = [
        (r"swin\.embeddings\.patch_embeddings\.projection", "backbone.patch_embed.projection"),
        (r"swin\.embeddings\.norm", "backbone.patch_embed.norm"),
        (r"hidden_states_norms\.stage(\d)", lambda m: f"backbone.norm{int(m[1]) - 1}"),
        (r"swin\.encoder\.layers\.(\d+)\.blocks\.(\d+)", r"backbone.stages.\1.blocks.\2"),
        (r"swin\.encoder\.layers\.(\d+)\.downsample", r"backbone.stages.\1.downsample"),
        (r"layernorm_before", "norm1"),
        (r"layernorm_after", "norm2"),
        (r"attention\.([qkv])_proj", r"attn.w_msa.qkv:\1"),
        (r"attention\.o_proj", "attn.w_msa.proj"),
        (r"attention\.relative_position_bias\.", "attn.w_msa."),
        (r"mlp\.fc1", "ffn.layers.0.0"),
        (r"mlp\.fc2", "ffn.layers.1"),
        (r"decoder\.input_projections\.(\d+)\.0", r"P.input_convs.\1.conv"),
        (r"decoder\.input_projections\.(\d+)\.1", r"P.input_convs.\1.gn"),
        (r"decoder\.adapter_1\.0", "P.lateral_convs.0.conv"),
        (r"decoder\.adapter_1\.1", "P.lateral_convs.0.gn"),
        (r"decoder\.layer_1\.0", "P.output_convs.0.conv"),
        (r"decoder\.layer_1\.1", "P.output_convs.0.gn"),
        (r"decoder\.mask_projection", "P.mask_feature"),
        (r"decoder\.level_embed$", "P.level_encoding.weight"),
        (r"decoder\.encoder\.layers", "P.encoder.layers"),
        (r"transformer_module\.decoder\.mask_predictor\.mask_embedder", "H.mask_embed"),
        (r"(H\.mask_embed)\.(\d)\.0", lambda m: f"{m[1]}.{2 * int(m[2])}"),
        (r"transformer_module\.decoder\.layernorm", "H.transformer_decoder.post_norm"),
        (r"transformer_module\.decoder\.layers", "H.transformer_decoder.layers"),
        (r"transformer_module\.queries_embedder", "H.query_embed"),
        (r"transformer_module\.queries_features", "H.query_feat"),
        (r"transformer_module\.level_embed", "H.level_embed"),
        (r"class_predictor", "H.cls_embed"),
        (r"(P\.encoder\.layers\.\d+)\.self_attn\.", r"\1.attentions.0."),
        (r"(P\.encoder\.layers\.\d+)\.self_attn_layer_norm", r"\1.norms.0"),
        (r"(P\.encoder\.layers\.\d+)\.final_layer_norm", r"\1.norms.1"),
        (r"(H\.\S+\.layers\.\d+)\.cross_attn\.", r"\1.attentions.0.attn."),
        (r"(H\.\S+\.layers\.\d+)\.self_attn\.([qkv])_proj\.(\w+)", r"\1.attentions.1.attn.in_proj_\3:\2"),
        (r"(H\.\S+\.layers\.\d+)\.self_attn\.out_proj", r"\1.attentions.1.attn.out_proj"),
        (r"(H\.\S+\.layers\.\d+)\.cross_attn_layer_norm", r"\1.norms.0"),
        (r"(H\.\S+\.layers\.\d+)\.self_attn_layer_norm", r"\1.norms.1"),
        (r"(H\.\S+\.layers\.\d+)\.final_layer_norm", r"\1.norms.2"),
        (r"\.fc1\.", ".ffns.0.layers.0.0."),
        (r"\.fc2\.", ".ffns.0.layers.1."),
        (r"\bP\.", "panoptic_head.pixel_decoder."),
        (r"\bH\.", "panoptic_head."),
    ]  # fmt: skip
    for name, tensor in model.state_dict().items():
        if "swin.layernorm" in name or name == "criterion.empty_weight":
            continue
        for start in ("model.pixel_level_module.encoder.", "model.pixel_level_module.", "model."):
            name = name.removeprefix(start)
        for pattern, new in patterns:
            name = re.sub(pattern, new, name)
        if ":" in name:
            stem, part = re.sub(r":([qkv])(.*)", r"\2:\1", name).split(":")
            joined.setdefault(stem, {})[part] = tensor
        elif "downsample" in name:
            # neighbours one after the other -> channel by channel
            at = [tensor.chunk(4, -1)[k] for k in (0, 2, 1, 3)]
            renamed[name] = torch.stack(at, -1).flatten(-2)
        else:
            renamed[name] = tensor
    for stem, parts in joined.items():
        renamed[stem] = torch.cat([parts[part] for part in "qkv"])
    for stem in [name for name in renamed if name.endswith("relative_position_bias_table")]:
        renamed[stem.replace("bias_table", "index")] = torch.zeros(9, 9, dtype=torch.int64)
    return renamed


def saved(state: dict[str, Tensor], folder: Path) -> str:
    path = folder / "detector.pth"
    torch.save({"meta": {"CLASSES": COCO, "epoch": 50}, "state_dict": state}, path)
    return str(path)


@torch.no_grad()
def outputs(model: Any) -> tuple[Tensor, Tensor]:
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    found = model(pixel_values=pixels)
    return found.class_queries_logits, found.masks_queries_logits


def test_a_converted_checkpoint_has_equal_outputs(model: Any, tmp_path: Path) -> None:
    converted = load_mmdet(saved(as_mmdet(model), tmp_path), "x")
    for ours, theirs in zip(outputs(converted), outputs(model), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert not converted.training and not any(p.requires_grad for p in converted.parameters())
    assert tuple(converted.config.id2label.values()) == COCO


def test_each_weight_matters(model: Any, tmp_path: Path) -> None:
    """So that none can go astray in a test of equal outputs: each moves them, but for those never read."""
    converted = load_mmdet(saved(as_mmdet(model), tmp_path), "x").requires_grad_(True)
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    found = converted(pixel_values=pixels)
    (found.class_queries_logits.square().sum() + found.masks_queries_logits.square().sum()).backward()
    idle = {
        name
        for name, parameter in converted.named_parameters()
        if parameter.grad is None or parameter.grad.abs().max() < 1e-4
    }
    # attention does not change where all keys move alike
    assert {name for name in idle if not name.endswith("k_proj.bias")} == {
        "model.pixel_level_module.encoder.swin.layernorm.weight",
        "model.pixel_level_module.encoder.swin.layernorm.bias",
    }


def test_patches_are_merged_as_mmdet_merges_them(model: Any) -> None:
    """mmdet unfolds windows of 2 x 2, which leaves the four neighbours of a channel side by side."""
    merge = model.model.pixel_level_module.encoder.swin.encoder.layers[0].downsample
    generator = torch.Generator().manual_seed(2)
    norm, reduction = nn.LayerNorm(32), nn.Linear(32, 16, bias=False)
    norm.weight.data, norm.bias.data = torch.randn(2, 32, generator=generator)
    reduction.weight.data = torch.randn(16, 32, generator=generator)
    image = torch.randn(2, 8, 6, 10, generator=generator)
    expected = reduction(norm(F.unfold(image, 2, stride=2).transpose(1, 2)))
    state = {f"norm.{key}": regrouped(value) for key, value in norm.state_dict().items()}
    kept = {key: value.clone() for key, value in merge.state_dict().items()}
    merge.load_state_dict({**state, "reduction.weight": regrouped(reduction.weight.data)})
    found = merge(image.flatten(2).transpose(1, 2), (6, 10))
    merge.load_state_dict(kept)
    assert torch.allclose(found, expected, atol=1e-5)


def test_images_are_resized_to_the_values_of_opencv() -> None:
    """Values that cv2.resize 5.0.0 gave for the same image."""
    image = np.random.default_rng(7).integers(0, 256, (4, 5, 1), dtype=np.uint8)
    assert opencv_bilinear(image, 7, 8)[..., 0].tolist() == [
        [139, 110, 83, 180, 233, 240, 200, 169],
        [112, 85, 59, 156, 205, 208, 173, 146],
        [70, 44, 20, 117, 162, 156, 130, 110],
        [52, 68, 96, 148, 175, 177, 156, 141],
        [52, 103, 171, 185, 192, 191, 181, 173],
        [161, 145, 132, 195, 181, 89, 123, 157],
        [229, 172, 107, 202, 174, 25, 88, 148],
    ]
    assert opencv_bilinear(image, 2, 3)[..., 0].tolist() == [[81, 195, 157], [134, 219, 143]]
    assert opencv_bilinear(image, 4, 5) is image
    assert opencv_bilinear(image[:1, :1], 3, 2).tolist() == [[[139]] * 2] * 3


def test_the_detector_loads_it_by_its_path(model: Any, tmp_path: Path) -> None:
    from PIL import Image

    path = saved(as_mmdet(model), tmp_path)
    detector = Mask2Former(path, owner="x", size=64, device="cpu", batch_size=2)
    assert detector.knows("computer mouse") and detector.knows("teddy bear") and not detector.knows("star")
    (found,) = detector.detect([Image.new("RGB", (64, 64), "red")], [CLASSES], [0.0])
    assert len({d.label for d in found}) > 5 and {d.label for d in found} <= set(CLASSES)
    assert [is_mmdet(name) for name in (path, "mmdet", f"https://x/{FILE}", "facebook/mask2former")] == [
        True,
        True,
        True,
        False,
    ]


def test_the_verifier_takes_it_as_well(model: Any, tmp_path: Path) -> None:
    from PIL import Image

    path = saved(as_mmdet(model), tmp_path)
    settings = {"colours": "none", "size": 64, "device": "cpu", "threshold": 0.0}
    verifier = Detector(checkpoint=path, **settings)
    (score,) = verifier.score([Image.new("RGB", (64, 64), "red")], [Prompt("a photo of a dog")])
    assert set(score.parts) == {"dog"} and score.value in (0, 1)
    with pytest.raises(ConfigError, match="must be of mask2former but detector has"):
        Detector(model="grounding_dino", checkpoint=path, **settings)


def refusal(state: dict[str, Tensor], folder: Path) -> str:
    with pytest.raises(VerifierError) as caught:
        load_mmdet(saved(state, folder), "geneval")
    assert "'geneval'" in str(caught.value) and FILE in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_of_another_generation_is_refused(model: Any, tmp_path: Path) -> None:
    """mmdet 3 renamed the layers of both transformers; such a file used to load in part, and to score 0."""
    newer = {
        re.sub(r"attentions\.0\.(?!attn)", "self_attn.", name).replace(".ffns.0.", ".ffn."): value
        for name, value in as_mmdet(model).items()
    }
    said = refusal(newer, tmp_path)
    assert "panoptic_head.pixel_decoder.encoder.layers.0.attentions.0" in said
    assert "missing" in said and "unknown" in said and "mmdet 3" in said


def without(state: dict[str, Tensor], pattern: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not re.search(pattern, name)}


def test_a_checkpoint_that_does_not_fit_is_refused(model: Any, tmp_path: Path) -> None:
    whole, head = as_mmdet(model), "panoptic_head"
    lost = "backbone.stages.2.blocks.1.norm2.bias"
    assert f"1 missing ({lost})" in refusal(without(whole, re.escape(lost)), tmp_path)
    assert "backbone.norm0.bias" in refusal(without(whole, "^backbone"), tmp_path)
    assert f"{head}.transformer_decoder.layers.0" in refusal(without(whole, r"er_decoder\.layers"), tmp_path)
    holed = without(whole, r"encoder\.layers\.1\.(?!norms)")
    assert f"{head}.pixel_decoder.encoder.layers.1.attentions.0" in refusal(holed, tmp_path)
    assert "1 unknown (ema_backbone)" in refusal({**whole, "ema_backbone": torch.zeros(1)}, tmp_path)
    panoptic = {f"{head}.cls_embed.weight": torch.zeros(134, 64), f"{head}.cls_embed.bias": torch.zeros(134)}
    assert "80 classes of COCO but 'detector.pth' has 133" in refusal({**whole, **panoptic}, tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("panoptic_head.query_feat.weight", (32,)),
        ("backbone.norm1.bias", (3,)),
        ("backbone.stages.0.downsample.norm.bias", (3,)),
        ("backbone.stages.1.blocks.0.attn.w_msa.qkv.weight", (2, 16)),
        ("backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table", (25, 3)),
    ],
)
def test_tensors_whose_sizes_disagree_are_refused(
    model: Any, tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    assert "sizes that agree" in refusal({**as_mmdet(model), name: torch.zeros(shape)}, tmp_path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(VerifierError, match="whole safetensors or PyTorch file"):
        load_mmdet(str(path), "geneval")
    with pytest.raises(VerifierError, match="must be an existing path"):
        load_mmdet(str(tmp_path / "missing.pth"), "geneval")


class Runs:
    """Would run code if it were unpickled."""

    def __reduce__(self) -> Any:
        return (Path("ran").touch, ())


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"x": Runs()}}, tmp_path / "x.pth")
    with pytest.raises(VerifierError, match="whole safetensors or PyTorch file"):
        load_mmdet(str(tmp_path / "x.pth"), "geneval")
    assert not (tmp_path / "ran").exists()


def test_files_older_than_the_last_norm_of_swin_load(model: Any, tmp_path: Path) -> None:
    """Published files of transformers lack it, and the weights of the loss; detection reads neither."""
    from safetensors.torch import load_file, save_file

    model.config.id2label = dict(enumerate(COCO))
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    old = {k: v for k, v in state.items() if "swin.layernorm" not in k and k != "criterion.empty_weight"}
    assert len(old) == len(state) - 3
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    detector = Mask2Former(str(tmp_path), owner="x", size=64, device="cpu", batch_size=2)
    detector.load()
    for ours, theirs in zip(outputs(detector._model), outputs(model), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    del old["class_predictor.weight"]
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerifierError, match=r"1 missing \(class_predictor.weight\)"):
        Mask2Former(str(tmp_path), owner="x", size=64, device="cpu", batch_size=2).load()
