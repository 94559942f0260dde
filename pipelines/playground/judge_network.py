"""The network of the playground's judge, and the outputs that only its training uses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipConfig, BlipForImageTextRetrieval, BlipTextConfig, BlipVisionConfig

from tts_vision.pipelines.playground import judge_data, world
from tts_vision.pipelines.playground.tokenizer import MAX_TOKENS, build_tokenizer, vocabulary


@dataclass(frozen=True)
class JudgeSize:
    """Architecture of the judge.

    Attributes:
        width: Width of both towers, a multiple of 32.
        vision_layers: Layers of the image tower.
        text_layers: Layers of the text tower.
    """

    width: int = 160
    vision_layers: int = 5
    text_layers: int = 3


def build_judge(size: JudgeSize, seed: int) -> BlipForImageTextRetrieval:
    """An untrained judge on 8-pixel patches of 64x64 images.

    Args:
        size: Architecture.
        seed: Seed of the weights.
    """
    tokenizer = build_tokenizer("right")
    heads = size.width // 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BlipForImageTextRetrieval(
            BlipConfig(
                text_config=BlipTextConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=size.width,
                    encoder_hidden_size=size.width,
                    intermediate_size=2 * size.width,
                    projection_dim=8,
                    num_hidden_layers=size.text_layers,
                    num_attention_heads=heads,
                    max_position_embeddings=MAX_TOKENS,
                    hidden_dropout_prob=0.0,
                    attention_probs_dropout_prob=0.0,
                    bos_token_id=tokenizer.eos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                    sep_token_id=tokenizer.eos_token_id,
                ).to_dict(),
                vision_config=BlipVisionConfig(
                    image_size=world.SIZE,
                    patch_size=world.SIZE // judge_data.GRID,
                    hidden_size=size.width,
                    intermediate_size=2 * size.width,
                    num_hidden_layers=size.vision_layers,
                    num_attention_heads=heads,
                ).to_dict(),
                projection_dim=8,
                image_text_hidden_size=8,
            )
        )
        nn.init.normal_(model.text_encoder.embeddings.word_embeddings.weight, std=0.5)
        weights = dict(model.text_encoder.named_parameters())
        # Equal queries and keys: a word starts by looking at cells whose state is like its own.
        for name in [name for name in weights if name.endswith("crossattention.self.query.weight")]:
            nn.init.normal_(weights[name], std=0.05)
            weights[name.replace("query", "key")].data.copy_(weights[name])
    return model


class Heads(nn.Module):
    """Outputs that only training uses: the objects of the cells, where words look, and which are met.

    Objects are named by the word embeddings of the text tower. So the state of a cell comes near to the words
    for its object, where cross-attention finds it. The layers of the text tower get one task each: after the
    first a shape's word knows place, colour and number of its objects, after the next ones each word knows
    whether it is met.

    Args:
        width: Width of both towers.
        seed: Seed of the weights.
    """

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.place = nn.Linear(width, 2)
            self.colour = nn.Linear(width, len(world.COLOURS))
            self.number = nn.Linear(width, len(world.NUMBERS))
            self.met = nn.ModuleList(nn.Linear(width, 1) for _ in range(2))
            self.empty = nn.Parameter(0.5 * torch.randn(2, width))
        self.scale = nn.Parameter(torch.tensor(1.0))
        words = vocabulary()
        names = (tuple(world.SHAPES), tuple(world.COLOURS), tuple(world.NUMBERS))
        self.words = [[words[name] for name in group] for group in names]

    def words_met(self, said: list[Tensor]) -> list[Tensor]:
        """Logits of the words being met, by the last layers but the first: each `(b, k, t)`."""
        return [head(state)[..., 0] for head, state in zip(self.met, said[1:][-2:])]

    def forward(self, embeddings: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of shape (8), colour (11) and number of objects of that shape (4) in each cell.

        Args:
            embeddings: Of the words, shape `(vocabulary, width)`.
            seen: States of the cells, shape `(b, 64, width)`.
        """
        shapes, colours, numbers = (embeddings[group] for group in self.words)
        targets = torch.cat([self.empty[:1], shapes, self.empty[1:], colours, numbers])
        logits = self.scale * seen @ targets.T / seen.shape[-1] ** 0.5
        shape, colour, number = logits.split([len(shapes) + 1, len(colours) + 1, len(numbers)], -1)
        return shape, colour, number


