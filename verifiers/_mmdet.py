"""Mask2Former checkpoints of mmdet 2.x as models of transformers: every tensor renamed, none left over.

mmdet's Swin joins the four neighbours of a merged patch channel by channel, transformers' one neighbour
after the other; queries, keys and values are one matrix there and three here (Cheng et al. 2022, Liu et al.
2021).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tts_vision.errors import VerifierError
from tts_vision.verifiers._weights import check_keys, find_file, read_state

NAME = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco"
FILE = f"{NAME}_20220504_001756-743b7d99.pth"
PUBLISHED = f"https://download.openmmlab.com/mmdetection/v2.0/mask2former/{NAME}/{FILE}"
"""Address of GenEval's detector, in mmdet's zoo."""
# the classes of COCO's detection task, in the order of their ids
COCO = tuple(
    """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
    stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
    backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
    baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl,
    banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch,
    potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave,
    oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush
    """.replace("\n    ", " ")
    .strip()
    .split(", ")
)
POINTS = 4  # that each head of a deformable attention samples at each level
_SWIN, _PIXELS = "model.pixel_level_module.encoder", "model.pixel_level_module.decoder"
_QUERIES = "model.transformer_module"
_NEEDLESS = re.compile(r"backbone\.stages\.\d+\.blocks\.\d+\.attn\.w_msa\.relative_position_index")

Split: TypeAlias = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Rule:
    """Where a tensor of mmdet goes.

    Attributes:
        source: Its name in mmdet.
        targets: Names in checkpoints of transformers.
        split: Makes a tensor for each target.
    """

    source: str
    targets: tuple[str, ...]
    split: Split


def is_mmdet(checkpoint: str) -> bool:
    """Whether a checkpoint names a file of mmdet: ``mmdet``, an address, or a file of PyTorch."""
    return checkpoint == "mmdet" or checkpoint.endswith((".pth", ".pt"))


def load_mmdet(checkpoint: str, owner: str) -> Any:
    """mmdet's Mask2Former with a Swin backbone as a model of transformers, without gradients.

    Args:
        checkpoint: A file, an address, or ``mmdet`` for the published one.
        owner: The verifier, for messages.

    Raises:
        VerifierError: If it cannot be found or read, is not of mmdet 2.x key by key, or does not know the 80
            classes of COCO.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    model_class: Any = Mask2FormerForUniversalSegmentation
    path = find_file(PUBLISHED if checkpoint == "mmdet" else checkpoint, FILE, owner)
    state = read_state(path, owner)
    table = rules(state)
    _check_names(state, table, path, owner)
    try:
        config = config_of(state, path, owner)
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict={**converted(state, table), **_unread(config)},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (ValueError, IndexError, RuntimeError) as error:
        raise _misshapen(path, owner, str(error).split("\n", 1)[0]) from error
    check_keys(owner, missing=info["missing_keys"], unexpected=info["unexpected_keys"])
    if info["mismatched_keys"]:
        raise _misshapen(path, owner, str(min(info["mismatched_keys"])))
    return model.eval().requires_grad_(False)


def _misshapen(path: Path, owner: str, what: str) -> VerifierError:
    return VerifierError(
        f"The tensors of an mmdet checkpoint must have sizes that agree but those of {path.name!r} do not: "
        f"{what}; give {owner!r} the published file {FILE}."
    )


def converted(state: Mapping[str, Tensor], table: Iterable[Rule]) -> dict[str, Tensor]:
    """The tensors by the names of transformers' checkpoints."""
    found: dict[str, Tensor] = {}
    for rule in table:
        found.update(zip(rule.targets, rule.split(state[rule.source]), strict=True))
    return found


def regrouped(tensor: Tensor) -> Tensor:
    """The merged channels of a patch, from mmdet's order to that of transformers.

    mmdet has, for each channel, its values at the upper left, upper right, lower left and lower right
    neighbour; transformers has all channels of the upper left, lower left, upper right, lower right one.

    Args:
        tensor: ``(..., 4 * C)``.
    """
    grid = tensor.unflatten(-1, (-1, 2, 2))  # channel, row, column
    return grid.movedim(-3, -1).transpose(-3, -2).flatten(-3)


def rules(state: Mapping[str, Tensor]) -> list[Rule]:
    """Where each tensor of a checkpoint goes, by the number of its blocks and layers."""
    depths = [
        _count(state, rf"backbone\.stages\.{stage}\.blocks\.(\d+)\.")
        for stage in range(_count(state, r"backbone\.stages\.(\d+)\."))
    ]
    head = "panoptic_head"
    return [
        *_layer("backbone.patch_embed.projection", f"{_SWIN}.embeddings.patch_embeddings.projection"),
        *_layer("backbone.patch_embed.norm", f"{_SWIN}.embeddings.norm"),
        *(rule for stage, depth in enumerate(depths) for rule in _stage(stage, depth, len(depths))),
        *_pixel_decoder(
            _count(state, rf"{head}\.pixel_decoder\.input_convs\.(\d+)\."),
            _count(state, rf"{head}\.pixel_decoder\.encoder\.layers\.(\d+)\."),
        ),
        *_queries(_count(state, rf"{head}\.transformer_decoder\.layers\.(\d+)\.")),
    ]


