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
from sedjax.data.feed import Feed
from sedjax.data.records import open_records
from sedjax.scoring import decisions
from sedjax.scoring.evaluator import Evaluator, Stopped
from sedjax.training import checkpoint, experiment, preemption, train_state, workdir
from sedjax.training.metric_writer import MetricWriter, open_writer
from sedjax.training.progress import Progress

log = logging.getLogger("sedjax")


def train(config: Config, folder: pathlib.Path, stop: preemption.Stop | None = None) -> Progress:
    """Trains in `folder`, from its last checkpoint if there is one; returns the final progress.

    A request to `stop` ends training after the current step, which is saved.
    """
    stop = preemption.Stop() if stop is None else stop
    with parallel.all_or_none():
        setup = experiment.prepare(config)
        validation = open_records(config.data.path, "validation")
    if (rows := config.model.get("positions", 0)) > config.data.max_frames:
        log.warning("Clips have at most %d frames but model.positions is %d: the unused position embeddings only cost "
                    "memory.", config.data.max_frames, rows)
    if 0 < (crop := config.data.crop_frames) < min(rows, config.data.max_frames):
        log.warning("Crops have %d frames but model.positions is %d: later positions are evaluated but never "
                    "trained.", crop, rows)

    parallel.on_process_zero(lambda: workdir.require_usable(folder, config, setup.task, setup.features))
    with parallel.all_or_none():
        state = setup.initial_state()
    from clu import parameter_overview  # an extra: what needs it has said so by now

    parameters = parameter_overview.get_parameter_overview(state.params)
    state = parallel.replicate(state, setup.mesh)
    with parallel.all_or_none():
        feed = setup.open_feed()
        evaluate = Evaluator(setup.model, config, setup.task, validation, setup.mesh,
                             on_device=config.data.placement == "device", frame_counts=False)

    def write_workdir() -> None:
        workdir.prepare(folder, config, setup.task, setup.features)
        with atomic_output(folder / "parameters.txt", ours=True) as path:
            path.write_text(parameters + "\n")

    parallel.on_process_zero(write_workdir)  # after all checks of data and config
    with checkpoint.open_manager(folder) as manager:
        # The naive baseline has nothing to learn.
        progress = Progress(evaluation_due=setup.durations.total == 0, task=setup.task.digest)
        if restored := checkpoint.restore(manager, state):
            state, progress = restored
            log.info("Resuming at step %d.", int(state.step))
        if progress.finished:
            log.info("Training in %s is already finished: best validation cost %.3f.", folder, progress.best_cost)
            return progress
        return _loop(setup, feed, evaluate, state, progress, folder, manager, stop)


def _loop(setup: experiment.Experiment, feed: Feed, evaluate: Evaluator, state: train_state.TrainState,
          progress: Progress, folder: pathlib.Path, manager: checkpoint.Manager, stop: preemption.Stop) -> Progress:
    """Trains from a state and its progress until the end, or a stop; returns the last progress."""
    durations, (clips, _) = setup.durations, setup.plan.epoch(0)
    first, total = int(state.step), durations.total
    log.info("%d clips of up to %d frames, %d steps per epoch, at most %d steps, on %s.", len(clips),
             clips.frames.max(), durations.per_epoch, total, parallel.describe_devices())
    log.info("Compiling: the first steps take longer.")
    train_call = feed.compile(setup.step, donate_state=True)
    key = parallel.replicate(train_state.random_keys(setup.config.train.seed)[1], setup.mesh)
    bar = tqdm(total=total, initial=first, unit="step", leave=None, dynamic_ncols=True,
               disable=None if parallel.is_process_zero() else True)
    pace, due = _Pace(first, total), experiment.Due()
    with open_writer(folder, first) as writer, logging_redirect_tqdm([log]), bar:
        entry = Entry(writer, manager, first)
        if progress.evaluation_due:
            progress = _validate(setup, evaluate, state, progress, manager, writer, stop)
            checkpoint.save(manager, state, progress)
        for step, inputs in () if stop.agreed() or progress.finished else feed.calls(first, total):
            state, scalars = train_call(state, *inputs, key)
            bar.update(step - entry.step)
            entry.add(step, scalars, write=due.log)
            stopping = stop.agreed()
            due = durations.due(step, stopping)
            if due.save:
                entry.write()
            if bar.disable and (estimate := pace.line(step)):
                log.info("Step %d of %d, epoch %.1f, %s.", step, total, step / durations.per_epoch, estimate)
            if due.evaluate:
                progress = _validate(setup, evaluate, state, progress, manager, writer, stop)
                bar.set_postfix(cost=progress.cost, best=progress.best_cost)
            if due.save:
                progress = progress if due.evaluate else dataclasses.replace(progress, cost=None)
                checkpoint.save(manager, state, progress)
            if progress.finished or stopping or progress.evaluation_due:
                break
    manager.wait_until_finished()  # the last checkpoint counts only now
    if progress.finished:
        log.info("Finished after step %d: best validation cost %.3f, at step %s, in %s. Next: sedjax evaluate "
                 "--workdir=%s", entry.step, progress.best_cost, progress.best_step, folder, folder)
    else:
        log.info("Stopped by %s after step %d%s.", stop.signal or "a signal to another process", entry.step,
                 ": checkpoint saved; run the same command to resume" if manager.latest_step() == entry.step
                 else ", with nothing to save")
    return progress


