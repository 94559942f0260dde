"""A diffusion model whose every answer is known: a Gaussian mixture with its exact score.

`GaussianMixtureSampler` has every capability of a sampler in closed form, `LinearReward` and
`TargetReward` are verifiers for which the tilted distribution is again a mixture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tts_vision.condition import Condition
from tts_vision.moves import PREVIEW, STEP_NOISE, STEP_NOISE_STD
from tts_vision.rng import row_noise, row_seed
from tts_vision.sampler import RewardFunction, Sampler
from tts_vision.types import Cost, Media, Modality, Prompt, Score, State
from tts_vision.verifier import ALONE, Asked, Verifier

_SIDE = 16  # pixels of an image's side; its first row holds the exact position


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of isotropic Gaussians.

    Attributes:
        weights: ``(K,)``, summing to 1.
        means: ``(K, D)``.
        stds: ``(K,)``.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    @classmethod
    def of(cls, *components: tuple[float, Sequence[float], float]) -> GaussianMixture:
        """The mixture of ``(weight, mean, std)`` triples."""
        weights = torch.tensor([w for w, _, _ in components], dtype=torch.float64)
        return cls(
            weights / weights.sum(),
            torch.tensor([list(m) for _, m, _ in components], dtype=torch.float64),
            torch.tensor([s for _, _, s in components], dtype=torch.float64),
        )

    @property
    def mean(self) -> Tensor:
        """``(D,)``."""
        return self.weights @ self.means

    def sample(self, n: int, seed: int) -> Tensor:
        """``(n, D)`` exact samples."""
        rng = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.weights, n, replacement=True, generator=rng)
        noise = torch.randn(n, self.means.shape[1], generator=rng, dtype=torch.float64)
        return self.means[k] + self.stds[k, None] * noise

    def posterior_mean(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """``E[x0 | alpha x0 + sigma e = x]`` for ``x`` ``(B, D)``."""
        variance = alpha**2 * self.stds**2 + sigma**2
        off = x[:, None, :] - alpha * self.means
        log_r = self.weights.log() - off.square().sum(-1) / (2 * variance) - x.shape[1] / 2 * variance.log()
        gain = alpha * self.stds**2 / variance
        means = self.means + gain[None, :, None] * off
        return (log_r.softmax(1)[..., None] * means).sum(1)

    def tilted(self, gradient: Tensor, curvature: float = 0.0) -> GaussianMixture:
        """The mixture times ``exp(gradient . x - curvature/2 |x|^2)``, normalised."""
        variance = 1 / (1 / self.stds**2 + curvature)
        natural = self.means / self.stds[:, None] ** 2 + gradient
        means = variance[:, None] * natural
        dim = self.means.shape[1]
        log_z = (
            self.weights.log()
            + (means.square().sum(1) / variance - self.means.square().sum(1) / self.stds**2) / 2
            + dim / 2 * (variance.log() - 2 * self.stds.log())
        )
        return GaussianMixture(log_z.softmax(0), means, variance.sqrt())


TWO_MODES = GaussianMixture.of((0.7, (-1.0, 0.0), 0.5), (0.3, (1.5, 0.5), 0.4))


class GaussianMixtureSampler(Sampler):
    """DDIM, or its flow counterpart, on a Gaussian mixture with the exact posterior mean as denoiser.

    Args:
        mixture: The data distribution.
        num_steps: Steps of a trajectory.
        eta: Share of fresh noise in each step: 0 is deterministic, 1 ancestral sampling.
        path: ``vp`` (variance preserving) or ``flow`` (straight).
        order: 2 extrapolates the denoised estimate from the step before and so carries solver history.
        guidance: Count two forwards a step, as classifier-free guidance does.
        max_rows: Raise out-of-memory above this number of rows.
    """

    name = "gaussian_mixture"

    def __init__(
        self,
        mixture: GaussianMixture = TWO_MODES,
        *,
        num_steps: int = 10,
        eta: float = 1.0,
        path: Literal["vp", "flow"] = "vp",
        order: Literal[1, 2] = 1,
        guidance: bool = False,
        max_rows: int | None = None,
    ) -> None:
        t = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
        angle = t * math.pi / 2
        self.alphas = ((angle.cos() if path == "vp" else 1 - t).clamp(0, 1)).tolist()
        self.sigmas = ((angle.sin() if path == "vp" else t).clamp(0, 1)).tolist()
        self.mixture, self.num_steps, self.eta, self.order = mixture, num_steps, eta, order
        self.nfe_per_step = 2 if guidance else 1
        self.max_rows = max_rows
        # the last step ends at sigma 0 and adds nothing
        self.last_noisy_step = num_steps - 2 if eta else -1
        self.capabilities = frozenset(
            {"noise", "moves", "renoise", "preview", "differentiable"}
            | ({"stochastic", "step_noise"} if eta and num_steps > 1 else set())
        )

    def init(self, condition: Condition, uids: Sequence[int], *, seed: int) -> State:
        dim = self.mixture.means.shape[1]
        noise = [
            torch.randn(dim, generator=torch.Generator().manual_seed(row_seed(seed, uid))) for uid in uids
        ]
        return State.initial(torch.stack(noise), uids, condition, seed)

    def advance(self, state: State, steps: int = 1) -> State:
        for _ in range(steps):
            self.meter.charge(self.price(state, 1))
            with self.meter.phase("denoise"):
                state = self._step(state)
        return state

    def gradient(self, state: State, steps: int, reward: RewardFunction) -> State:
        """See `Sampler.gradient`; a position is its own pixels, ``(B, D, 1, 1)``."""
        x = state.latents.detach().requires_grad_()
        with torch.enable_grad():
            ahead = self.advance(replace(state, latents=x), steps)
            estimate = ahead.latents if ahead.step == self.num_steps else ahead.carry[PREVIEW]
            assert isinstance(estimate, Tensor)
            rewards = reward(estimate[..., None, None])
            self.meter.charge(self.price(state, steps))
            with self.meter.phase("denoise"):
                (gradient,) = torch.autograd.grad(rewards.sum(), x)
        i = state.step
        a, s, to_a, to_s = self.alphas[i], self.sigmas[i], self.alphas[i + 1], self.sigmas[i + 1]
        kept = math.sqrt(max(to_s**2 - self._std(i) ** 2, 0.0))
        gain = s * (to_a * s / a - kept) if i else 0.0
        carry = {
            **{key: value.detach() for key, value in ahead.carry.items() if isinstance(value, Tensor)},
            "reward": rewards.detach().double(),
            "gradient": gradient.float(),
            "gradient_scale": torch.ones(len(state)),
            "guidance_gain": torch.full((len(state),), gain),
        }
        return replace(ahead, latents=ahead.latents.detach(), carry=carry)

    def gradient_cost(self, condition: Condition, step: int, steps: int) -> Cost:
        return self.cost(condition, step, steps) * 2

    def renoise(self, state: State, to_step: int) -> State:
        a, s = self.alphas[state.step], self.sigmas[state.step]
        to_a, to_s = self.alphas[to_step], self.sigmas[to_step]
        keep = to_a / a
        noise = row_noise(state.seed, "renoise", state.uids, to_step, state.latents)
        latents = keep * state.latents + math.sqrt(max(to_s**2 - (keep * s) ** 2, 0.0)) * noise
        return replace(state, latents=latents, step=to_step, carry={}, shared={})

    def preview(self, state: State) -> list[Media]:
        preview = state.carry[PREVIEW]
        assert isinstance(preview, Tensor)
        return self._images(preview)

    def decode(self, state: State) -> list[Media]:
        return self._images(state.latents)

    def cost(self, condition: Condition, step: int, steps: int) -> Cost:
        return Cost(nfe=self.nfe_per_step * steps)

    def _step(self, state: State) -> State:
        if self.max_rows is not None and len(state) > self.max_rows:
            raise torch.OutOfMemoryError(f"{len(state)} rows")
        i = state.step
        a, s, to_a, to_s = self.alphas[i], self.sigmas[i], self.alphas[i + 1], self.sigmas[i + 1]
        x = state.latents.double()
        denoised = self.mixture.posterior_mean(x, a, s)
        target, carry = denoised, {}
        if self.order == 2:
            before = state.carry.get("history")
            if isinstance(before, Tensor):
                target = denoised + 0.5 * (denoised - before)
            carry["history"] = denoised
        std = self._std(i)
        noise = std * row_noise(state.seed, "step", state.uids, i, x) if std else torch.zeros_like(x)
        direction = (x - a * denoised) / s
        latents = to_a * target + math.sqrt(max(to_s**2 - std**2, 0.0)) * direction + noise
        carry[PREVIEW] = denoised
        if self.eta:
            carry[STEP_NOISE] = noise.to(state.latents.dtype)
            carry[STEP_NOISE_STD] = torch.full((len(state),), std)
        return replace(state, latents=latents.to(state.latents.dtype), step=i + 1, carry=carry)

    def _std(self, i: int) -> float:
        """Standard deviation of the noise that step `i` adds."""
        a, s, to_a, to_s = self.alphas[i], self.sigmas[i], self.alphas[i + 1], self.sigmas[i + 1]
        return self.eta * to_s / s * math.sqrt(max(s**2 - (a * to_s / to_a) ** 2, 0.0)) if to_s else 0.0

    def _images(self, positions: Tensor) -> list[Media]:
        with self.meter.phase("decode"):
            return [draw_position(row) for row in positions.detach().numpy()]


def draw_position(position: NDArray[Any]) -> Image.Image:
    """A small image, a dot at the first two coordinates (-4 to 4); `position_of` reads all of them back."""
    pixels = np.full((_SIDE, _SIDE, 3), 255, dtype=np.uint8)
    cells = np.clip((np.resize(position, 2) + 4) / 8 * (_SIDE - 1), 1, _SIDE - 1).astype(int)
    pixels[cells[1], cells[0]] = (200, 0, 0)
    data = np.asarray(position, dtype="<f4").tobytes()
    pixels[0] = np.frombuffer((bytes([len(position)]) + data).ljust(3 * _SIDE, b"\0"), np.uint8).reshape(
        -1, 3
    )
    return Image.fromarray(pixels)


def position_of(media: Media) -> NDArray[np.float64]:
    """The exact position that `draw_position` drew, ``(D,)``."""
    if not isinstance(media, Image.Image):
        raise TypeError(f"A position is read from an image but got {type(media).__name__}.")
    data = np.asarray(media)[0].tobytes()
    return np.frombuffer(data[1 : 1 + 4 * data[0]], dtype="<f4").astype(np.float64)


class LinearReward(Verifier):
    """``direction . x``: moves the whole distribution."""

    name = "linear_reward"
    accepts: frozenset[Modality] = frozenset({"image"})
    differentiable = True

    def __init__(self, direction: Sequence[float] = (1.0, 0.5)) -> None:
        self.direction = torch.tensor(direction, dtype=torch.float64)

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        return [Score(value=float(self.direction.numpy() @ position_of(m))) for m in media]

    def rewards(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Rewards of positions ``(B, D, 1, 1)``, the toy's pixels."""
        return pixels.flatten(1).double() @ self.direction

    def tilted(self, mixture: GaussianMixture, lam: float) -> GaussianMixture:
        """The mixture times ``exp(lam * reward)``."""
        return mixture.tilted(lam * self.direction)


class TargetReward(Verifier):
    """``-|x - target|^2``: smooth, highest at the target."""

    name = "target_reward"
    accepts: frozenset[Modality] = frozenset({"image"})
    differentiable = True

    def __init__(self, target: Sequence[float] = (1.0, 1.0)) -> None:
        self.target = torch.tensor(target, dtype=torch.float64)

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        return [Score(value=-float(np.square(position_of(m) - self.target.numpy()).sum())) for m in media]

    def rewards(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Rewards of positions ``(B, D, 1, 1)``, the toy's pixels."""
        return -(pixels.flatten(1).double() - self.target).square().sum(1)

    def tilted(self, mixture: GaussianMixture, lam: float) -> GaussianMixture:
        """The mixture times ``exp(lam * reward)``."""
        return mixture.tilted(2 * lam * self.target, 2 * lam)
