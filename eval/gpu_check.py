"""The toolkit's promises on a GPU, on random models with the widths of SDXL, Flux and Wan.

``python -m tts_vision.eval.gpu_check`` builds each model on the device, with fewer layers than the published
one and prompts as given embeddings, so that nothing is downloaded. In float16 and bfloat16 it runs
`tts_vision.check`; in the last of them it times batches and searches of several sizes, and then compiles and
offloads the model. ``--tiny --device cpu`` runs the same on a CPU in about a minute.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

import tts_vision
from tts_vision.condition import Condition
from tts_vision.config import SamplerOptions
from tts_vision.ledger import Ledger, peak_memory
from tts_vision.media import pixels
from tts_vision.pipelines.diffusers_sampler import DiffusersSampler
from tts_vision.self_check import PROMPT, Report, check
from tts_vision.types import Decoded, Invalid

Record: TypeAlias = dict[str, Any]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
ROWS = (1, 2, 4, 8)
SAMPLES = 8
STEPS = 6
COMPILING = 60  # seconds after which compiling is given up


@dataclass(frozen=True)
class Shape:
    """A model of the benchmark.

    Attributes:
        build: Makes the pipeline on a device, tiny or with real widths.
        call: Arguments of its call, besides embeddings.
        tiny_call: Those of the tiny model.
        embeddings: Shapes of the embeddings of one prompt, by argument.
        tiny_width: Width of the embeddings by argument, for the tiny model.
    """

    build: Callable[[bool, torch.device], Any]
    call: Mapping[str, Any]
    tiny_call: Mapping[str, Any]
    embeddings: Mapping[str, tuple[int, ...]]
    tiny_width: Mapping[str, int]

    def arguments(self, tiny: bool, device: torch.device, dtype: torch.dtype) -> Record:
        """The arguments of a call."""
        drawn = torch.Generator("cpu").manual_seed(0)
        found: Record = dict(self.tiny_call if tiny else self.call)
        for name, shape in self.embeddings.items():
            size = (1, *shape[:-1], self.tiny_width[name] if tiny else shape[-1])
            found[name] = torch.randn(size, generator=drawn).to(device, dtype)
        return {**found, "num_inference_steps": 3 if tiny else STEPS}


def image_autoencoder(tiny: bool, channels: int, **settings: Any) -> Any:
    """The autoencoder of Stable Diffusion's and Flux's layout, in full depth unless tiny."""
    from diffusers import AutoencoderKL

    widths = (16, 32, 32, 32) if tiny else (128, 256, 512, 512)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1 if tiny else 2,
        norm_num_groups=8 if tiny else 32,
        latent_channels=channels,
        **settings,
    )


def sdxl(tiny: bool, device: torch.device) -> Any:
    """Stable Diffusion XL with fewer residual and attention blocks."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    with device:
        unet = UNet2DConditionModel(
            sample_size=16 if tiny else 128,
            block_out_channels=(32, 64, 64) if tiny else (320, 640, 1280),
            layers_per_block=1,
            transformer_layers_per_block=(1, 1, 1) if tiny else (1, 1, 2),
            norm_num_groups=8 if tiny else 32,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4, 4) if tiny else (5, 10, 20),
            cross_attention_dim=32 if tiny else 2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=8 if tiny else 256,
            projection_class_embeddings_input_dim=16 + 6 * 8 if tiny else 1280 + 6 * 256,
            use_linear_projection=True,
        )
        vae = image_autoencoder(tiny, 4, scaling_factor=0.13025)
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading"),
        add_watermarker=False,
    )


def flux(tiny: bool, device: torch.device) -> Any:
    """Flux with 2 double and 4 single blocks, of 19 and 38."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    settings = {"use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": True}
    with device:
        transformer = FluxTransformer2DModel(
            in_channels=64,
            num_layers=1 if tiny else 2,
            num_single_layers=1 if tiny else 4,
            attention_head_dim=16 if tiny else 128,
            num_attention_heads=2 if tiny else 24,
            joint_attention_dim=32 if tiny else 4096,
            pooled_projection_dim=16 if tiny else 768,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6) if tiny else (16, 56, 56),
        )
        vae = image_autoencoder(tiny, 16, scaling_factor=0.3611, shift_factor=0.1159, **settings)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )


def wan(tiny: bool, device: torch.device) -> Any:
    """Wan 2.1 of 1.3 billion weights, with 8 of its 30 blocks."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    with device:
        transformer = WanTransformer3DModel(
            num_attention_heads=2 if tiny else 12,
            attention_head_dim=12 if tiny else 128,
            text_dim=32 if tiny else 4096,
            freq_dim=32 if tiny else 256,
            ffn_dim=64 if tiny else 8960,
            num_layers=2 if tiny else 8,
        )
        vae = AutoencoderKLWan(base_dim=8, num_res_blocks=1) if tiny else AutoencoderKLWan()
    return WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        transformer=transformer,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