def judged(
    model: BlipForImageTextRetrieval, pixels: Tensor, tokens: Tensor
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Judges several captions of each image in one pass, in which each caption sees itself and the image.

    Args:
        model: The judge.
        pixels: Images in [-1, 1], shape `(b, 3, 64, 64)`.
        tokens: Captions, shape `(b, k, t)`, padded with zeros.

    Returns:
        Logits of wrong and right `(b, k, 2)`, states of the words after each layer, each
        `(b, k, t, width)`, and states of the cells `(b, 64, width)`.
    """
    b, k, t = tokens.shape
    seen = model.vision_model(pixel_values=pixels).last_hidden_state
    caption = torch.arange(k, device=tokens.device).repeat_interleave(t)
    real = (tokens != 0).view(b, 1, k * t)
    own = (caption[:, None] == caption[None, :])[None] & real
    mask = torch.zeros(own.shape, device=pixels.device).masked_fill(~own, -1e4)[:, None]
    states = model.text_encoder(
        input_ids=tokens.reshape(b, k * t),
        attention_mask=mask,
        position_ids=torch.arange(t, device=tokens.device).repeat(k)[None],
        encoder_hidden_states=seen,
        output_hidden_states=True,
    ).hidden_states
    said = [state.view(b, k, t, -1) for state in states[1:]]
    return model.itm_head(said[-1][:, :, 0]), said, seen[:, 1:]


@dataclass(frozen=True)
class Named:
    """The objects that the words of captions for shapes name.

    Attributes:
        known: Which words name a shape that the image has, shape `(b, k, t)`.
        place: Mean place of its objects, right and down in [-1, 1], shape `(b, k, t, 2)`.
        colour: Their colour, 0 to 9, or -1 if they have several, shape `(b, k, t)`.
        number: Their number less one, at most 3, shape `(b, k, t)`.
    """

    known: Tensor
    place: Tensor
    colour: Tensor
    number: Tensor


def named(tokens: Tensor, cells: Tensor) -> Named:
    """Looks up the objects that captions name.

    Args:
        tokens: Captions, shape `(b, k, t)`.
        cells: See `Examples.cells`, shape `(b, 64, 2)`.
    """
    words = vocabulary()
    shape_of = torch.zeros(len(words), dtype=torch.long, device=tokens.device)
    for i, name in enumerate(world.SHAPES, start=1):
        shape_of[words[name]] = shape_of[words[world.PLURALS[name]]] = i
    axis = (torch.arange(judge_data.GRID, device=tokens.device) + 0.5) * 2 / judge_data.GRID - 1
    grid = torch.stack([axis.repeat(judge_data.GRID), axis.repeat_interleave(judge_data.GRID)], -1)
    member = F.one_hot(cells[..., 0], len(world.SHAPES) + 1).float()
    painted = F.one_hot(cells[..., 1], len(world.COLOURS) + 1)[..., 1:].float()
    count = member.sum(1)
    place = torch.einsum("bcs,cd->bsd", member, grid) / count.clamp(min=1)[..., None]
    most, colour = torch.einsum("bcs,bcd->bsd", member, painted).max(-1)
    colour = colour.masked_fill(most < count, -1)
    shape = shape_of[tokens]
    row = torch.arange(len(tokens), device=tokens.device)[:, None, None]
    number = count.long().clamp(1, len(world.NUMBERS)) - 1
    known = (shape > 0) & (count[row, shape] > 0)
    return Named(known, place[row, shape], colour[row, shape], number[row, shape])
