"""Tiny object detectors with random weights, saved as the published checkpoints are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_vlms import randomise

NAMES = ("person", "circle", "star", "mouse")
SWIN: dict[str, Any] = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 1, 1],
    "window_size": 2,
    "image_size": 32,
}


def mask2former(folder: Path) -> Path:
    """A Mask2Former of four classes and twelve queries."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    config = Mask2FormerConfig(
        backbone_config={**SWIN, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=12,
        id2label=dict(enumerate(NAMES)),
        label2id={name: i for i, name in enumerate(NAMES)},
    )
    model = Mask2FormerForUniversalSegmentation(config)
    randomise(model, seed=4)
    for parameter in (model.model.transformer_module.queries_features.weight, model.class_predictor.weight):
        parameter.data *= 10  # so that queries, and images, differ
    model.save_pretrained(folder)
    return folder


def grounding_dino(folder: Path) -> Path:
    """A Grounding DINO of ten queries, with a tokenizer whose full stop and ends are those of BERT."""
    from transformers import (
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
    )

    words = ["circle", "star", "teddy", "bear", "dog", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = (
        [f"[unused{i}]" for i in range(1030)] + words + [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"]
    )
    for at, token in {
        0: "[PAD]",
        100: "[UNK]",
        101: "[CLS]",
        102: "[SEP]",
        103: "[MASK]",
        1012: ".",
        1029: "?",
    }.items():
        vocabulary[at] = token
    config = GroundingDinoConfig(
        backbone_config={**SWIN, "out_indices": [2, 3, 4]},
        text_config={
            "model_type": "bert",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 256,
        },
        num_queries=10,
        encoder_layers=1,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        d_model=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = GroundingDinoForObjectDetection(config)
    model.save_pretrained(folder)
    tokenizer = BertTokenizerFast(vocab={token: i for i, token in enumerate(vocabulary)})
    GroundingDinoProcessor(GroundingDinoImageProcessor(), tokenizer).save_pretrained(folder)
    return folder