_XL = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
MODELS = {
    "SDXL": Shape(
        sdxl,
        {"height": 1024, "width": 1024},
        {"height": 64, "width": 64},
        dict(zip(_XL, ((77, 2048), (77, 2048), (1280,), (1280,)))),
        dict(zip(_XL, (32, 32, 16, 16))),
    ),
    "Flux": Shape(
        flux,
        {"height": 1024, "width": 1024},
        {"height": 64, "width": 64},
        {"prompt_embeds": (512, 4096), "pooled_prompt_embeds": (768,)},
        {"prompt_embeds": 32, "pooled_prompt_embeds": 16},
    ),
    "Wan": Shape(
        wan,
        {"height": 480, "width": 832, "num_frames": 9},
        {"height": 32, "width": 32, "num_frames": 5},
        {"prompt_embeds": (512, 4096), "negative_prompt_embeds": (512, 4096)},
        {"prompt_embeds": 32, "negative_prompt_embeds": 32},
    ),
}


def cast(pipe: Any, dtype: torch.dtype) -> None:
    """Casts the networks as loading in a precision does: a few parts stay in float32."""
    for network in pipe.components.values():
        if not isinstance(network, torch.nn.Module):
            continue
        kept = set(getattr(network, "_keep_in_fp32_modules", None) or ())
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if tensor.is_floating_point() and not kept & set(name.split(".")):
                tensor.data = tensor.data.to(dtype)


