"""`python -m sedjax train`: trains until the cost on the validation split stops falling; the same command resumes."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags
from clu import parameter_overview
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from sedjax import (
    checkpoint,
    decisions,
    input_pipeline,
    losses,
    models,
    optimizer,
    parallel,
    preemption,
    steps,
    train_state,
    workdir,
)
from sedjax import config as config_lib
from sedjax.commands import atomic_output, require_no_arguments
from sedjax.config import Config
from sedjax.config import steps as duration_steps
from sedjax.errors import UserError
from sedjax.evaluate import make_evaluator
from sedjax.metric_writer import MetricWriter, open_writer

log = logging.getLogger("sedjax")


def define_flags() -> None:
    config_lib.define_flag()
    flags.DEFINE_string("workdir", None, "Folder for checkpoints and metrics; the same folder again resumes.",
                        required=True)


def main(argv: Sequence[str]) -> None:
    require_no_arguments(argv)
    with preemption.listen() as stop:
        train(config_lib.from_flag(), pathlib.Path(flags.FLAGS.workdir), stop)


def train(config: Config, folder: pathlib.Path, stop: preemption.Stop | None = None) -> checkpoint.Progress:
    """Trains in `folder`, from its last checkpoint if it has one; returns where the training ended.

    A request to `stop` ends it after the current step, which is saved.
    """
    stop = preemption.Stop() if stop is None else stop
    # Data.
    records = input_pipeline.open_records(config.data.path, "train")
    validation = input_pipeline.open_records(config.data.path, "validation")
    task = records.task
    model = models.build_from(config, task)
    widths = {key: entry["width"] for key, entry in records.features.items()}
    input_pipeline.require_features(widths, model.features, None, where=f"The dataset {config.data.path}")
    features = {**{key: records.features[key] for key in model.features}, "labels": records.labels}
    mesh = parallel.make_mesh()
    batch_size = config.data.batch_size
    parallel.require_divisible(batch_size, mesh, "data.batch_size")
    clips = input_pipeline.cut(records.lengths, config.data, task)
    per_epoch = input_pipeline.steps_per_epoch(clips, batch_size)

    @functools.lru_cache(maxsize=2)
    def plan(epoch: int) -> np.ndarray:
        return input_pipeline.order(clips, batch_size, config.data.pool_batches, config.train.seed, epoch)

    def read(number: int) -> steps.Batch:
        epoch, batch = divmod(number, per_epoch)
        return input_pipeline.read_batch(records, clips, plan(epoch)[batch], model.features, config.data,
                                         parallel.local_rows(batch_size))

    # Durations.
    total = duration_steps(config.train.duration, "train.duration", batch_size, per_epoch, 0)

    def every(key: str) -> int:
        return max(duration_steps(getattr(config.train, key), f"train.{key}", batch_size, per_epoch, total), 1)

    evaluate_every, save_every, log_every = every("evaluate_every"), every("save_every"), every("log_every")
    warmup = duration_steps(config.optimizer.warmup, "optimizer.warmup", batch_size, per_epoch, total)

    # State.
    workdir.prepare(folder, config, task, features)
    adamw = optimizer.make_optimizer(config.optimizer, warmup, total)
    state = train_state.create(model, adamw, features, config.train.ema > 0, config.train.seed)
    with atomic_output(folder / "parameters.txt") as path:
        path.write_text(parameter_overview.get_parameter_overview(state.params) + "\n")
    state = parallel.replicate(state, mesh)
    weights = losses.class_weights(config.loss, task)
    train_step = parallel.compile_step(functools.partial(
        steps.train_step, model=model, optimizer=adamw, weights=weights, accumulate=config.optimizer.accumulate,
        ema=config.train.ema), mesh, donate_state=True)
    key = parallel.replicate(jax.random.key(config.train.seed), mesh)
    evaluate = make_evaluator(model, config, task, validation, mesh)
    thresholds = decisions.candidates(config.decision, task)

    def validate(state: train_state.TrainState, step: int, progress: checkpoint.Progress,
                 writer: MetricWriter) -> checkpoint.Progress:
        try:
            found = evaluate(state.weights, thresholds, stop)
        except preemption.Stopped:
            return dataclasses.replace(progress, cost=None, evaluation_due=True)
        chosen, cost = decisions.tune(found.segments.sum(0), thresholds, task)
        progress = advance(progress, cost, chosen, config.train.patience, last=step == total)
        writer.write(step, {"epoch": step / per_epoch, "validation_loss": found.loss, "validation_cost": cost})
        log.info("Step %d, epoch %.1f: validation cost %.3f (best %.3f), loss %.4f.", step, step / per_epoch, cost,
                 progress.best_cost, found.loss)
        return progress

    with checkpoint.open_manager(folder, clean=True) as manager:
        progress = checkpoint.Progress(evaluation_due=total == 0)  # the naive baseline has nothing to learn
        restored = checkpoint.restore(manager, state)
        if restored:
            state, progress = restored
            log.info("Resuming at step %d.", int(state.step))
        if progress.finished:
            log.info("The training in %s is finished: best validation cost %.3f.", folder, progress.best_cost)
            return progress
        step = first = int(state.step)
        log.info("%d clips of %d frames at most, %d steps an epoch, up to %d steps, %d devices.", len(clips),
                     clips.frames.max(), per_epoch, total, mesh.size)

        batches = parallel.to_devices(input_pipeline.stream(read, first, total), mesh)
        bar = tqdm(batches, total=total, initial=first, unit="step", disable=None, dynamic_ncols=True)
        before = None  # scalars of the step before
        running: list[dict[str, jax.Array]] = []  # scalars of the steps since the last entry, still on the device
        with open_writer(folder, first) as writer, logging_redirect_tqdm([log]):
            if progress.evaluation_due:
                progress = validate(state, first, progress, writer)
                if not (progress.evaluation_due and restored):
                    checkpoint.save(manager, state, progress)
            for step, batch in enumerate(() if stop or progress.finished else bar, start=first + 1):
                state, scalars = train_step(state, batch, key)
                # The host is one step ahead of the device and no more, so that a stop need not wait for many.
                jax.block_until_ready(before)
                before = scalars
                stops = bool(stop) or manager.reached_preemption(step)
                evaluates = step % evaluate_every == 0 or step == total
                saves = evaluates or stops or step % save_every == 0
                if step % log_every == 0 or saves:
                    # The step just dispatched runs on while the scalars of those before it are fetched.
                    running, fetched = ([], [*running, scalars]) if saves else ([scalars], running)
                    write_training(writer, fetched, step - len(running), folder, manager.latest_step())
                else:
                    running.append(scalars)
                if evaluates:
                    progress = validate(state, step, progress, writer)
                    bar.set_postfix(cost=progress.cost, best=progress.best_cost)
                if saves:
                    checkpoint.save(manager, state, progress if evaluates else checkpoint.without_cost(progress))
                if progress.finished or stops or progress.evaluation_due:
                    break
    if not progress.finished:
        log.info("Stopped by %s after step %d%s.", stop.signal or "preemption", step, ": it is saved, and the same "
                 "command goes on from there" if manager.latest_step() == step else ", with nothing to save")
    return progress


def write_training(writer: MetricWriter, fetched: list[dict[str, jax.Array]], step: int, folder: pathlib.Path,
                   last_saved: int | None) -> None:
    """Writes the mean scalars of some steps up to `step`. Raises UserError if the loss is no longer finite."""
    values = jax.device_get(fetched)
    if not values:
        return
    means = {name: float(np.mean([value[name] for value in values])) for name in values[0]}
    if not np.isfinite(means["loss"]):
        bad = step - len(values) + 1 + int(np.argmin(np.isfinite([value["loss"] for value in values])))
        raise UserError(f"The loss became NaN or infinite at step {bad}; the last good checkpoint in {folder} is "
                        f"{'none yet' if last_saved is None else f'that of step {last_saved}'}: lower "
                        "optimizer.learning_rate or set optimizer.clip_norm, and start in a new workdir.")
    writer.write(step, means)


def advance(progress: checkpoint.Progress, cost: float, thresholds: np.ndarray, patience: int,
            last: bool) -> checkpoint.Progress:
    """The progress after an evaluation."""
    better = progress.best_cost is None or cost < progress.best_cost
    since = 0 if better else progress.evaluations_since_best + 1
    return checkpoint.Progress(cost=cost, thresholds=tuple(map(float, thresholds)),
                               best_cost=cost if better else progress.best_cost, evaluations_since_best=since,
                               finished=last or bool(patience and since >= patience))
