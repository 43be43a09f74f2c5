"""Speed of scoring in sedjax, and with data frames as in the course's scripts."""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sedjax.benchmarks import timing
from sedjax.core import grid
from sedjax.core.config import Config
from sedjax.core.task import Task
from sedjax.data.records import open_records
from sedjax.scoring import decisions, metrics


def scoring(config: Config, rounds: int = timing.ROUNDS) -> dict:
    """Seconds from frame probabilities of the test split to cost per class: ours, with data frames, and the ratio.

    The probabilities are random, since their values do not affect the time. The ratio is None without pandas.
    """
    records = open_records(config.data.path, "test")
    rng = np.random.default_rng(0)
    truth = [records.read(i, ())[1] > 0 for i in range(len(records.lengths))]
    probabilities = [rng.random(active.shape, np.float32) for active in truth]
    functions = {"sedjax": with_arrays(records.task)}
    with contextlib.suppress(ImportError):
        functions["pandas"] = with_data_frames(records.task)
    costs = [function(probabilities, truth) for function in functions.values()]
    np.testing.assert_allclose(costs[0], costs[-1], atol=1e-9)
    speeds = timing.compare({name: lambda run=run: timing.calls_per_second(lambda: run(probabilities, truth), 0)
                             for name, run in functions.items()}, "per_second", rounds)
    peer = speeds.get("pandas")
    return {"recordings": len(truth), "seconds": 1 / speeds["sedjax"]["per_second"],
            "peer_seconds": 1 / peer["per_second"] if peer else None, "ratio": peer["ratio"] if peer else None}


def with_arrays(task: Task, threshold: float = 0.5) -> Callable:
    """A function (frame probabilities, true frames) of all recordings -> cost per class, as in evaluation."""
    thresholds = np.full((1, len(task.classes)), threshold, np.float32)

    @jax.jit
    def count(probabilities: jax.Array, actual: jax.Array, mask: jax.Array) -> jax.Array:
        pooled = decisions.pool_segments(probabilities, mask, "max", task)
        return metrics.confusion_counts(
            decisions.active(pooled, thresholds), grid.any_frame(actual, task)[:, None],
            grid.any_frame(mask[..., None], task)[:, None, :, 0]).sum((0, 1))

    def cost(probabilities: list[np.ndarray], truth: list[np.ndarray]) -> np.ndarray:
        lengths = np.array([len(active) for active in truth])
        frames = grid.num_segments(int(lengths.max()), task) * task.frames_per_segment
        mask = np.arange(frames)[None] < lengths[:, None]
        padded = np.zeros((*mask.shape, len(task.classes)), np.float32)
        actual = np.zeros(padded.shape, bool)
        for i, length in enumerate(lengths):
            padded[i, :length], actual[i, :length] = probabilities[i], truth[i]
        return metrics.cost_per_class(np.asarray(count(padded, actual, jnp.asarray(mask))), task)

    return cost


def with_data_frames(task: Task, threshold: float = 0.5) -> Callable:
    """The same in plain pandas: a data frame per recording, grouped by segment, joined, compared by class."""
    import pandas as pd

    classes = list(task.classes)

    def segments(values: list[np.ndarray]) -> pd.DataFrame:
        parts = []
        for number, active in enumerate(values):
            frame = pd.DataFrame(active.astype(int), columns=classes)
            frame["onset"] = np.arange(len(active)) // task.frames_per_segment * task.segment_seconds
            part = frame.groupby("onset", as_index=False)[classes].max()
            part.insert(0, "filename", f"{number}.mp3")
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    def cost(probabilities: list[np.ndarray], truth: list[np.ndarray]) -> np.ndarray:
        predicted, actual = segments([array > threshold for array in probabilities]), segments(truth)
        both = actual.merge(predicted, on=["filename", "onset"], suffixes=("", " predicted"))
        costs = []
        for name, prices in zip(classes, task.cost_matrix):
            true, active = both[name] == 1, both[f"{name} predicted"] == 1
            rates = [(active & true).mean(), (active & ~true).mean(), (~active & ~true).mean(), (~active & true).mean()]
            costs.append(float(np.dot(rates, prices)) * task.segments_per_minute)
        return np.array(costs)

    return cost