class GpuCheck:
    """The measurements, in order; each adds its records.

    Args:
        tiny: Whether the models are tiny.
        device: Where they run.
        limit: Seconds after which no further measurement begins.
    """

    def __init__(self, *, tiny: bool, device: torch.device, limit: float) -> None:
        self.tiny, self.device, self.limit = tiny, device, limit
        self.began = time.perf_counter()
        self.records: dict[str, list[Record]] = {name: [] for name in _TABLES}
        self.left_out: list[str] = []
        self.is_sound = True

    def run(self, names: Sequence[str], dtypes: Sequence[str]) -> None:
        """All measurements of the models."""
        for name in names:
            pipe = None
            for dtype in dtypes:
                if not self._is_time(f"{name} in {dtype}"):
                    continue
                if pipe is None:
                    pipe = self._build(name)
                cast(pipe, DTYPES[dtype])
                call = MODELS[name].arguments(self.tiny, self.device, DTYPES[dtype])
                facts = {"model": name, "dtype": dtype}
                self._try(self.promises, pipe, call, facts)
            if pipe is not None:  # the rest in the last precision alone
                self._try(self.batches, pipe, call, facts)
                self._try(self.searches, pipe, call, facts)
                self._try(self.settings, pipe, call, facts)
            pipe = None
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _build(self, name: str) -> Any:
        start = time.perf_counter()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            pipe = MODELS[name].build(self.tiny, self.device)
        pipe.set_progress_bar_config(disable=True)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        denoiser = _denoiser(pipe)
        self.records["models"].append(
            {
                "model": name,
                "pipeline": type(pipe).__name__,
                "denoiser, millions": round(_millions(denoiser)),
                "autoencoder, millions": round(_millions(pipe.vae)),
                "made in, s": time.perf_counter() - start,
            }
        )
        return pipe

    def promises(self, pipe: Any, call: Record, facts: Record) -> None:
        """`tts_vision.check`, as a user runs it."""
        report = check(pipe, PROMPT, verifier=contrast, samples=4, pipeline_kwargs=call)
        self._add_report(report, facts)

    def batches(self, pipe: Any, call: Record, facts: Record) -> None:
        """Rows in one batch: seconds of the own call, in one segment and in a segment per step."""
        sampler = _sampler(pipe, call)
        alone: list[Decoded] = []
        for rows in ROWS[:2] if self.tiny else ROWS:
            _drawn(sampler, rows, 1)  # warms up
            with self._seconds() as own:
                sampler.plain(_CONDITION, range(rows), seed=0)
            own_peak = self._peak()
            with self._seconds() as whole:
                found = _drawn(sampler, rows, sampler.num_steps)
            with self._seconds() as stepwise:
                _drawn(sampler, rows, 1)
            if rows == 1:
                alone = found
            record = {
                "rows": rows,
                "own call, s": own[0],
                "one segment, s": whole[0],
                "step by step, s": stepwise[0],
                "a step more, ms": 1000 * (stepwise[0] - whole[0]) / (sampler.num_steps - 1),
                "peak of the own call, GiB": own_peak,
                "peak step by step, GiB": self._peak(),
                "row 0, of 255": _difference(alone[:1], found[:1]),
            }
            self.records["batches"].append({**facts, **record})

    def searches(self, pipe: Any, call: Record, facts: Record) -> None:
        """Best of n with several limits on the batch: the same samples."""
        n = 4 if self.tiny else SAMPLES
        first: list[Any] = []
        for most in (1, 3, n):
            with self._seconds() as took:
                result = tts_vision.search(
                    pipe,
                    PROMPT,
                    algorithm=f"best_of_n:n={n}",
                    budget=f"{n}x",
                    verifier=contrast,
                    max_batch=most,
                    pipeline_kwargs=call,
                )
            found = [c.load() for c in sorted(result.population, key=lambda each: each.uid)]
            first = first or found
            record = {
                "samples": n,
                "max_batch": most,
                "seconds": took[0],
                "nfe": round(result.spent.nfe),
                "peak, GiB": self._peak(),
                "from max_batch 1, of 255": _difference(first, found),
            }
            self.records["searches"].append({**facts, **record})

    def settings(self, pipe: Any, call: Record, facts: Record) -> None:
        """The pipeline as it is, compiled, and offloaded: the own call against a segment per step."""
        self._compared(pipe, call, {**facts, "setting": "as it is"})
        name = f"{facts['model']} compiled"
        if self._is_time(name):
            backend = "inductor" if self.device.type == "cuda" else "eager"
            denoiser = _denoiser(pipe)
            try:
                denoiser.compile(backend=backend)
                with _no_longer_than(COMPILING), self._seconds() as took:
                    pipe(**call, generator=_seeded(), output_type="latent")
                setting = f"compiled by {backend} in {took[0]:.0f} s"
                self._compared(pipe, call, {**facts, "setting": setting})
            except Exception as error:  # a compiler's, of any kind
                self._leave_out(name, error)
            finally:
                denoiser._compiled_call_impl = None
                torch._dynamo.reset()
        name = f"{facts['model']} offloaded"
        if self.device.type == "cpu":
            self.left_out.append(f"{name}: needs an accelerator")
        elif self._is_time(name):
            try:
                pipe.enable_model_cpu_offload(device=self.device)
                self._compared(pipe, call, {**facts, "setting": "enable_model_cpu_offload"})
            finally:
                pipe.remove_all_hooks()
                pipe.to(self.device)

    def _compared(self, pipe: Any, call: Record, facts: Record) -> None:
        sampler, ledger = _sampler(pipe, call), Ledger()
        sampler.bind(ledger)
        planned = sampler.cost(_CONDITION, 0, sampler.num_steps).nfe
        _drawn(sampler, 1, 1)  # warms up
        with self._seconds() as own:
            expected = sampler.plain(_CONDITION, [0], seed=0)
        before = ledger.spent.nfe
        with self._seconds() as took:
            found = _drawn(sampler, 1, 1)
        charged = ledger.spent.nfe - before
        difference = _difference(expected, found)
        self.is_sound &= difference == 0 and charged == planned
        record = {
            "own call, s": own[0],
            "step by step, s": took[0],
            "difference, of 255": difference,
            "nfe charged / planned": f"{charged:g} / {planned:g}",
            "peak, GiB": self._peak(),
        }
        self.records["settings"].append({**facts, **record})

    def _add_report(self, report: Report, facts: Record) -> None:
        self.is_sound &= report.holds
        for line in report.lines:
            record = {"test": line.name, "verdict": line.verdict, "value": line.value}
            self.records["promises"].append({**facts, **record})

    def _try(
        self, work: Callable[[Any, Record, Record], None], pipe: Any, call: Record, facts: Record
    ) -> None:
        """Runs a measurement; one that fails is reported, and the others go on."""
        title = f"{' in '.join(map(str, facts.values()))}: {work.__name__}"
        if not self._is_time(title):
            return
        print(f"{time.perf_counter() - self.began:6.1f} s  {title}", file=sys.stderr, flush=True)
        try:
            work(pipe, call, facts)
        except Exception as error:  # whatever a device or a library raises
            self._leave_out(title, error)
            self.is_sound = False

    def _is_time(self, title: str) -> bool:
        enough = time.perf_counter() - self.began < self.limit
        if not enough and f"{title}: no time left" not in self.left_out:
            self.left_out.append(f"{title}: no time left")
        return enough

    def _leave_out(self, title: str, error: Exception) -> None:
        reason = (str(error).strip() or "no message").splitlines()[0]
        self.left_out.append(f"{title}: {type(error).__name__}: {reason[:300]}")

    @contextmanager
    def _seconds(self) -> Iterator[list[float]]:
        """Wall-clock seconds of the block, its work on the device included; peak memory starts anew."""
        took = [0.0]
        self._wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        yield took
        self._wait()
        took[0] = time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _peak(self) -> float:
        return peak_memory() / 2**30

    def as_json(self) -> Record:
        """All records, by table."""
        return {"setting": self._setting(), "sound": self.is_sound, **self.records, "left out": self.left_out}

    def _setting(self) -> Record:
        device = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        return {
            "device": device,
            "torch": torch.__version__,
            "models": "tiny" if self.tiny else "of real widths",
            "seconds": round(time.perf_counter() - self.began),
        }

    def markdown(self) -> str:
        """All records as tables."""
        parts = [", ".join(f"{key} {value}" for key, value in self._setting().items())]
        parts += [f"{_TABLES[name]}\n\n{_table(rows)}" for name, rows in self.records.items() if rows]
        if self.left_out:
            parts.append("Left out:\n\n" + "\n".join(f"- {line}" for line in self.left_out))
        return "\n\n".join(parts) + "\n"


