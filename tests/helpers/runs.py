"""Trainings in processes of their own, which can be killed."""

import os
import subprocess
import sys
from collections.abc import Sequence

from sedjax.training import checkpoint
from sedjax.training.progress import saved_steps

ARGUMENTS = [
    "train", "--config=configs/embedding_transformer.py", "--config.model.width=16", "--config.model.heads=2",
    "--config.model.layers=1", "--config.model.feed_forward=16", "--config.model.positions=40",
    "--config.model.head_width=8", "--config.data.batch_size=4", "--config.data.eval_batch_size=8",
    "--config.data.max_frames=40", "--config.data.bucket_frames=20", "--config.data.crop_frames=20",
    "--config.optimizer.learning_rate=0.01", "--config.train.ema=0.9", "--config.train.save_every=3 steps",
    "--config.train.log_every=2 steps", "--config.train.evaluate_every=4 steps", "--config.train.duration=16 steps"]
STEPS = 16

# `python -m sedjax`, but each batch takes as long as with a real model, and the process gets a signal when it reads
# a given batch: there is no other way to hit an evaluation of milliseconds.
RUN = """
import itertools, os, signal, time
from sedjax import __main__
from sedjax.data.feed import Feed

read = Feed.read
numbers = {split: itertools.count(1) for split in ("train", "validation")}

def slowly(feed, number):
    split = feed._source.split
    time.sleep(float(os.environ["SECONDS"]))
    if os.environ["SIGNAL_AT"] == f"{split} {next(numbers[split])}":  # several threads read
        os.kill(os.getpid(), signal.SIGTERM)
    return read(feed, number)

Feed.read = slowly
__main__.main()
"""


def start(records, workdir, signal_at: str = "", seconds: float = 0.0, arguments: Sequence[str] = ()
          ) -> subprocess.Popen:
    """Starts a training of STEPS steps, on one device.

    Args:
      records, workdir: of the training.
      signal_at: SIGTERM when it reads this batch: "train 7" or "validation 2".
      seconds: how long reading a batch takes.
      arguments: further ones.
    """
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "SIGNAL_AT": signal_at,
                   "SECONDS": str(seconds), "JAX_ENABLE_COMPILATION_CACHE": "1",
                   "JAX_COMPILATION_CACHE_DIR": str(records.parent / "compiled"),  # by the first of them, for all
                   "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    return subprocess.Popen([sys.executable, "-c", RUN, *ARGUMENTS, f"--config.data.path={records}",
                             f"--workdir={workdir}", *arguments],
                            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """What a process logs until it ends, with the expected exit status."""
    log = process.communicate(timeout=120)[1]
    assert process.returncode == status, log
    return log


def read_state(workdir):
    """All arrays of the last checkpoint, and its step."""
    directory = workdir / "checkpoints"
    step = saved_steps(directory)[-1]
    return checkpoint._read(directory, step, {"weights": None, "training": None})[0], step
