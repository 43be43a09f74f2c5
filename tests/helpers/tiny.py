"""Small valid data for tests, and what it takes to spoil it."""

import csv
import json
import pathlib
import sys
from unittest import mock

import jax
import numpy as np
from absl import flags
from flax import linen as nn

from sedjax.audio import spectral
from sedjax.audio.clips import recut
from sedjax.core.config import Config
from sedjax.core.task import MLPC_2025, OUTCOMES, Task
from sedjax.data.layout import Layout, read_layout
from sedjax.models.variables import example_inputs
from sedjax.training.configs import base_config, freeze

TINY_TASK = Task("tiny", ("Bell", "Crow", "Drum"), ((0, 1, 0, 5), (0, 2, 0, 10), (0, 3, 0, 15)))


def write_layout(path: pathlib.Path, task: Task = TINY_TASK, recordings: int | dict[str, int] = 10, seed: int = 0,
                 labels: bool = True, splits: bool = False) -> Layout:
    """A valid directory in MLPC layout without audio.

    Args:
      path: the directory; made if it is not there.
      task: its classes and costs; MLPC 2025 is the one that needs no costs.json.
      recordings: how many, of 11 to 40 frames (one of exactly 20), or frames by filename.
      seed: of the features and labels.
      labels: of 1 to 3 annotators, who disagree at times. A class lifts the embeddings column of its number, so
        that there is something to learn.
      splits: write splits.csv (60 / 20 / 20, in order).
    """
    rng = np.random.default_rng(seed)
    if isinstance(recordings, int):
        lengths = [20, *rng.integers(11, 41, recordings - 1).tolist()]
        recordings = {f"{100 + i}.mp3": length for i, length in enumerate(lengths)}
    for folder in ("audio_features", "labels") if labels else ("audio_features",):
        (path / folder).mkdir(parents=True, exist_ok=True)
    for filename, frames in recordings.items():
        active = rng.random((frames // 5 + 1, len(task.classes))).repeat(5, axis=0)[:frames] < 0.2
        embeddings = rng.standard_normal((frames, 16))
        embeddings[:, :len(task.classes)] += 4 * active[:, :16]
        stem = pathlib.PurePath(filename).stem
        np.savez(path / "audio_features" / f"{stem}.npz", embeddings=embeddings.astype(np.float16),
                 melspectrogram=rng.exponential(size=(frames, 64)).astype(np.float32),
                 mfcc=embeddings[:, np.arange(24) % 16].astype(np.float16))
        if labels:
            annotators = int(rng.integers(1, 4))
            heard = active[:, :, None] & (rng.random((frames, len(task.classes), annotators)) < 0.9)
            np.savez(path / "labels" / f"{stem}_labels.npz",
                     **{name: heard[:, i].astype(np.uint8) for i, name in enumerate(task.classes)})
    write_csv(path / "metadata.csv", ["filename", "duration"],
              [[filename, frames * task.frame_seconds] for filename, frames in recordings.items()])
    if splits:
        n = len(recordings)
        of = ["train"] * (n - 2 * (n // 5)) + ["validation"] * (n // 5) + ["test"] * (n // 5)
        write_csv(path / "splits.csv", ["filename", "split"], list(zip(recordings, of)))
    if task != MLPC_2025:
        costs = {name: dict(zip(OUTCOMES, row)) for name, row in zip(task.classes, task.costs)}
        (path / "costs.json").write_text(json.dumps(costs))
    return read_layout(path)


def small_fields(model: str) -> dict:
    """Fields that make any model tiny; those that it has not are to be left out."""
    return {"width": 64 if model == "atst_frame" else 16, "heads": 2, "layers": 1, "feed_forward": 16, "positions": 40,
            "head_width": 8, "channels": (2, 3), "atst_width": 64, "atst_layers": 1, "atst_feed_forward": 16}


def tiny_config(model: str = "embedding_transformer", **changes) -> Config:
    """A config that compiles in a second or two; `changes` are dotted keys with `__` for the dot."""
    fields = base_config(model).to_dict()
    fields["model"].update({key: value for key, value in small_fields(model).items() if key in fields["model"]})
    fields["data"].update(batch_size=8, eval_batch_size=8, max_frames=40, bucket_frames=40)
    fields["train"].update(duration="4 epochs")
    fields["optimizer"].update(learning_rate=1e-2)
    for key, value in changes.items():
        *section, name = key.split("__")
        (fields[section[0]] if section else fields)[name] = value
    return freeze(fields)


def drawn(model: nn.Module, widths: dict[str, int]) -> dict:
    """Variables of a model, drawn without compiling anything; the statistics of features are 0 and 1, as at first."""
    rng = np.random.default_rng(0)

    def draw(path, leaf) -> np.ndarray:
        noise = rng.normal(size=leaf.shape).astype(leaf.dtype)
        name = path[-1].key
        if path[0].key != "params":
            return np.full(leaf.shape, name.endswith(("var", "std")), leaf.dtype)
        if name == "scale":
            return (1 + 0.1 * noise).astype(leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if name == "kernel" else leaf.shape[0]
        return (noise / np.sqrt(fan_in)).astype(leaf.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model, widths))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def write_csv(path: pathlib.Path, header: list[str], rows: list) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def change_npz(path: pathlib.Path, **arrays: np.ndarray | None) -> None:
    """Replaces arrays of an npz file, adds them, or removes them (None)."""
    with np.load(path) as archive:
        held = dict(archive)
    held |= arrays
    np.savez(path, **{name: value for name, value in held.items() if value is not None})


def embed_alone(extractor, recording, sample_rate_hz: int | None = None) -> np.ndarray:
    """What an extractor of the sound gives for one recording."""
    stream = spectral.clips([recording], extractor.inputs, (), sample_rate_hz)
    (clip,) = recut(extractor.embed(recut(stream, extractor.max_frames), np.float32))
    return clip.features["embeddings"]


def run_command(module, *arguments: str) -> None:
    """Runs a command's main() on parsed flags, in this process; its flags are gone afterwards, for the next one."""
    before = set(flags.FLAGS)
    argv = [module.__name__, *map(str, arguments)]
    module.define_flags()
    defined = set(flags.FLAGS) - before
    try:
        with mock.patch.object(sys, "argv", argv):  # where ml_collections looks for --config.key=value
            remaining = flags.FLAGS(argv)
            defined = set(flags.FLAGS) - before  # not later: what main() imports may define flags that it keeps
            module.main(remaining)
    finally:
        for name in defined:
            delattr(flags.FLAGS, name)
