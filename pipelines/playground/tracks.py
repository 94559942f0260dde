"""Soft tracks: where the pixels of a colour are in each frame of a clip, and how many there are.

A cheap measurement that errs: no shape is recognised, colours that mix into each other are confused, and two
objects of one colour are one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tts_vision.pipelines.playground.motion import CHUNK, DIRECTIONS, Actor, MotionSpec
from tts_vision.pipelines.playground.world import COLOURS

FEATURES = 14
_OTHER = 60.0  # distance in RGB at which a pixel is of another colour
_LEAST_SHARE, _LEAST_OFF, _OFF = 0.15, 0.3, 80.0


def features(frames: Tensor, spec: MotionSpec) -> Tensor:
    """How each object of a prompt moves in each chunk, by the pixels of its colour.

    Displacement a frame in the asked direction and aside; growth a frame, in the asked sense; the largest
    jump and swell between two frames; pixels of other colours, largest and mean; least and most pixels; the
    kind of motion asked for, none where it may be any; whether both objects have one colour; whether there
    are two.

    Args:
        frames: Of the first chunks, uint8 `(t, h, w, 3)`, t a multiple of 4.
        spec: What the prompt means.

    Returns:
        `(chunks, objects, FEATURES)`.
    """
    pixels = frames.float()
    ground = _ground(pixels)
    shares = [_share(pixels, ground, actor.colour) for actor in spec.actors]
    off = ((pixels - ground).abs().amax(-1) / _OFF).clamp(0, 1)
    known = torch.stack(shares).amax(0).sum((1, 2))
    rest = (off.where(off >= _LEAST_OFF, torch.zeros(())).sum((1, 2)) - known) / known.clamp(min=10)
    places = [_place(share) for share in shares]
    several = len(spec.actors) == 2
    alike = several and spec.actors[0].colour == spec.actors[1].colour
    rows = []
    for last in range(CHUNK - 1, len(frames), CHUNK):
        window = slice(max(last - CHUNK, 0), last + 1)  # from the last frame of the chunk before
        around = torch.stack([rest[window].amax(), rest[window].mean()])
        rows.append(
            torch.stack(
                [
                    torch.cat([_moved(place[window], actor), around, _asked(place[window], actor)])
                    for actor, place in zip(spec.actors, places)
                ]
            )
        )
    context = torch.tensor([float(alike), float(several)]).expand(len(rows), len(spec.actors), 2)
    return torch.cat([torch.stack(rows), context], -1)


def _ground(pixels: Tensor) -> Tensor:
    """The colour of the ground of each frame, `(t, 1, 1, 3)`: the median at its border."""
    border = torch.cat([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], 1)
    return border.median(1).values[:, None, None]


def _share(pixels: Tensor, ground: Tensor, colour: str) -> Tensor:
    """The share that a colour has in each pixel, over the ground, `(t, h, w)`."""
    way, off = torch.tensor(COLOURS[colour]).float() - ground, pixels - ground
    share = ((off * way).sum(-1) / way.square().sum(-1).clamp(min=100)).clamp(0, 1)
    strange = (off - share[..., None] * way).norm(dim=-1)
    share = share * torch.exp(-((strange / _OTHER) ** 2))
    return share.where(share >= _LEAST_SHARE, torch.zeros(()))


def _place(share: Tensor) -> Tensor:
    """Centre and number of the pixels of each frame, `(t, 3)`."""
    height, width = share.shape[1:]
    count = share.sum((1, 2))
    x = (share.sum(1) * torch.arange(width)).sum(-1) / count.clamp(min=1e-3)
    y = (share.sum(2) * torch.arange(height)).sum(-1) / count.clamp(min=1e-3)
    return torch.stack([x, y, count], -1)


def _moved(place: Tensor, actor: Actor) -> Tensor:
    """Displacement along and aside, growth, jump and swell of an object in the frames of a chunk, `(5,)`."""
    centre, size = place[:, :2], place[:, 2].clamp(min=1).log() / 2
    steps, swells = centre.diff(dim=0), size.diff()
    (dx, dy), growth = steps.mean(0).tolist(), float(swells.mean())
    along = aside = math.hypot(dx, dy)
    if actor.motion in DIRECTIONS:
        across, down = DIRECTIONS[actor.motion]
        along, aside = dx * across + dy * down, abs(dx * down - dy * across)
    sense = {"grow": 1, "shrink": -1}.get(actor.motion or "", 0)
    growth = growth * sense if sense else abs(growth)
    if actor.motion is None:
        along = aside = growth = 0.0
    jump, swell = float(steps.norm(dim=-1).amax()), float(swells.abs().amax())
    return torch.tensor([along, aside, 50 * growth, jump / 2, 10 * swell])


def _asked(place: Tensor, actor: Actor) -> Tensor:
    """Least and most pixels, and the kind of motion asked for, `(5,)`."""
    kinds = [actor.motion in DIRECTIONS, actor.motion in {"grow", "shrink"}, actor.motion == "still"]
    return torch.tensor([*(place[:, 2].aminmax()), *map(float, kinds)]) / torch.tensor([200, 200, 1, 1, 1])
