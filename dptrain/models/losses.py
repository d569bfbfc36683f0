"""Losses that give one value a record [N], so that no patient's loss depends on another's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from dptrain.errors import CheckRefused
from dptrain.vocabulary import task_spec

Loss: TypeAlias = nn.Module | Callable[[Tensor, Tensor], Tensor]  # (output, label) -> one value a record [N]


class BinaryLoss(nn.Module):
    """Cross-entropy of one logit a record: logits [N, 1] or [N], labels [N] in {0, 1} -> [N]."""

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        if logits.numel() != label.shape[0]:
            raise CheckRefused(
                f"task=binary takes one output a record, [N] or [N, 1]; the network gives {_shape(logits)}.",
                remedy="Give the network one output, or use task=multiclass.",
            )
        return functional.binary_cross_entropy_with_logits(
            logits.float().reshape(label.shape[0]), label.float().reshape(-1), reduction="none"
        )


class MulticlassLoss(nn.Module):
    """Cross-entropy: logits [N, C], labels [N] in 0…C−1 -> [N]."""

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), label.long().reshape(-1), reduction="none")


class MultilabelLoss(nn.Module):
    """Mean binary cross-entropy over the labels: logits [N, C], labels [N, C] in {0, 1} -> [N]."""

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        loss = functional.binary_cross_entropy_with_logits(logits.float(), label.float(), reduction="none")
        return loss.mean(dim=1)


class SegmentationLoss(nn.Module):
    """Soft Dice over the classes plus cross-entropy, a record at a time.

    logits [N, C, *space], labels [N, 1, *space] or [N, *space] in 0…C−1 -> [N]. The Dice term is computed
    within each record (MONAI's `batch=True` would couple the patients of a batch).
    """

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        logits = logits.float()
        if label.dim() == logits.dim():
            label = label.squeeze(1)
        label = label.long()
        entropy = functional.cross_entropy(logits, label, reduction="none").flatten(1).mean(1)
        probability = logits.softmax(1).flatten(2)
        classes = torch.arange(logits.shape[1], device=label.device)
        # one-hot by comparison: functional.one_hot reads values, which vmap forbids
        truth = (label.flatten(1)[:, None] == classes[:, None]).to(probability.dtype)
        overlap = (probability * truth).sum(2)
        total = probability.sum(2) + truth.sum(2)
        dice = (2 * overlap + 1) / (total + 1)  # 1 where a structure is absent and not found
        return entropy + 1 - dice[:, 1:].mean(1)


def _shape(output: Tensor) -> str:
    return "[" + ", ".join(["N", *map(str, output.shape[1:])]) + "]"


_LOSSES = {loss.__name__: loss for loss in (BinaryLoss, MulticlassLoss, MultilabelLoss, SegmentationLoss)}


def loss_for_task(task: str) -> nn.Module:
    """The per-record loss of a task. Raises ConfigError for a task that is not known."""
    return _LOSSES[task_spec(task).loss]()
