"""A worker: runs searches one after the other, and keeps the model and the verifiers that it has loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tts_vision.errors import BusyError, TTSVisionError, VerifierError
from tts_vision.failures import explain
from tts_vision.folders import is_finished
from tts_vision.resolve import Live, find_verifier, load_model, load_verifier
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
        self._load = load or (lambda text: load_verifier(find_verifier(text)))
        self._verifiers: dict[str, Verifier] = {}
        self._model: tuple[str, Any] = ("", None)

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

    def verifier(self, text: str) -> Verifier:
        """The verifier of a text, loaded once."""
        if text not in self._verifiers:
            self._verifiers[text] = self._load(text)
        return self._verifiers[text]

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
        verifier = self.live.verifier or self.verifier(config.verifier)
        return Live(pipe=self.live.pipe or self._pipe(task), verifier=verifier, holdout=self.live.holdout)

    def _pipe(self, task: Task) -> Any:
        name = f"{task.config.model} {task.config.model_options!r}"
        if self._model[0] != name:
            self._model = ("", None)  # one model in memory at a time
            self._model = (name, load_model(task.config))
        return self._model[1]
