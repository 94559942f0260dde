"""The front door: run a search, or go on with one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeAlias

from tts_vision.config import ModelOptions, RunConfig, SamplerOptions, live_name
from tts_vision.context import CHUNK, SearchContext
from tts_vision.errors import (
    BudgetSpent,
    ConfigError,
    HoldoutWarning,
    StopSearch,
    StorageError,
    TargetReached,
)
from tts_vision.files import STOPPED, replace_file
from tts_vision.fingerprint import check_fingerprint, fingerprint
from tts_vision.folders import (
    check_folder,
    check_new,
    check_unchanged,
    find_began,
    is_finished,
    make_folder,
    read_config,
    remove_empty_search,
)
from tts_vision.holdout import judge
from tts_vision.inputs import keep_inputs, with_inputs
from tts_vision.journal import Journal
from tts_vision.judging import Target
from tts_vision.ledger import Budget, Ledger
from tts_vision.locks import check_free, one_writer
from tts_vision.recovery import Recovery, with_recovered
from tts_vision.rehearsal import largest_size, rehearse
from tts_vision.replays import recreate
from tts_vision.resolve import Live, Setup, fill_defaults, prepare
from tts_vision.results import (
    TOP_UP,
    Result,
    SampleFolder,
    SampleMemory,
    load_result,
    ranked,
    write_result,
)
from tts_vision.steering import Steering
from tts_vision.trace import Began, Event, lineage
from tts_vision.trust import remember, trusting
from tts_vision.types import Prompt, State

SIZE = "size"
"""Name of the answer that says how large a search is."""
Observer: TypeAlias = Callable[[SearchContext, Event], None]


def search(
    pipe_or_id: Any,
    prompt: str | Prompt,
    *,
    algorithm: str | Callable[..., Any] = "best_of_n",
    verifier: Any = None,
    holdout_verifier: Any = None,
    budget: str | Budget = "16x",
    seed: int = 0,
    target: Target = None,
    algorithm_params: Mapping[str, Any] | None = None,
    pipeline_kwargs: Mapping[str, Any] | None = None,
    sampler_options: SamplerOptions | None = None,
    model_options: ModelOptions | None = None,
    output: Path | str | None = None,
    resume: bool = False,
    max_batch: int | None = None,
    progress: Observer | None = None,
    steering: Steering | None = None,
) -> Result:
    """Searches for the sample of a prompt that a verifier scores highest.

    Args:
        pipe_or_id: Any diffusers pipeline, a `Sampler`, or the name, folder or hub id of a model.
        prompt: The prompt.
        algorithm: Name of a search algorithm, or a function with the signature of one.
        verifier: Name of a verifier (with parameters as ``name:key=value``), a `Verifier`, or a function
            ``f(images, prompts) -> floats``. By default the one that the model names, if it names any.
        holdout_verifier: Another one, given in the same ways, that judges all finished samples after the
            search and never guides it: a gauge of how far the search fitted its verifier, not the prompt.
        budget: What may be spent: ``"16x"`` (times one plain sample), ``"nfe=2000"``, ``"seconds=60"``,
            ``"verifier_calls=100"``, or several joined by "and".
        seed: Root seed; the first particle starts from it.
        target: Ends the search as soon as a finished sample has this score, or, with ``"satisfied"``, meets
            all demands of the prompt, where the verifier checks demands.
        algorithm_params: Parameters of the algorithm.
        pipeline_kwargs: Arguments of the pipeline's call, such as ``num_inference_steps``.
        sampler_options: How the generator is stepped.
        model_options: How a model given by name is loaded.
        output: A new folder to keep everything in; without one, nothing is written.
        resume: Whether to go on if `output` holds this same search, unfinished.
        max_batch: Particles computed at once; by default all, and fewer when memory runs out.
        progress: Called with the context and each event as it happens.
        steering: A person's say in the search, from another thread: particles to keep and to drop.

    Raises:
        TTSVisionError: If something cannot be used as given; the message says what, and what to do.
    """
    options = sampler_options or SamplerOptions()
    if pipeline_kwargs:
        merged = {**options.pipeline_kwargs, **pipeline_kwargs}
        options = options.model_copy(update={"pipeline_kwargs": merged})
    prompt = prompt if isinstance(prompt, Prompt) else Prompt(prompt)
    live = Live(
        pipe=None if isinstance(pipe_or_id, (str, Path)) else pipe_or_id,
        algorithm=None if isinstance(algorithm, str) else algorithm,
        verifier=None if verifier is None or isinstance(verifier, str) else verifier,
        holdout=None if holdout_verifier is None or isinstance(holdout_verifier, str) else holdout_verifier,
    )
    config = RunConfig(
        prompt=prompt.text,
        prompt_metadata=dict(prompt.metadata),
        model=str(pipe_or_id) if live.pipe is None else live_name(live.pipe),
        model_options=model_options or ModelOptions(),
        sampler_options=options,
        algorithm=algorithm if isinstance(algorithm, str) else live_name(algorithm),
        algorithm_params=dict(algorithm_params or {}),
        verifier=verifier if live.verifier is None else live_name(live.verifier),
        holdout_verifier=holdout_verifier if live.holdout is None else live_name(live.holdout),
        budget=budget if isinstance(budget, str) else _written(budget),
        seed=seed,
        target=target,
        max_batch=max_batch,
    )
    return run(config, live, output=output, resume=resume, progress=progress, steering=steering)


def resume(folder: Path | str, *, trust: bool = False, progress: Observer | None = None) -> Result:
    """Goes on with a search that was killed or interrupted; the result is as if it had not been.

    Args:
        folder: Its output folder. A search that was started from Python with live objects is resumed
            by ``search(pipe, ..., output=folder, resume=True)``, because a folder cannot hold them.
        trust: Whether to run code and ask endpoints that the folder's configuration names; without it only
            if you began the search in this folder yourself. See `tts_vision.trust`.
        progress: Called with the context and each event as it happens.

    Raises:
        ConfigError: If the folder holds no search, one with live objects, or one that asks for trust.
    """
    root = Path(folder)
    config = read_config(root)
    if is_finished(root):  # reading it runs nothing
        return _reopened(root)
    check_unchanged(root, config, find_began(root))
    with trusting(root, config, trust=trust):
        return run(with_inputs(config, root), output=root, resume=True, progress=progress)


def run(
    config: RunConfig,
    live: Live | None = None,
    *,
    output: Path | str | None = None,
    resume: bool = False,
    progress: Observer | None = None,
    figures: bool = True,
    steering: Steering | None = None,
) -> Result:
    """Runs the search that a configuration describes.

    Args:
        config: What to do.
        live: Objects in the place of names.
        output: As in `search`.
        resume: As in `search`.
        progress: As in `search`.
        figures: Whether the result folder gets its contact sheet, plot and lineage.
        steering: As in `search`.
    """
    config = fill_defaults(config, live)
    if output is None:
        return _run(config, live, None, progress, figures, steering)
    root = Path(output)
    if not resume or not is_finished(root):
        check_free(root)  # says by whom the folder is in use, before it says what is in it
        check_new(root, resume=resume)
        with one_writer(root) as made:
            check_folder(root, config, resume=resume)
            if not is_finished(root):
                return _run(config, live, root, progress, figures, steering, made)
    check_folder(root, config, resume=resume)
    first = find_began(root)
    if first is not None:
        check_fingerprint(first.fingerprint, fingerprint(config, live))
    return _reopened(root)


def _reopened(root: Path) -> Result:
    """The result of a finished search.

    Raises:
        VerifierError: If nothing could be scored.
    """
    result = load_result(root)
    _ = result.best
    return result


def _run(
    config: RunConfig,
    live: Live | None,
    root: Path | None,
    progress: Observer | None,
    figures: bool,
    steering: Steering | None,
    made: list[Path] | None = None,
) -> Result:
    """`run` in a folder that is this process's alone; one that it should not leave is added to `made`."""
    setup = prepare(config, live)
    if root is not None:
        make_folder(root, config)
        remember(root, config)
    journal = Journal(root)
    keep_inputs(journal, config.sampler_options.pipeline_kwargs)
    facts = {} if root is None else fingerprint(config, live)
    began = journal.begin(
        Began(op=0, config=config.content, hash=config.hash, max_batch=config.max_batch, fingerprint=facts)
    )
    check_fingerprint(began.fingerprint, facts)
    samples = (
        SampleMemory(config, journal)
        if root is None
        else SampleFolder(config, journal, root, figures=figures)
    )
    try:
        result = _search(setup, journal, samples, root, progress, began.max_batch or CHUNK, steering)
    except ConfigError:
        # what an algorithm refuses before its first operation leaves no folder behind
        if root is not None and all(event.what in {"began", "checkpoint", SIZE} for event in journal.events):
            journal.close()
            remove_empty_search(root)
            if made is not None:
                made.append(root)
        raise
    if root is not None:
        if result.stopped:
            replace_file(root / STOPPED, Path.touch, "The mark of a stopped search")
        write_result(result, figures=figures)
        if not result.stopped:
            (root / STOPPED).unlink(missing_ok=True)
        journal.close(keep_tensors=result.stopped)
    if not result.stopped:
        _ = result.best  # as above; all that was made is kept by now
    return result


