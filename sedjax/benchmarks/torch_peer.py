"""The embedding-transformer in PyTorch, trained as in the report, timed by `bench --against=torch`."""

import contextlib
import time

import torch
from torch import nn

from sedjax.benchmarks.throughput import Stretch, Training
from sedjax.scoring import losses


class EmbeddingTransformer(nn.Module):
    """The architecture of sedjax.models.registry.EmbeddingTransformer, built from PyTorch's own layers.

    As in the report's program, attention includes padding, so that it needs no mask.
    """

    def __init__(self, fields: dict, width_in: int, num_classes: int):
        super().__init__()
        width, hidden, dropout = fields["width"], fields["head_width"], fields["dropout"]
        self.proj = nn.Sequential(nn.Linear(width_in, width), nn.GELU(), nn.Linear(width, width))
        positions = 0.02 * torch.randn(1, fields["positions"], width)
        self.positions = nn.Parameter(positions) if fields["positions"] else None
        layer = nn.TransformerEncoderLayer(width, fields["heads"], fields["feed_forward"], dropout, batch_first=True,
                                           norm_first=fields["norm"] == "pre")
        norm = nn.LayerNorm(width) if fields["norm"] == "pre" else None
        self.transformer = nn.TransformerEncoder(layer, fields["layers"], norm, enable_nested_tensor=False)
        self.classifier = (nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout),
                                         nn.Linear(hidden, num_classes)) if hidden else nn.Linear(width, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj(x)
        if self.positions is not None:
            x = x + self.positions[:, : x.shape[1]]
        return self.classifier(self.transformer(x))


class Peer:
    """PyTorch training steps on the batches of a training, cut to their longest clip and read beforehand."""

    def __init__(self, training: Training, compiled: bool, precision: str):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._feed, self._precision, self._next = training.feed, precision, 0
        config, task = training.config, training.experiment.task
        torch.manual_seed(config.train.seed)
        width = training.experiment.features["embeddings"]["width"]
        model = EmbeddingTransformer(config.model, width, len(task.classes)).to(self.device)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        decay = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        rest = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
        self._optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": config.optimizer.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=config.optimizer.learning_rate, betas=(config.optimizer.beta1, config.optimizer.beta2))
        positive, _ = losses.class_weights(task, **vars(config.loss))
        self._loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(positive, device=self.device), reduction="none")
        self._model = torch.compile(model, dynamic=True) if compiled else model

    def stretch(self, count: int) -> Stretch:
        """Times the next `count` steps."""
        batches = [self._batch() for _ in range(count)]
        real = sum(int(mask.sum()) for _, _, mask in batches)
        padded = sum(mask.numel() for _, _, mask in batches)
        began = time.perf_counter()
        for features, targets, mask in batches:
            self.step(features.to(self.device), targets.to(self.device), mask.to(self.device))
        if self.device == "cuda":
            torch.cuda.synchronize()
        return Stretch(time.perf_counter() - began, real, padded)

    def step(self, features: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """One training step; returns the mean loss per real frame."""
        self._model.train()
        self._optimizer.zero_grad(set_to_none=True)
        half = self._precision == "bfloat16"
        with torch.autocast(self.device, torch.bfloat16) if half else contextlib.nullcontext():
            logits = self._model(features)
        loss = (self._loss(logits.float(), targets) * mask[..., None]).sum() / mask.sum()
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features, targets and mask of the next batch."""
        batch = self._feed.read(self._next)
        self._next += 1
        frames = int(batch["frame_mask"].sum(1).max())
        arrays = batch["features"]["embeddings"], batch["votes"] > 0, batch["frame_mask"]
        features, targets, mask = (torch.tensor(array[:, :frames]) for array in arrays)
        return features.float(), targets.float(), mask