def _validate(setup: experiment.Experiment, evaluate: Evaluator, state: train_state.TrainState, progress: Progress,
              manager: checkpoint.Manager, writer: MetricWriter, stop: preemption.Stop) -> Progress:
    """The progress after an evaluation, which stays due if a stop interrupts it."""
    config, step, epoch = setup.config, int(state.step), int(state.step) / setup.durations.per_epoch
    thresholds = decisions.candidates(config.decision, setup.task)
    try:
        evaluation = evaluate(state.eval_variables, thresholds, stop.agreed)
    except Stopped:
        return dataclasses.replace(progress, cost=None, evaluation_due=True)
    if len(evaluation.non_finite):
        raise checkpoint.diverged("loss on the validation split", step, manager)
    tuned, cost = decisions.tune(evaluation.segments.sum(0), thresholds, setup.task)
    progress = advance(progress, step, cost, tuned, config.train.patience, last=step == setup.durations.total)
    manager.wait_until_finished()  # so that this entry is written shortly before its checkpoint
    writer.write(step, {"epoch": epoch, "validation_loss": evaluation.loss, "validation_cost": cost})
    log.info("Step %d, epoch %.1f: validation cost %.3f (best %.3f), loss %.4f.", step, epoch, cost,
             progress.best_cost, evaluation.loss)
    return progress


class Entry:
    """The next entry of the training loss, from the scalars of the steps up to `step`, which stay on the device."""

    def __init__(self, writer: MetricWriter, manager: checkpoint.Manager, step: int):
        self.step, self._writer, self._manager = step, writer, manager
        self._calls: list[tuple[int, dict]] = []  # number of steps and their scalars

    def add(self, step: int, scalars: dict, write: bool = False) -> None:
        """Adds the scalars of a call that was just sent, when the previous call is finished; first may write the entry.

        So the host stays only one call ahead of the device, and a stop need not wait for many; and the device has work
        while the entry is written.
        """
        jax.block_until_ready(self._calls[-1:])
        if write:
            self.write()
        self._calls.append((step - self.step, scalars))
        self.step = step

    def write(self) -> None:
        """Writes the means, if there were steps since the last entry. Raises UserError if a scalar is not finite."""
        if not self._calls:
            return
        calls, self._calls = jax.device_get(self._calls), []
        values = {name: np.concatenate([np.atleast_1d(scalars[name])[:count] for count, scalars in calls])
                  for name in calls[0][1]}
        bad = [(int(np.argmin(np.isfinite(value))), name != "loss", name) for name, value in values.items()
               if not np.isfinite(value).all()]
        if bad:
            index, _, name = min(bad)
            step = self.step - len(values[name]) + 1 + index
            raise checkpoint.diverged(name.replace("_", " "), step, self._manager)
        self._writer.write(self.step, {name: float(np.mean(value, dtype=np.float64)) for name, value in values.items()})


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


def advance(progress: Progress, step: int, cost: float, thresholds: np.ndarray, patience: int,
            last: bool) -> Progress:
    """The progress after the evaluation of a step."""
    better = progress.best_cost is None or cost < progress.best_cost
    since = 0 if better else progress.evaluations_since_best + 1
    return dataclasses.replace(progress, cost=cost, thresholds=tuple(map(float, thresholds)),
                               best_cost=cost if better else progress.best_cost,
                               best_step=step if better else progress.best_step, evaluations_since_best=since,
                               finished=last or bool(patience and since >= patience), evaluation_due=False)
