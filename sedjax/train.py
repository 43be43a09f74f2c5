"""`python -m sedjax train`: trains until the cost on the validation split stops falling; the same command resumes."""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags
from clu import parameter_overview
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from sedjax import checkpoint, decisions, experiment, input_pipeline, parallel, preemption, train_state, workdir
from sedjax import config as config_lib
from sedjax.commands import require_no_arguments
from sedjax.config import Config
from sedjax.evaluate import Evaluator
from sedjax.files import atomic_output
from sedjax.metric_writer import MetricWriter, open_writer

log = logging.getLogger("sedjax")


def define_flags() -> None:
    config_lib.define_flag()
    parallel.define_flags()
    flags.adopt_module_key_flags(parallel)
    flags.DEFINE_string("workdir", None, "Folder for checkpoints and metrics; the same folder again resumes.",
                        required=True)


def main(argv: Sequence[str]) -> None:
    require_no_arguments(argv)
    parallel.start()
    with preemption.listen() as stop:
        train(config_lib.from_flag(), pathlib.Path(flags.FLAGS.workdir), stop)


def train(config: Config, folder: pathlib.Path, stop: preemption.Stop | None = None) -> checkpoint.Progress:
    """Trains in `folder`, from its last checkpoint if it has one; returns where the training ended.

    A request to `stop` ends it after the current step, which is saved.
    """
    stop = preemption.Stop() if stop is None else stop
    with parallel.together():
        setup = experiment.prepare(config)
        validation = input_pipeline.open_records(config.data.path, "validation")
    mesh, task, durations = setup.mesh, setup.task, setup.durations
    per_epoch, total = durations.per_epoch, durations.total
    if (rows := config.model.get("positions", 0)) > config.data.max_frames:
        log.warning("Clips have %d frames at most but model.positions is %d: the optimizer carries rows that no clip "
                    "uses.", config.data.max_frames, rows)
    if 0 < (crop := config.data.crop_frames) < min(rows, config.data.max_frames):
        log.warning("Crops have %d frames but model.positions is %d: evaluation uses positions that no crop "
                    "trains.", crop, rows)

    parallel.on_first(lambda: workdir.require_usable(folder, config, task, setup.features))
    with parallel.together():
        state = setup.initial_state()
    parameters = parameter_overview.get_parameter_overview(state.params)
    state = parallel.replicate(state, mesh)
    key = parallel.replicate(train_state.random_keys(config.train.seed)[1], mesh)
    with parallel.together():
        train_call, calls = experiment.compile_training(setup)
        evaluate = Evaluator(setup.model, config, task, validation, mesh, resident=config.data.placement == "device",
                             frame_counts=False)
    thresholds = decisions.candidates(config.decision, task)

    def write_beginning() -> None:
        workdir.prepare(folder, config, task, setup.features)
        with atomic_output(folder / "parameters.txt", ours=True) as path:
            path.write_text(parameters + "\n")

    parallel.on_first(write_beginning)  # not earlier: what is wrong with the data or the config has been said by now

    def validate(state: train_state.TrainState, step: int, progress: checkpoint.Progress,
                 writer: MetricWriter, manager: checkpoint.Manager) -> checkpoint.Progress:
        try:
            found = evaluate(state.weights, thresholds, stop)
        except preemption.Stopped:
            return dataclasses.replace(progress, cost=None, evaluation_due=True)
        if len(found.non_finite):
            raise checkpoint.diverged("loss on the validation split", step, manager)
        chosen, cost = decisions.tune(found.segments.sum(0), thresholds, task)
        progress = advance(progress, step, cost, chosen, config.train.patience, last=step == total)
        manager.wait_until_finished()  # so that this entry is not long ahead of its checkpoint
        writer.write(step, {"epoch": step / per_epoch, "validation_loss": found.loss, "validation_cost": cost})
        log.info("Step %d, epoch %.1f: validation cost %.3f (best %.3f), loss %.4f.", step, step / per_epoch, cost,
                 progress.best_cost, found.loss)
        return progress

    with checkpoint.open_manager(folder) as manager:
        # The naive baseline has nothing to learn.
        progress = checkpoint.Progress(evaluation_due=total == 0, task=task.digest)
        restored = checkpoint.restore(manager, state)
        if restored:
            state, progress = restored
            log.info("Resuming at step %d.", int(state.step))
        if progress.finished:
            log.info("The training in %s is finished: best validation cost %.3f.", folder, progress.best_cost)
            return progress
        step = first = int(state.step)
        log.info("%d clips of %d frames at most, %d steps an epoch, up to %d steps, %d devices.", len(setup.clips),
                 setup.clips.frames.max(), per_epoch, total, mesh.size)

        bar = tqdm(total=total, initial=first, unit="step", leave=None, disable=None if parallel.is_first() else True,
                   dynamic_ncols=True)
        running: list[tuple] = []  # steps and scalars of the calls since the last entry, still on the device
        before, last = first, None
        with open_writer(folder, first) as writer, logging_redirect_tqdm([log]), bar:
            if progress.evaluation_due:
                progress = validate(state, first, progress, writer, manager)
                if not (progress.evaluation_due and restored):
                    checkpoint.save(manager, state, progress)
            for step, inputs in () if stop.agreed() or progress.finished else calls(first, total):
                state, scalars = train_call(state, *inputs, key)
                # The host is one call ahead of the device and no more, so that a stop need not wait for many.
                jax.block_until_ready(last)
                last = scalars
                stops = stop.agreed()
                if before % durations.log_every == 0:
                    write_training(writer, running, before, manager)
                    running = []
                running.append((step - before, scalars))
                if durations.saves(step) or stops:
                    write_training(writer, running, step, manager)
                    running = []
                bar.update(step - before)
                before = step
                if durations.evaluates(step):
                    progress = validate(state, step, progress, writer, manager)
                    bar.set_postfix(cost=progress.cost, best=progress.best_cost)
                if durations.saves(step) or stops:
                    checkpoint.save(manager, state, progress if durations.evaluates(step)
                                    else checkpoint.without_cost(progress))
                if progress.finished or stops or progress.evaluation_due:
                    break
    if not progress.finished:
        log.info("Stopped by %s after step %d%s.", stop.signal or "a signal to another process", step,
                 ": it is saved, and the same command resumes there" if manager.latest_step() == step
                 else ", with nothing to save")
    return progress