def _search(
    setup: Setup,
    journal: Journal,
    samples: SampleMemory,
    root: Path | None,
    progress: Observer | None,
    chunk: int,
    steering: Steering | None,
) -> Result:
    context = SearchContext(
        setup.sampler,
        setup.verifier,
        setup.prompt,
        seed=setup.config.seed,
        ledger=Ledger(setup.budget),
        journal=journal,
        store=samples,
        max_batch=setup.config.max_batch,
        chunk=chunk,
        observer=progress,
        target=setup.config.target,
        open_sampler=setup.open_sampler,
        steering=steering,
    )
    if root is not None:
        Recovery(context).samples(root, samples)
    budget_spent = stopped = False
    try:
        try:
            conduct(context, setup.algorithm, setup.params, setup.size)
            context.finish_pinned()
            context.done()
        except TargetReached:
            context.finish_pinned()
            context.done()
        except BudgetSpent:
            budget_spent = True
            # recorded in here, while the states in the traceback still hold on to their stored tensors
            context.finish_pinned()
            context.done(budget_spent=True)
    except StopSearch as stop:
        stopped = True
        context.interrupted(f"stopped: {stop}")
    except BaseException as error:
        with suppress(StorageError):  # a full disk must not hide the error before it
            context.interrupted(f"{type(error).__name__}: {error}")
        raise
    if setup.holdout is not None and not stopped:
        judge(setup.holdout, list(context.candidates.values()), setup.prompt, journal, context.op)
    population = ranked(list(context.candidates.values()))
    winner = context.best or context.best_preview
    if winner is not None and winner.media is None and winner.path is None:
        # the preview that won was scored before a kill, and previews are not stored
        chain = lineage(journal.events, winner.uid)
        winner.media = recreate(context, chain, winner.step, journal.asset)
    for candidate in [*population, *([winner] if winner else [])]:
        candidate.text = samples.text(candidate)
    result = Result(
        winner=winner,
        population=population,
        trace=journal.events,
        spent=with_recovered(context.ledger.read(), journal.events),
        budget=setup.budget,
        config=setup.config,
        folder=root,
        budget_spent=budget_spent,
        is_preview=winner is not None and context.best is None,
        satisfied=context.satisfied,
        stopped=stopped,
    )
    if result.holdout is not None and result.holdout.fell:
        names = (setup.config.verifier, str(setup.config.holdout_verifier))
        warnings.warn(result.holdout.warning(*names), HoldoutWarning, stacklevel=5)
    return result