_CONDITION = Condition(PROMPT)
_TABLES = {
    "models": "Models:",
    "promises": "`tts_vision.check`:",
    "batches": "Rows in one batch, to pixels:",
    "searches": "`best_of_n` under limits on the batch:",
    "settings": "One row, the own call against a segment per step:",
}


def contrast(media: Sequence[Any], prompts: Sequence[str]) -> list[float]:
    """A verifier that costs nothing: the standard deviation of pixels."""
    return [float(pixels(each).std()) for each in media]


def _sampler(pipe: Any, call: Record) -> DiffusersSampler:
    return DiffusersSampler(pipe, options=SamplerOptions(pipeline_kwargs=call))


def _drawn(sampler: DiffusersSampler, rows: int, steps: int) -> list[Decoded]:
    """Finished samples, driven so many steps at once."""
    state = sampler.init(_CONDITION, list(range(rows)), seed=0)
    while state.step < sampler.num_steps:
        state = sampler.advance(state, min(steps, sampler.num_steps - state.step))
    return list(sampler.decode(state))


def _seeded() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(0)


def _denoiser(pipe: Any) -> torch.nn.Module:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def _millions(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def _difference(expected: Sequence[Any], found: Sequence[Any]) -> int:
    """The largest difference of pixels, of 255.

    Raises:
        ValueError: If a sample is invalid, or the numbers of samples differ.
    """
    invalid = [each.reason for each in (*expected, *found) if isinstance(each, Invalid)]
    if invalid:
        raise ValueError(f"a sample is invalid: {invalid[0]}")
    pairs = zip(expected, found, strict=True)
    return max(int(np.abs(pixels(a).astype(int) - pixels(b).astype(int)).max()) for a, b in pairs)


@contextmanager
def _no_longer_than(seconds: int) -> Iterator[None]:
    """Raises `TimeoutError` in the block when its time is over, where the system has an alarm."""

    def over(number: int, frame: Any) -> None:
        raise TimeoutError(f"not finished in {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _table(rows: Sequence[Record]) -> str:
    """Records with the same keys as a Markdown table."""
    head = list(rows[0])
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(_written(row[key]) for key in head)} |" for row in rows]
    return "\n".join(lines)


def _written(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the check from a command line; 1 where a promise is broken or a measurement failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, for a test of this script")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--seconds", type=float, default=200, help="begin nothing after so many seconds")
    parser.add_argument("--output", type=Path, default=None, help="also write the tables here")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("skipped: torch finds no GPU here; --tiny --device cpu tests the script without one")
        return 0
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    run = GpuCheck(tiny=options.tiny, device=device, limit=options.seconds)
    run.run(options.models, options.dtypes)
    print(run.markdown())
    if options.output is not None:
        options.output.write_text(run.markdown())
    if options.json is not None:
        options.json.write_text(json.dumps(run.as_json(), indent=2) + "\n")
    return 0 if run.is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