def write_training(writer: MetricWriter, running: list[tuple], step: int, manager: checkpoint.Manager) -> None:
    """Writes the mean of the scalars that calls returned, up to `step`. Raises UserError if one is not finite."""
    if not running:
        return
    taken = [jax.tree.map(lambda x, count=count: np.atleast_1d(x)[:count], found)
             for count, found in jax.device_get(running)]
    values = jax.tree.map(lambda *calls: np.concatenate(calls), *taken)
    bad = {name: int(np.argmin(np.isfinite(value))) for name, value in values.items() if not np.isfinite(value).all()}
    if bad:
        name = min(bad, key=lambda name: (bad[name], name != "loss"))
        raise checkpoint.diverged(name.replace("_", " "), step - len(values[name]) + 1 + bad[name], manager)
    writer.write(step, {name: float(np.mean(value, dtype=np.float64)) for name, value in values.items()})


def advance(progress: checkpoint.Progress, step: int, cost: float, thresholds: np.ndarray, patience: int,
            last: bool) -> checkpoint.Progress:
    """The progress after an evaluation of a step."""
    better = progress.best_cost is None or cost < progress.best_cost
    since = 0 if better else progress.evaluations_since_best + 1
    return dataclasses.replace(progress, cost=cost, thresholds=tuple(map(float, thresholds)),
                               best_cost=cost if better else progress.best_cost,
                               best_step=step if better else progress.best_step, evaluations_since_best=since,
                               finished=last or bool(patience and since >= patience), evaluation_due=False)
