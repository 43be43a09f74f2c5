"""The training loop: from the last checkpoint until the validation cost stops falling."""

import dataclasses
import logging
import pathlib
import time

import jax
import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from sedjax.core import parallel
from sedjax.core.config import Config
from sedjax.core.files import atomic_output
from sedjax.data.records import open_records
from sedjax.scoring import decisions
from sedjax.scoring.evaluator import Evaluator, Stopped
from sedjax.training import checkpoint, experiment, preemption, train_state, workdir
from sedjax.training.metric_writer import MetricWriter, open_writer
from sedjax.training.progress import Progress, without_cost

log = logging.getLogger("sedjax")


def train(config: Config, folder: pathlib.Path, stop: preemption.Stop | None = None) -> Progress:
    """Trains in `folder`, from its last checkpoint if there is one; returns the final progress.

    A request to `stop` ends training after the current step, which is saved.
    """
    stop = preemption.Stop() if stop is None else stop
    with parallel.all_or_none():
        setup = experiment.prepare(config)
        validation = open_records(config.data.path, "validation")
    mesh, task, durations = setup.mesh, setup.task, setup.durations
    per_epoch, total = durations.per_epoch, durations.total
    if (rows := config.model.get("positions", 0)) > config.data.max_frames:
        log.warning("Clips have at most %d frames but model.positions is %d: the unused position embeddings only cost "
                    "memory.", config.data.max_frames, rows)
    if 0 < (crop := config.data.crop_frames) < min(rows, config.data.max_frames):
        log.warning("Crops have %d frames but model.positions is %d: later positions are evaluated but never "
                    "trained.", crop, rows)

    parallel.on_process_zero(lambda: workdir.require_usable(folder, config, task, setup.features))
    with parallel.all_or_none():
        state = setup.initial_state()
    from clu import parameter_overview  # an extra: what needs it has said so by now

    parameters = parameter_overview.get_parameter_overview(state.params)
    state = parallel.replicate(state, mesh)
    key = parallel.replicate(train_state.random_keys(config.train.seed)[1], mesh)
    with parallel.all_or_none():
        train_call, calls = experiment.compile_training(setup)
        evaluate = Evaluator(setup.model, config, task, validation, mesh, on_device=config.data.placement == "device",
                             frame_counts=False)
    thresholds = decisions.candidates(config.decision, task)

    def write_workdir() -> None:
        workdir.prepare(folder, config, task, setup.features)
        with atomic_output(folder / "parameters.txt", ours=True) as path:
            path.write_text(parameters + "\n")

    parallel.on_process_zero(write_workdir)  # after all checks of data and config

    def validate(state: train_state.TrainState, step: int, progress: Progress,
                 writer: MetricWriter, manager: checkpoint.Manager) -> Progress:
        try:
            evaluation = evaluate(state.eval_variables, thresholds, stop.agreed)
        except Stopped:
            return dataclasses.replace(progress, cost=None, evaluation_due=True)
        if len(evaluation.non_finite):
            raise checkpoint.diverged("loss on the validation split", step, manager)
        tuned, cost = decisions.tune(evaluation.segments.sum(0), thresholds, task)
        progress = advance(progress, step, cost, tuned, config.train.patience, last=step == total)
        manager.wait_until_finished()  # so that this entry is written shortly before its checkpoint
        writer.write(step, {"epoch": step / per_epoch, "validation_loss": evaluation.loss, "validation_cost": cost})
        log.info("Step %d, epoch %.1f: validation cost %.3f (best %.3f), loss %.4f.", step, step / per_epoch, cost,
                 progress.best_cost, evaluation.loss)
        return progress

    with checkpoint.open_manager(folder) as manager:
        # The naive baseline has nothing to learn.
        progress = Progress(evaluation_due=total == 0, task=task.digest)
        restored = checkpoint.restore(manager, state)
        if restored:
            state, progress = restored
            log.info("Resuming at step %d.", int(state.step))
        if progress.finished:
            log.info("Training in %s is already finished: best validation cost %.3f.", folder, progress.best_cost)
            return progress
        step = first = int(state.step)
        log.info("%d clips of up to %d frames, %d steps per epoch, at most %d steps, on %s.", len(setup.clips),
                 setup.clips.frames.max(), per_epoch, total, parallel.describe_devices())
        log.info("Compiling: the first steps take longer.")

        bar = tqdm(total=total, initial=first, unit="step", leave=None, dynamic_ncols=True,
                   disable=None if parallel.is_process_zero() else True)
        running: list[tuple] = []  # step counts and scalars of the calls since the last entry, still on the device
        previous, last, pace = first, None, _Pace(first, total)
        with open_writer(folder, first) as writer, logging_redirect_tqdm([log]), bar:
            if progress.evaluation_due:
                progress = validate(state, first, progress, writer, manager)
                if not (progress.evaluation_due and restored):
                    checkpoint.save(manager, state, progress)
            for step, inputs in () if stop.agreed() or progress.finished else calls(first, total):
                state, scalars = train_call(state, *inputs, key)
                # The host stays only one call ahead of the device, so that a stop need not wait for many.
                jax.block_until_ready(last)
                last = scalars
                stopping = stop.agreed()
                if previous % durations.log_every == 0:
                    write_training(writer, running, previous, manager)
                    running = []
                running.append((step - previous, scalars))
                if durations.saves(step) or stopping:
                    write_training(writer, running, step, manager)
                    running = []
                bar.update(step - previous)
                previous = step
                if bar.disable and (estimate := pace.line(step)):
                    log.info("Step %d of %d, epoch %.1f, %s.", step, total, step / per_epoch, estimate)
                if durations.evaluates(step):
                    progress = validate(state, step, progress, writer, manager)
                    bar.set_postfix(cost=progress.cost, best=progress.best_cost)
                if durations.saves(step) or stopping:
                    checkpoint.save(manager, state, progress if durations.evaluates(step)
                                    else without_cost(progress))
                if progress.finished or stopping or progress.evaluation_due:
                    break
    if progress.finished:
        log.info("Finished after step %d: best validation cost %.3f, at step %s, in %s. Next: sedjax evaluate "
                 "--workdir=%s", step, progress.best_cost, progress.best_step, folder, folder)
    else:
        log.info("Stopped by %s after step %d%s.", stop.signal or "a signal to another process", step,
                 ": checkpoint saved; run the same command to resume" if manager.latest_step() == step
                 else ", with nothing to save")
    return progress