def conduct(
    context: SearchContext, algorithm: Callable[..., Any], params: Mapping[str, Any], size: str = ""
) -> Any:
    """Runs an algorithm at the size that its budget pays for.

    Where the size is left open, the largest affordable one is found by rehearsal, and the rest of the budget
    goes to independent samples, unless the algorithm concludes that nothing is left to be gained. Under a
    limit of time, one plain sample is drawn first to measure speeds; it is a candidate like any other.

    Args:
        context: What the algorithm runs on.
        algorithm: The search.
        params: Its parameters; that of its size only where it is given.
        size: Name of the parameter that sizes it, if it declares one.

    Returns:
        The particles that the algorithm returned; independent samples where not even its smallest size is
        affordable.

    Raises:
        ConfigError: If an explicit size cannot be paid for.
        BudgetSpent: If the budget ends the algorithm.
        TargetReached: If a sample reaches the target.
    """
    budget = context.ledger.budget
    if not size or budget == Budget():
        return algorithm(context, **params)
    if size in params:
        _check_affordable(context, algorithm, params, f"{size}={params[size]}")
        return algorithm(context, **params)
    plain = None
    if budget.seconds is not None:
        plain = context.finish(context.init(1))
        context.score(plain)
    n = context.ask(SIZE, lambda: largest_size(context, algorithm, params, size))
    if n is None:
        _check_affordable(context, algorithm, params, "it")
        return algorithm(context, **params)
    state = algorithm(context, **params, **{size: n}) if n else plain
    extra = None if context.concluded else top_up(context)
    return extra if state is None else state


def top_up(context: SearchContext) -> State | None:
    """Spends the rest of the budget on independent samples, and records that it does.

    Returns:
        These samples; None if there is nothing left to spend.
    """
    done: list[State] = []
    before = None
    while left := context.affordable(context.cost()):
        if left == before and all(context.candidates[uid].score.is_invalid for uid in done[-1].uids):
            break  # invalid samples take no calls of the verifier: such a budget would never end
        if not done:
            context.ask(TOP_UP, lambda: None)
        done.append(context.finish(context.init(min(left, context.chunk))))
        context.score(done[-1])
        before = left
    return State.cat(done) if done else None


def _check_affordable(
    context: SearchContext, algorithm: Callable[..., Any], params: Mapping[str, Any], sizes: str
) -> None:
    """Checks that an explicit size can be paid for; time, which is only a forecast, apart."""
    price = rehearse(context, algorithm, params)
    left = replace(context.ledger.remaining(), seconds=None)
    if price is None or left.affords(price):
        return
    units = ("nfe", "tokens", "macs", "verifier_calls")
    limited = [unit for unit in units if getattr(left, unit) is not None]
    has = " and ".join(f"{getattr(left, unit):g} {unit.replace('_', ' ')}" for unit in limited)
    needs = " and ".join(f"{getattr(price, unit):g}" for unit in limited)
    raise ConfigError(
        f"A search must fit its budget of {has} but {sizes} costs {needs}; lower it, leave it out to fill "
        "the budget, or raise the budget."
    )


def _written(budget: Budget) -> str:
    """A budget as `Budget.parse` reads it."""
    limits = {field.name: getattr(budget, field.name) for field in fields(budget)}
    terms = [f"{v!r}x" if k == "times" else f"{k}={v!r}" for k, v in limits.items() if v is not None]
    return " and ".join(terms)
