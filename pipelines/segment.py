"""Runs a segment of a diffusers pipeline's schedule, by the pipeline's own ``__call__``.

The pipeline sees a `SchedulerProxy` in place of its scheduler: the real one, computing only part of its
steps. So the loop, guidance, adapters, attention back ends and offloading all stay the pipeline's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tts_vision.errors import PipelineError
from tts_vision.pipelines.caches import Caches
from tts_vision.pipelines.callbacks import plain_attributes
from tts_vision.pipelines.decoding import DecodeWatch
from tts_vision.pipelines.differentiable import MISSING, frozen, precision_kept, recomputing
from tts_vision.pipelines.driven import DENOISERS, Entry, Segment, modules
from tts_vision.pipelines.dry import DryRuns
from tts_vision.pipelines.edits import Edits
from tts_vision.pipelines.proxy import Step
from tts_vision.pipelines.rollout import Coarse


class Driver(DryRuns):
    """Calls a pipeline one segment at a time and leaves it as it found it."""

    def run(
        self,
        call: Mapping[str, Any],
        *,
        start: int,
        stop: int | None,
        latents: Tensor | None = None,
        scale: float | None = None,
        history: dict[str, Any] | None = None,
        generators: list[torch.Generator] | None = None,
        streams: Sequence[Tensor | None] | None = None,
        step: Step | None = None,
        vae: Any = None,
        encode_by_row: bool = False,
        watch: DecodeWatch | None = None,
        coarse: Coarse | None = None,
        caches: Caches | None = None,
        edits: Edits | None = None,
    ) -> Segment:
        """Runs steps ``[start, stop)`` of the loop; none of them when ``start == stop``.

        Args:
            call: Arguments of the pipeline.
            start: First step.
            stop: Step to stop before; None for the end.
            latents: ``(B, ...)`` latents that enter the loop; the pipeline's own by default.
            scale: The factor on them, if they are noise; None for latents in the middle of a loop.
            history: Solver history to continue from.
            generators: One per row, from its seed.
            streams: For each row the generator state from the first computed step on; None continues from
                the state after preparing.
            step: A stochastic step in place of the scheduler's.
            vae: Decodes in place of the pipeline's, if given.
            encode_by_row: Whether encoders run row by row, for texts that differ, so that each text is
                encoded as it is alone.
            watch: Notes which samples must not be judged, where the segment decodes.
            coarse: A coarser end of the schedule, whose timesteps `start` and `stop` count.
            caches: Of the denoisers, with the state to continue from, if there are any.
            edits: Of the user's callback in earlier steps, to continue from.

        Raises:
            PipelineError: If the loop does not take the steps.
        """
        proxy = self._proxy(
            start,
            stop,
            history=history,
            generators=generators,
            streams=streams,
            rule=step,
            skip=self._interrupt if self.interruptible else None,
            coarse=coarse,
            caches=caches,
            edits=edits,
        )
        entry = Entry(latents, scale)
        # flags of a safety checker are named in an output object alone
        flags = watch is not None and watch.has_checker(self.pipe)
        call = {**call, "return_dict": flags, "generator": generators}
        skips = start > 0 or stop is not None
        needs_silence = (skips and not self.interruptible) or proxy.enters_after is not None
        if needs_silence and self._silence is None:
            self._find_silence(call, needed=True)
        self.encoders.inputs, self.encoders.by_row = [], encode_by_row
        self._watch_steps(call, proxy, latents, runs_users=True)
        # the pipeline switches gradients off for its call; they come on again where the latents enter
        mode = torch.enable_grad() if self._differentiates else nullcontext()
        before = plain_attributes(self.pipe)
        try:
            with mode, self._driven(proxy, entry, vae, None, watch):
                output = self.pipe(**self._known(call))
        finally:
            for name in proxy.edits.attributes:
                if name in before:
                    setattr(self.pipe, name, before[name])
                else:
                    vars(self.pipe).pop(name, None)
        if watch is not None:
            watch.read(output)
        if stop is not None and proxy.done != stop - start and not proxy.interrupted:
            raise PipelineError(
                "A pipeline's loop must take one scheduler step per timestep but "
                f"{type(self.pipe).__name__} took "
                f"{proxy.done} between steps {start} and {stop}; it cannot be driven step by step."
            )
        return Segment(output[0], entry.entered, entry.noise, proxy, tuple(self.encoders.inputs))

    @contextmanager
    def differentiable(
        self, *, recompute_steps: bool, recompute_blocks: bool, recompute_decoding: bool, vae: Any = None
    ) -> Iterator[None]:
        """Results of `run` in this block carry the gradient of the latents that enter.

        Weights are frozen, and a pipeline's changes to its autoencoder after decoding wait until the end of
        the block, so that gradients still find it as it was.

        Args:
            recompute_steps: Whether only the inputs of each denoiser evaluation are kept.
            recompute_blocks: Whether only the inputs of the denoiser's blocks are kept.
            recompute_decoding: Whether only the inputs of the autoencoder's blocks are kept.
            vae: Another autoencoder that decodes, if any.
        """
        networks = [m for m in (*self.pipe.components.values(), vae) if isinstance(m, nn.Module)]
        decoders = [m for m in (getattr(self.pipe, "vae", None), vae) if isinstance(m, nn.Module)]
        thrifty = [*decoders] if recompute_decoding else []
        thrifty += [m for _, m in modules(self.pipe, DENOISERS) if recompute_blocks]
        checker = self.pipe.__dict__.get("safety_checker", MISSING)
        with ExitStack() as stack:
            stack.enter_context(frozen(networks))
            for network in thrifty:
                stack.enter_context(recomputing(network))
            for network in decoders:
                stack.enter_context(precision_kept(network))
            self._differentiates, self._recomputes_steps = True, recompute_steps
            if checker is not MISSING:  # it looks at images through NumPy; finished ones still pass it
                self.pipe.__dict__["safety_checker"] = None
            try:
                yield
            finally:
                self._differentiates = self._recomputes_steps = False
                if checker is not MISSING:
                    self.pipe.__dict__["safety_checker"] = checker
