"""The official VBench package, run in an interpreter of its own over a folder of clips.

It cannot share an environment with current transformers and numpy, so it gets one of its own, is started as a
program, and is read by the files that it writes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tts_vision.errors import ConfigError, VerifierError
from tts_vision.eval.evaluator import Sample
from tts_vision.eval.vbench import official_driver
from tts_vision.eval.vbench.layout import fault_of
from tts_vision.eval.vbench.prompts import Suite, file_stem
from tts_vision.eval.vbench.results import read_results
from tts_vision.eval.vbench.static_filter import KEPT
from tts_vision.media import open_media, write_media
from tts_vision.trust import check_allowed

_LINES = 8
"""Last lines of output that an error repeats."""
_CHECKED = 600.0
# of this process's environment, and not of the other interpreter's
_OURS = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


@dataclass
class Round:
    """Clips in one folder, named as the package wants them, at most five of a prompt.

    Attributes:
        folder: Where they are.
        rows: The number of each sample, by the name of its file.
    """

    folder: Path
    rows: dict[str, int] = field(default_factory=dict)


class Official:
    """The package in its interpreter.

    Args:
        python: The interpreter that can import ``vbench``.
        device: Of torch, such as ``cuda``.
        timeout: Seconds that one dimension may take.

    Raises:
        ConfigError: If the interpreter is no program.
    """

    def __init__(self, python: str, *, device: str, timeout: float) -> None:
        self.python = shutil.which(str(Path(python).expanduser()))
        if self.python is None:
            raise ConfigError(
                f"official_python must be a Python with the package vbench but {python!r} is no program; "
                "give the path of bin/python in its environment."
            )
        if not timeout > 0:
            raise ConfigError(f"official_timeout must be positive but got {timeout}; raise it.")
        self.device, self.timeout = device, timeout

    def check(self, folder: Path) -> None:
        """Checks that the package can be imported.

        Args:
            folder: For its output.

        Raises:
            VerifierError: If not, with the last lines that it wrote.
        """
        self._run(["-c", "import vbench"], folder, "be imported", min(self.timeout, _CHECKED))

    def measure(
        self, dimension: str, clips: Round, suite: Suite, samples: Sequence[Sample], output: Path
    ) -> tuple[float, dict[int, tuple[float, float | None]]]:
        """The score of a dimension, and the values of samples by their numbers.

        A clip that the package leaves out has none. The numbers of frames are as by `read_results`.

        Args:
            dimension: Its name.
            clips: The folder.
            suite: The prompts.
            samples: All samples, which the clips are numbered by.
            output: An empty folder for the files of the package.

        Raises:
            VerifierError: If it fails, takes too long, or writes something else than its results.
        """
        output.mkdir(parents=True, exist_ok=True)
        full_info = output / "VBench_full_info.json"
        full_info.write_text(json.dumps([entry.plain() for entry in suite.entries]), encoding="utf-8")
        prompts = {name: samples[row].item.prompt.text for name, row in clips.rows.items()}
        request = {
            "videos": str(clips.folder),
            "full_info": str(full_info),
            "output": str(output),
            "dimension": dimension,
            "device": self.device,
            "mode": "custom_input" if suite.is_custom else "vbench_standard",
            "prompts": prompts if suite.is_custom else [],
        }
        asked = output / "request.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        self._run([official_driver.__file__, str(asked)], output, f"measure {dimension}", self.timeout)
        score, found = read_results(output / f"{dimension}_eval_results.json", dimension)
        unknown = [name for name in found if name not in clips.rows]
        if unknown:
            raise VerifierError(
                f"The official package must measure the clips that it was given but its results of "
                f"{dimension} name {unknown[0]!r}; use vbench 0.1.5."
            )
        return score, {clips.rows[name]: value for name, value in found.items()}

    def _run(self, arguments: list[str], folder: Path, task: str, timeout: float) -> None:
        """Runs the interpreter to its end, and nothing that it started outlives it.

        Raises:
            VerifierError: If it fails or takes too long.
        """
        assert self.python is not None
        check_allowed(self.python, "runs")
        log = folder / "log.txt"
        environment = {key: value for key, value in os.environ.items() if key not in _OURS}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [self.python, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(timeout)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
        if code == 0:
            return
        ended = f"took more than {timeout:g} s" if code is None else f"ended with {code}"
        raise VerifierError(
            f"The official package must {task} but {self.python} {ended}: {_last_lines(log)}; try it by hand "
            "in that environment, or leave the dimension out."
        )


def staged(samples: Iterable[tuple[int, Sample]], folder: Path) -> tuple[list[Round], dict[int, str]]:
    """Folders in which each clip has the name that the package looks for.

    Clips of one prompt are numbered from 0 on in each folder, so that those of several runs, or more than
    five, come to be measured as well. MP4 files are linked; other clips are written as MP4.

    Args:
        samples: With their numbers.
        folder: In which the folders are made.

    Returns:
        The folders, and by the number of a sample the reason why it is in none.
    """
    rounds: list[Round] = []
    faults: dict[int, str] = {}
    slots: dict[str, int] = {}
    for row, sample in samples:
        stem = file_stem(sample.item.prompt.text)
        number, slot = divmod(slots.get(stem, 0), KEPT)
        while len(rounds) <= number:
            rounds.append(Round(folder / f"clips{len(rounds)}"))
            rounds[-1].folder.mkdir(parents=True)
        name = f"{stem}-{slot}.mp4"
        try:
            _put(sample.path, rounds[number].folder / name)
        except OSError as error:
            faults[row] = f"the clip cannot be read: {error}"
            continue
        rounds[number].rows[name] = row
        slots[stem] = slots.get(stem, 0) + 1
    return [each for each in rounds if each.rows], faults


def _put(source: Path, target: Path) -> None:
    """Links or writes a clip as MP4.

    Raises:
        OSError: If it cannot be read.
    """
    shown = source if source.suffix.lower() == ".mp4" else source.with_suffix(".mp4")
    if not shown.is_file():
        write_media(open_media(source), target, {})
        return
    fault = fault_of(shown)
    if fault is not None:
        raise OSError(fault)
    try:
        target.symlink_to(shown.resolve())
    except OSError:  # where links are not allowed
        shutil.copyfile(shown, target)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that still runs, and those that it started."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _last_lines(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return " | ".join([line for line in lines if line][-_LINES:])[-1500:] or "it wrote nothing"
