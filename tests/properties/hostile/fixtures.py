"""Small valid inputs of every command, made once; what is hostile is made of copies of them."""

import csv
import json
import pathlib
import shutil
from unittest import mock

import numpy as np
import soundfile
from tiny import TINY_TASK, change_npz, write_layout

from hostile import sandbox

ROOT = pathlib.Path(__file__).resolve().parents[3]
CONFIG = ROOT / "configs" / "conv_transformer_small.py"
SMALL = {"model.width": 8, "model.heads": 1, "model.layers": 1, "model.feed_forward": 8, "model.positions": 40,
         "model.head_width": 8, "model.channels": (2, 2), "data.batch_size": 8, "data.eval_batch_size": 8,
         "data.max_frames": 40, "data.bucket_frames": 40, "train.duration": "4 epochs", "train.patience": 0,
         "train.ema": 0.0, "optimizer.learning_rate": 0.3}
SUFFIXES = {"wav": {}, "flac": {}, "ogg": {}, "mp3": {}, "aiff": {}, "au": {}, "caf": {}, "w64": {}, "rf64": {},
            "voc": {}, "opus": {"format": "OGG", "subtype": "OPUS"}}


def small_flags(**changes) -> list[str]:
    """Flags of a config that compiles in a second or two; `changes` are keys with `__` for the dot."""
    fields = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"--config={CONFIG}", *(f"--config.{key}={value}" for key, value in fields.items())]


def make(folder: pathlib.Path) -> pathlib.Path:
    """Writes all fixtures into a folder."""
    write_layout(folder / "source", recordings=10, splits=True)
    write_layout(folder / "bare", recordings=3)
    for path in (folder / "bare/audio_features").iterdir():
        change_npz(path, embeddings=None)
    write_layout(folder / "others", recordings=10, splits=True, seed=1)
    for name in ("source", "others"):
        _succeed("records", "--source", folder / name, "--output",
                 folder / {"source": "records", "others": "other_records"}[name], "--features",
                 "embeddings,melspectrogram,mfcc")
    write_recordings(folder / "recordings")
    write_submissions(folder)
    _succeed("train", *small_flags(), f"--config.data.path={folder / 'records'}", f"--workdir={folder / 'workdir'}")
    _succeed("train", f"--config={ROOT / 'configs' / 'naive.py'}", f"--config.data.path={folder / 'records'}",
             "--config.data.max_frames=40", "--config.data.bucket_frames=40", f"--workdir={folder / 'naive'}")
    state = {key: np.zeros(shape, np.float32) for key, shape in _tensors().items()}
    np.savez(folder / "state.npz", **state)
    return folder


def make_more(folder: pathlib.Path) -> None:
    """Writes further fixtures, which the fuzzer spoils: outputs of earlier runs."""
    (folder / "three").mkdir()
    for name in ("wav.wav", "flac.flac", "ogg.ogg"):
        shutil.copy2(folder / "recordings" / name, folder / "three" / name)
    _succeed("extract", "--audio", folder / "three", "--output", folder / "extracted", "--features=mfcc")
    _succeed("soundscapes", "--output", folder / "cities", "--recordings=10", "--seconds_min=2", "--seconds_max=2",
             "--workers=1")
    _succeed("report", folder / "naive")


def write_recordings(folder: pathlib.Path) -> None:
    """Noise of 2 s in every container, which lossy codecs keep long."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for suffix, options in SUFFIXES.items():
        samples = 0.2 * np.sin(np.arange(32000) * 0.05)[:, None] + rng.uniform(-0.1, 0.1, (32000, 1))
        soundfile.write(folder / f"{suffix}.{suffix}", samples, 16000, **options)


def write_submissions(folder: pathlib.Path) -> None:
    """A ground truth and predictions of the tiny task, and its costs."""
    rng = np.random.default_rng(0)
    for name in ("truth.csv", "predictions.csv"):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            rows = [(f"{100 + i}.mp3", f"{1.2 * segment:.1f}", *rng.integers(0, 2, 3)) for i in range(4)
                    for segment in range(3)]
            csv.writer(file, lineterminator="\n").writerows([("filename", "onset", *TINY_TASK.classes), *rows])
    costs = {name: dict(zip(("TP", "FP", "TN", "FN"), row)) for name, row in zip(TINY_TASK.classes, TINY_TASK.costs)}
    (folder / "costs.json").write_text(json.dumps(costs))


def _tensors(width: int = 8, features: int = 16, classes: int = 3) -> dict[str, tuple[int, ...]]:
    """Shapes of a PyTorch checkpoint of the embedding-transformer with one layer."""
    layer = {"self_attn.in_proj_weight": (3 * width, width), "self_attn.in_proj_bias": (3 * width,),
             "self_attn.out_proj.weight": (width, width), "self_attn.out_proj.bias": (width,),
             "linear1.weight": (width, width), "linear1.bias": (width,), "linear2.weight": (width, width),
             "linear2.bias": (width,), **{f"norm{i}.{key}": (width,) for i in (1, 2) for key in ("weight", "bias")}}
    shapes = {"pos_encoder.pe": (40, width), "proj.0.weight": (width, features), "proj.0.bias": (width,),
              "proj.2.weight": (width, width), "proj.2.bias": (width,), "classifier.0.weight": (width, width),
              "classifier.0.bias": (width,), "classifier.3.weight": (classes, width), "classifier.3.bias": (classes,)}
    return shapes | {f"transformer.layers.0.{key}": shape for key, shape in layer.items()}


def _succeed(command: str, *arguments) -> None:
    with mock.patch.object(sandbox, "SECONDS", 300):  # there is much to compile
        result = sandbox.invoke(command, arguments)
    if result.status != 0 or result.crash:
        raise AssertionError(f"{command} on valid input: {result.crash or result.errors}")
