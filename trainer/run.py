"""A run: from a config and data to a run directory. What the commands call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Final

from cachestore.dataset import Dataset, open_dataset
from cachestore.encoders import exported
from cachestore.errors import EncoderError, UsageError
from cachestore.keys import fingerprint
from cachestore.store import Store
from trainer import checkpoint, pins, report, resume, run_directory
from trainer.apply import evaluate, predict
from trainer.config import load_config
from trainer.events import Clock, Listener, RunBegun
from trainer.live.check import check_models
from trainer.live.state import LiveState
from trainer.prepare import Prepared, prepare
from trainer.record import Evaluation, Predictions
from trainer.runs import Run, StoreLike, opened
from trainer.schema import Config
from trainer.schema.inputs import EncodedInput
from trainer.schema.preparation import RandomSplit
from trainer.strategies import launch
from trainer.strategies.ranks import Ranks
from trainer.work import Job

_PLACES: Final = ("pretrained_model_name_or_path", "weights_path")

__all__ = ["Evaluation", "Predictions", "Run", "evaluate", "predict", "resume_run", "train"]


def train(
    config: Config | Mapping[str, Any] | str | Path,
    data: Any,
    store: StoreLike = None,
    *,
    validation: Any = None,
    test: Any = None,
    output: str | Path | None = None,
    progress: Listener | None = None,
) -> Run:
    """Train on ``data`` and write a run directory, by default the first of ``runs/<file>``, ``runs/<file>_1``, … that is free.

    Texts the store lacks are encoded first. With ``validation`` or ``test``, ``data`` is used whole for training unless the
    config sets a split; rows it puts into a part that a file provides are left out. Without either and without a split in
    the config, rows are split at random, 0.7, 0.1 and 0.2. A run at ``output`` is replaced when the new one is finished.
    The run pins what it is trained on in the store, where the store may be written. ``store``: an open one, or the path of one
    that is opened and closed again; by default that of the commands.
    """
    return launch.lead(partial(_begin, config, data, store, validation, test, output, progress))


def _begin(
    config: Config | Mapping[str, Any] | str | Path,
    data: Any,
    store: StoreLike,
    validation: Any,
    test: Any,
    output: str | Path | None,
    progress: Listener | None,
    torchrun: Ranks | None,
) -> Run:
    data = open_dataset(data)
    config = config if isinstance(config, Config) else load_config(config, data=data)
    sources = {"train": data, "validation": validation, "test": test}
    given = {name: source for name, source in sources.items() if source is not None}
    target = None if output is None else Path(output)
    if target is not None:
        run_directory.check_output(target)
    config = with_models_placed(config)
    if target is not None:
        _require_models_stay(config, target)
    with opened(store) as there:
        return _train(config, given, there, partial(_begun, target), progress, torchrun)


def resume_run(
    path: str | Path,
    store: StoreLike = None,
    *,
    data: Any = None,
    validation: Any = None,
    test: Any = None,
    progress: Listener | None = None,
) -> Run:
    """Go on with the run that was to be at ``path`` and was stopped: it ends with the weights of one that was not.

    It takes up its config, its data, of which only what was in memory has to be given again, and by default its store.
    Raises UsageError when there is no such run, it is finished, a process still trains it, or its data changed.
    """
    return launch.lead(
        partial(_continue, Path(path), store, {"train": data, "validation": validation, "test": test}, progress)
    )


def _continue(
    path: Path, store: StoreLike, given: Mapping[str, Any], progress: Listener | None, torchrun: Ranks | None
) -> Run:
    folder = run_directory.unfinished(path)
    started = resume.read_started(folder)
    for name, source in given.items():
        if source is not None and name not in started.sources:
            raise UsageError(f"The run at {path} had no {name} data. Leave it out.")
    sources = {name: source if given[name] is None else given[name] for name, source in started.sources.items()}
    for name, source in sources.items():
        if source is None:
            raise UsageError(f"The run at {path} had its {name} data in memory. Give it again.")
    config = load_config(checkpoint.read_config(folder))
    with opened(started.store if store is None else store) as there:
        return _train(
            config,
            sources,
            there,
            lambda _: run_directory.continued(path, folder),
            progress,
            torchrun,
            started.encoders,
        )


def _begun(output: Path | None, data: Dataset) -> AbstractContextManager[run_directory.NewRun]:
    return run_directory.new_run(output, stem(data))


def _train(
    config: Config,
    sources: Mapping[str, Any],
    store: Store,
    place_of: Callable[[Dataset], AbstractContextManager[run_directory.NewRun]],
    progress: Listener | None,
    torchrun: Ranks | None,
    encoders: Mapping[str, str] | None = None,
) -> Run:
    if config.preprocessing.split is None and len(sources) == 1:
        preprocessing = config.preprocessing.model_copy(update={"split": RandomSplit()})
        config = config.model_copy(update={"preprocessing": preprocessing})
    clock = Clock(progress)
    for text in config.notices:
        clock.say(text)
    check_models(config, store)
    prepared = prepare(config, sources, store, clock)
    started = _started(prepared, store)
    for name, before in (encoders or {}).items():
        if started.encoders.get(name) != before:
            raise EncoderError(
                f"The encoder of {name!r} is not the one that the run was begun with. Put its files back, or train again."
            )

    clock.begin("epochs")
    batches = {name: rows_of for name, rows_of in prepared.batches.items() if rows_of.rows}
    if "validation" not in batches:
        clock.say("There are no validation rows: every epoch is run, and the weights of the last one are kept.")
        if any(getattr(output, "calibration", False) for output in config.output_features):
            clock.say("calibration: true does nothing, because it needs validation rows.")
    manifests = {name: build.manifests for name, build in prepared.built.items()}
    versions = pins.data_versions(store, prepared.built)
    with (
        place_of(prepared.opened["train"]) as place,
        pins.pinned(store, place, manifests, clock),
    ):
        if place.folder != place.path and not (place.path / checkpoint.SUMMARY).exists():
            clock.say(
                f"The run at {place.path} was stopped before its end, and is replaced when this one is finished; until then, "
                f"cachestore train --resume {place.path} goes on with it."
            )
        checkpoint.write_config(place.folder, config.resolved())
        resume.write_started(place.folder, started)
        if progress is not None:
            progress(RunBegun(place.path, place.folder))
        job = Job(
            config=config,
            states=prepared.states,
            batches=batches,
            held_out=prepared.held_out,
            folder=place.folder,
            description={
                "config": config.resolved(),
                "features": {name: state.to_json() for name, state in prepared.states.items()},
                "manifests": manifests,
            },
        )
        outcome = launch.train(job, clock, torchrun, place.path)
        held_out = report.collect(
            place.folder, config, prepared, store, outcome.held, outcome.parameters, outcome.device
        )
        settings = outcome.settings
        run = Run(
            path=place.path,
            metrics=outcome.metrics,
            epochs=outcome.fitted.epochs,
            best_epoch=outcome.fitted.best_epoch,
            learning_rate=settings.learning_rate,
            batch_size=settings.batch_size,
            validation_field=settings.validation_field,
            validation_metric=settings.validation_metric,
            rows={name: rows_of.rows for name, rows_of in prepared.batches.items()},
            dropped=prepared.dropped,
            left_out=prepared.left_out,
            skipped=prepared.skipped,
            encoded=sum(build.encoded for build in prepared.built.values()),
            hits=sum(build.hits for build in prepared.built.values()),
            manifests=manifests,
            seconds=clock.end(),
            skipped_cells=prepared.skipped_cells,
            references=versions,
            store=str(store.root),
            encoder_learning_rates=dict(settings.encoder_rates),
        )
        checkpoint.write_summary(place.folder, run.to_json())
        resume.finished(place.folder)
    pins.release_replaced(store, place, clock)
    report.write(run.path, held_out, largest=report.LARGEST)
    return run


def with_models_placed(config: Config) -> Config:
    """Directories and files of models as absolute paths, so that the run can be used from another working directory."""
    inputs = []
    for feature in config.input_features:
        if isinstance(feature, EncodedInput):
            placed = {}
            for setting in _PLACES:
                name = getattr(feature.encoder, setting, None)
                if name is not None and (path := Path(name).expanduser()).exists():
                    placed[setting] = str(path.absolute())
            if placed:
                encoder = feature.encoder.model_copy(update=placed)
                feature = feature.model_copy(update={"encoder": encoder})  # noqa: PLW2901
        inputs.append(feature)
    return config.model_copy(update={"input_features": tuple(inputs)})


def _require_models_stay(config: Config, target: Path) -> None:
    """Raises UsageError when an encoder is one of the run that the new one would replace."""
    gone = target.resolve() / exported.FOLDER
    for feature in (*config.cached, *config.live):
        for setting in _PLACES:
            name = getattr(feature.encoder, setting, None)
            if name is not None and Path(name).is_absolute() and Path(name).resolve().is_relative_to(gone):
                raise UsageError(
                    f"The encoder of {feature.name!r} is one of the run at {target}, which the new one would replace. Name another "
                    "directory with --output."
                )


def _started(prepared: Prepared, store: Store) -> resume.Started:
    sources = {name: data.path for name, data in prepared.opened.items()}
    return resume.Started(
        sources={name: None if path is None else str(Path(path).resolve()) for name, path in sources.items()},
        store=str(store.root),
        encoders={
            name: fingerprint(state.spec).hex()
            for name, state in prepared.states.items()
            if isinstance(state, LiveState)
        },
    )


def stem(dataset: Dataset) -> str:
    """What the directory of a run on this data is called, unless it is told."""
    return "run" if dataset.path is None else dataset.path.name.split(".")[0] or "run"
