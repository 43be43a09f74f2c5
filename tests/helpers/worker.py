"""One of two processes: trains with jit, with pmap, with interruptions; evaluates, predicts, prints what it read."""

import itertools
import json
import logging
import os
import signal
import sys
from collections import Counter
from unittest import mock

from tiny import run_command

from sedjax.commands import evaluate, predict, train
from sedjax.core.errors import UserError
from sedjax.data.records import Records
from sedjax.training import preemption

SMALL = ["--config=configs/embedding_transformer_small.py", "--config.model.stem=linear", "--config.model.width=16",
         "--config.model.layers=0", "--config.model.positions=40", "--config.model.head_width=8",
         "--config.data.max_frames=40", "--config.data.bucket_frames=40", "--config.data.batch_size=8",
         "--config.data.eval_batch_size=8", "--config.optimizer.warmup=0 steps", "--config.optimizer.schedule=constant"]


def train_until(question: int, *arguments: str) -> None:
    """Trains; before the training asks for the n-th time whether to stop, this process gets SIGTERM."""
    numbers = itertools.count(1)
    agreed = preemption.Stop.agreed

    def asked(stop):
        if next(numbers) == question:
            os.kill(os.getpid(), signal.SIGTERM)
        return agreed(stop)

    with mock.patch.object(preemption.Stop, "agreed", asked):
        run_command(train, *SMALL, *arguments)


def main(source: str, records: str, folder: str, *cluster: str) -> None:
    logging.getLogger("sedjax").setLevel(logging.INFO)
    read: Counter = Counter()
    found = Records.read

    def watched(self, index, keys):
        read[index] += self.split == "train"
        return found(self, index, keys)

    with mock.patch.object(Records, "read", watched):
        run_command(train, *SMALL, f"--config.data.path={records}", f"--workdir={folder}/jit",
                    "--config.train.duration=2 epochs", *cluster)
    run_command(train, *SMALL, f"--config.data.path={records}", f"--workdir={folder}/pmap",
                "--config.train.duration=1 epochs", "--config.parallel=pmap", "--config.data.placement=device",
                "--config.train.steps_per_call=2")
    process = cluster[-1][-1]
    resident = [f"--config.data.path={records}", f"--workdir={folder}/stopped", "--config.train.duration=2 epochs",
                "--config.data.placement=device", "--config.train.steps_per_call=2"]
    train_until(2 if process == "1" else 0, *resident)  # one is preempted, and the evaluation of both is cut off
    train_until(0, *resident)
    run_command(evaluate, f"--workdir={folder}/jit", f"--json={folder}/{process}.json", "--checkpoint=last")
    run_command(predict, f"--workdir={folder}/pmap", f"--source={source}", f"--output={folder}/{process}.csv",
                "--split=test")
    nowhere = f"{folder}/nowhere"
    for command, *arguments in (
            (train, *SMALL, f"--config.data.path={nowhere if process == '1' else records}", f"--workdir={nowhere}"),
            (predict, nowhere if process == "1" else __file__, f"--workdir={nowhere}", f"--output={nowhere}"),
            (predict, __file__, f"--workdir={folder}/{'nowhere' if process == '1' else 'jit'}", f"--output={nowhere}"),
            (predict, f"--source={source}", f"--workdir={folder}/pmap", f"--output={nowhere}/a.csv", "--split=test")):
        try:
            run_command(command, *arguments)
        except UserError as error:
            print(error)
    print(json.dumps(sorted(read.elements())))


if __name__ == "__main__":
    main(*sys.argv[1:])