class _Pace:
    """Estimates the remaining time now and then, for logs without a progress bar."""

    def __init__(self, first: int, total: int):
        self._first, self._total, self._started = first, total, time.monotonic()
        self._reported = self._started

    def line(self, step: int) -> str | None:
        """The estimated time left after a step, at most once a minute."""
        now = time.monotonic()
        if now - self._reported < 60:
            return None
        self._reported = now
        seconds = (now - self._started) / (step - self._first) * (self._total - step)
        return f"at most {tqdm.format_interval(seconds)} left"


def write_training(writer: MetricWriter, running: list[tuple], step: int, manager: checkpoint.Manager) -> None:
    """Writes the mean scalars of the calls up to `step`. Raises UserError if one is not finite."""
    if not running:
        return
    parts = [jax.tree.map(lambda x, count=count: np.atleast_1d(x)[:count], scalars)
             for count, scalars in jax.device_get(running)]
    values = jax.tree.map(lambda *calls: np.concatenate(calls), *parts)
    bad = {name: int(np.argmin(np.isfinite(value))) for name, value in values.items() if not np.isfinite(value).all()}
    if bad:
        name = min(bad, key=lambda name: (bad[name], name != "loss"))
        raise checkpoint.diverged(name.replace("_", " "), step - len(values[name]) + 1 + bad[name], manager)
    writer.write(step, {name: float(np.mean(value, dtype=np.float64)) for name, value in values.items()})


def advance(progress: Progress, step: int, cost: float, thresholds: np.ndarray, patience: int,
            last: bool) -> Progress:
    """The progress after the evaluation of a step."""
    better = progress.best_cost is None or cost < progress.best_cost
    since = 0 if better else progress.evaluations_since_best + 1
    return dataclasses.replace(progress, cost=cost, thresholds=tuple(map(float, thresholds)),
                               best_cost=cost if better else progress.best_cost,
                               best_step=step if better else progress.best_step, evaluations_since_best=since,
                               finished=last or bool(patience and since >= patience), evaluation_due=False)
