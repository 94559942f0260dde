"""A worker: runs searches one after the other, and keeps the model and the verifiers that it has loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tts_vision.errors import BusyError, TTSVisionError, VerifierError
from tts_vision.failures import explain
from tts_vision.folders import is_finished
from tts_vision.loaded import Models
from tts_vision.resolve import Live
from tts_vision.results import Result, load_result
from tts_vision.runner import run
from tts_vision.runs.task import Record, Task, record_of
from tts_vision.verifier import Verifier


class Worker:
    """Runs the searches of a run in this process.

    Args:
        root: The folder of the run.
        live: Objects in the place of names, for all searches.
        load: Makes a verifier from its text; by default it is loaded into this process.
    """

    def __init__(
        self, root: Path, live: Live | None = None, load: Callable[[str], Verifier] | None = None
    ) -> None:
        self.root, self.live = root, live or Live()
        self._models = Models(load=load)

    def do(self, task: Task) -> Record:
        """Runs a search to its end, or goes on with it; one that is finished is only read.

        Raises:
            BusyError: If another process runs it.
            TTSVisionError: If it fails.
        """
        folder = self.root / task.name
        specs = [task.config.algorithm, task.config.verifier, task.config.model]
        try:
            return record_of(task, self._run(task, folder), self.root)
        except TTSVisionError:
            raise
        except Exception as error:
            arguments = task.config.sampler_options.pipeline_kwargs
            go_on = f"The same command with '--output {self.root}' goes on."
            raise explain(error, specs=specs, arguments=arguments, go_on=go_on) from error

    def _run(self, task: Task, folder: Path) -> Result:
        try:
            live = Live() if is_finished(folder) else self._live(task)
            return run(task.config, live, output=folder, resume=True, figures=False)
        except BusyError:
            raise
        except VerifierError:
            if not is_finished(folder):
                raise
            return load_result(folder)  # nothing could be scored, and is counted as such

    def _live(self, task: Task) -> Live:
        config = task.config
        verifier = self.live.verifier or self._models.verifier(config.verifier)
        pipe = self.live.pipe or self._models.pipe(config)
        return Live(pipe=pipe, verifier=verifier, holdout=self.live.holdout)
