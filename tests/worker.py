"""One of two processes: trains with jit, and with pmap from device memory, evaluates, predicts, prints what it read."""

import json
import sys
from collections import Counter
from unittest import mock

from tiny import run_command

from sedjax import evaluate, input_pipeline, predict, train

SMALL = ["--config=configs/embedding_transformer_small.py", "--config.model.stem=linear", "--config.model.width=16",
         "--config.model.heads=2", "--config.model.layers=1", "--config.model.feed_forward=16",
         "--config.model.positions=40", "--config.model.head_width=8", "--config.data.max_frames=40",
         "--config.data.bucket_frames=40", "--config.data.batch_size=8", "--config.data.eval_batch_size=8",
         "--config.optimizer.warmup=0 steps", "--config.optimizer.schedule=constant"]


def main(source: str, records: str, folder: str, *cluster: str) -> None:
    read: Counter = Counter()
    found = input_pipeline.Records.read

    def watched(self, index, keys):
        read[index] += self.split == "train"
        return found(self, index, keys)

    with mock.patch.object(input_pipeline.Records, "read", watched):
        run_command(train, *SMALL, f"--config.data.path={records}", f"--workdir={folder}/jit",
                    "--config.train.duration=2 epochs", *cluster)
    run_command(train, *SMALL, f"--config.data.path={records}", f"--workdir={folder}/pmap",
                "--config.train.duration=1 epochs", "--config.parallel=pmap", "--config.data.placement=device",
                "--config.train.steps_per_call=2")
    process = cluster[-1][-1]
    run_command(evaluate, f"--workdir={folder}/jit", f"--json={folder}/{process}.json", "--checkpoint=last")
    run_command(predict, f"--workdir={folder}/pmap", f"--source={source}", f"--output={folder}/{process}.csv",
                "--split=test")
    print(json.dumps(sorted(read.elements())))


if __name__ == "__main__":
    main(*sys.argv[1:])