def _stage(stage: int, depth: int, stages: int) -> list[Rule]:
    found = _layer(f"backbone.norm{stage}", f"{_SWIN}.hidden_states_norms.stage{stage + 1}")
    for block in range(depth):
        old, new = f"backbone.stages.{stage}.blocks.{block}", f"{_SWIN}.encoder.layers.{stage}.blocks.{block}"
        attention = f"{new}.attention.self"
        found += [
            *_layer(f"{old}.norm1", f"{new}.layernorm_before"),
            *_layer(f"{old}.norm2", f"{new}.layernorm_after"),
            *_thirds(
                f"{old}.attn.w_msa.qkv.", [f"{attention}.{part}." for part in ("query", "key", "value")]
            ),
            _same(
                f"{old}.attn.w_msa.relative_position_bias_table", f"{attention}.relative_position_bias_table"
            ),
            *_layer(f"{old}.attn.w_msa.proj", f"{new}.attention.output.dense"),
            *_layer(f"{old}.ffn.layers.0.0", f"{new}.intermediate.dense"),
            *_layer(f"{old}.ffn.layers.1", f"{new}.output.dense"),
        ]
    if stage < stages - 1:
        old, new = f"backbone.stages.{stage}.downsample", f"{_SWIN}.encoder.layers.{stage}.downsample"
        found += [
            Rule(f"{old}.{name}", (f"{new}.{name}",), lambda tensor: [regrouped(tensor)])
            for name in ("norm.weight", "norm.bias", "reduction.weight")
        ]
    return found


def _pixel_decoder(levels: int, layers: int) -> list[Rule]:
    old = "panoptic_head.pixel_decoder"
    found = [
        _same(f"{old}.level_encoding.weight", f"{_PIXELS}.level_embed"),
        *_layer(f"{old}.mask_feature", f"{_PIXELS}.mask_projection"),
        _same(f"{old}.lateral_convs.0.conv.weight", f"{_PIXELS}.adapter_1.0.weight"),
        *_layer(f"{old}.lateral_convs.0.gn", f"{_PIXELS}.adapter_1.1"),
        _same(f"{old}.output_convs.0.conv.weight", f"{_PIXELS}.layer_1.0.weight"),
        *_layer(f"{old}.output_convs.0.gn", f"{_PIXELS}.layer_1.1"),
    ]
    for level in range(levels):
        found += _layer(f"{old}.input_convs.{level}.conv", f"{_PIXELS}.input_projections.{level}.0")
        found += _layer(f"{old}.input_convs.{level}.gn", f"{_PIXELS}.input_projections.{level}.1")
    for layer in range(layers):
        theirs, ours = f"{old}.encoder.layers.{layer}", f"{_PIXELS}.encoder.layers.{layer}"
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
            found += _layer(f"{theirs}.attentions.0.{part}", f"{ours}.self_attn.{part}")
        found += _tail(theirs, ours, ["self_attn_layer_norm", "final_layer_norm"])
    return found


def _queries(layers: int) -> list[Rule]:
    old, decoder = "panoptic_head", f"{_QUERIES}.decoder"
    found = [
        _same(f"{old}.query_embed.weight", f"{_QUERIES}.queries_embedder.weight"),
        _same(f"{old}.query_feat.weight", f"{_QUERIES}.queries_features.weight"),
        _same(f"{old}.level_embed.weight", f"{_QUERIES}.level_embed.weight"),
        *_layer(f"{old}.transformer_decoder.post_norm", f"{decoder}.layernorm"),
        *_layer(f"{old}.cls_embed", "class_predictor"),
    ]
    for place, module in enumerate((0, 2, 4)):
        found += _layer(f"{old}.mask_embed.{module}", f"{decoder}.mask_predictor.mask_embedder.{place}.0")
    for layer in range(layers):
        theirs, ours = f"{old}.transformer_decoder.layers.{layer}", f"{decoder}.layers.{layer}"
        for part in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"):
            found.append(_same(f"{theirs}.attentions.0.attn.{part}", f"{ours}.cross_attn.{part}"))
        own = f"{ours}.self_attn"
        found += _thirds(f"{theirs}.attentions.1.attn.in_proj_", [f"{own}.{part}_proj." for part in "qkv"])
        found += _layer(f"{theirs}.attentions.1.attn.out_proj", f"{own}.out_proj")
        found += _tail(theirs, ours, ["cross_attn_layer_norm", "self_attn_layer_norm", "final_layer_norm"])
    return found


def _tail(old: str, new: str, norms: list[str]) -> list[Rule]:
    """The feed-forward network of a layer, and its normalisations in order."""
    found = [
        *_layer(f"{old}.ffns.0.layers.0.0", f"{new}.fc1"),
        *_layer(f"{old}.ffns.0.layers.1", f"{new}.fc2"),
    ]
    for place, norm in enumerate(norms):
        found += _layer(f"{old}.norms.{place}", f"{new}.{norm}")
    return found


def _same(old: str, new: str) -> Rule:
    return Rule(old, (new,), lambda tensor: [tensor])


def _layer(old: str, new: str) -> list[Rule]:
    return [_same(f"{old}.{name}", f"{new}.{name}") for name in ("weight", "bias")]


def _thirds(old: str, new: list[str]) -> list[Rule]:
    return [
        Rule(f"{old}{name}", tuple(f"{part}{name}" for part in new), lambda tensor: list(tensor.chunk(3)))
        for name in ("weight", "bias")
    ]


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbered parts there are; at least one, so that those that should be there are missed."""
    return max(1, len({match[1] for key in state if (match := re.match(pattern, key))}))


def config_of(state: Mapping[str, Tensor], path: Path, owner: str) -> Any:
    """transformers' configuration of a checkpoint, by the shapes of its tensors.

    Raises:
        VerifierError: If it has not the 80 classes of COCO.
    """
    from transformers import Mask2FormerConfig

    head = "panoptic_head"
    classes = len(state[f"{head}.cls_embed.bias"]) - 1
    if classes != len(COCO):
        raise VerifierError(
            f"The detector of {owner!r} must know the {len(COCO)} classes of COCO but {path.name!r} has "
            f"{classes}; give the published file {FILE}."
        )
    stages = range(_count(state, r"backbone\.stages\.(\d+)\."))
    biases = [state[f"backbone.stages.{s}.blocks.0.attn.w_msa.relative_position_bias_table"] for s in stages]
    encoder, decoder = f"{head}.pixel_decoder.encoder.layers", f"{head}.transformer_decoder.layers"
    queries, hidden = state[f"{head}.query_feat.weight"].shape
    samples = len(state[f"{encoder}.0.attentions.0.attention_weights.bias"])
    return Mask2FormerConfig(
        backbone_config={
            "model_type": "swin",
            "embed_dim": len(state["backbone.patch_embed.norm.bias"]),
            "depths": [_count(state, rf"backbone\.stages\.{s}\.blocks\.(\d+)\.") for s in stages],
            "num_heads": [bias.shape[1] for bias in biases],
            "window_size": (math.isqrt(len(biases[0])) + 1) // 2,
            "out_features": [f"stage{s + 1}" for s in stages],
        },
        feature_size=hidden,
        mask_feature_size=len(state[f"{head}.pixel_decoder.mask_feature.bias"]),
        hidden_dim=hidden,
        encoder_feedforward_dim=len(state[f"{encoder}.0.ffns.0.layers.0.0.bias"]),
        encoder_layers=_count(state, re.escape(encoder) + r"\.(\d+)\."),
        decoder_layers=_count(state, re.escape(decoder) + r"\.(\d+)\.") + 1,
        num_attention_heads=samples // (len(state[f"{head}.pixel_decoder.level_encoding.weight"]) * POINTS),
        dim_feedforward=len(state[f"{decoder}.0.ffns.0.layers.0.0.bias"]),
        num_queries=queries,
        id2label=dict(enumerate(COCO)),
        label2id={name: number for number, name in enumerate(COCO)},
    )


def _unread(config: Any) -> dict[str, Tensor]:
    """Tensors that transformers' model has and detection never reads: the last norm of Swin, loss weights."""
    width = config.backbone_config.embed_dim * 2 ** (len(config.backbone_config.depths) - 1)
    classes = torch.ones(len(COCO) + 1)
    classes[-1] = config.no_object_weight
    return {
        f"{_SWIN}.swin.layernorm.weight": torch.ones(width),
        f"{_SWIN}.swin.layernorm.bias": torch.zeros(width),
        "criterion.empty_weight": classes,
    }


def _check_names(state: Mapping[str, Tensor], table: list[Rule], path: Path, owner: str) -> None:
    wanted = {rule.source for rule in table}
    missing = sorted(wanted - state.keys())
    surplus = sorted(key for key in state.keys() - wanted if not _NEEDLESS.fullmatch(key))
    if missing or surplus:
        parts = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in (("missing", missing), ("unknown", surplus))
            if keys
        ]
        raise VerifierError(
            f"The detector of {owner!r} must be a Mask2Former with a Swin backbone of mmdet 2.x, key by key, "
            f"but of the tensors in {path.name!r} there are {' and '.join(parts)}. A checkpoint of mmdet 3 "
            f"has other names; give the published file {FILE}."
        )
