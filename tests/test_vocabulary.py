"""Words on disk keep their meaning, and a task is described in one place."""

from __future__ import annotations

import ast
import json

import pytest
import torch

from dptrain import models, vocabulary
from dptrain.errors import ConfigError
from dptrain.models.losses import loss_for_task
from dptrain.vocabulary import TASKS, BudgetKind, Format, Labels, RunStatus, Task, task_spec
from tests import house_counts

# What ledgers and run folders hold. A word may be added; none may ever go or change.
WRITTEN = {
    "Task": "binary multiclass multilabel segmentation",
    "Format": "csv decathlon dicom npz table",
    "Split": "train calibration validation test",
    "Purpose": "train evaluate audit",
    "BudgetKind": "open planned",
    "Basis": "budget public declared open permit",
    "RunStatus": "open running crashed complete interrupted",
    "Edition": "controller public",
    "Generator": "cryptographic fast",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_words_on_disk_stay(name: str) -> None:
    words = list(getattr(vocabulary, name))
    assert words[: len(WRITTEN[name].split())] == WRITTEN[name].split()
    assert json.dumps(words) == json.dumps(WRITTEN[name].split())


@pytest.mark.parametrize("task", Task)
def test_a_task_has_all_that_follows_from_it(task: Task) -> None:
    spec = TASKS[task]
    assert task_spec(str(task)) is spec
    loss = loss_for_task(task)
    assert type(loss).__name__ == spec.loss
    image, label = models.made_up((1, 6, 6), task, 5, 3, seed=0)
    assert tuple(label.shape[1:]) == spec.label_shape(3, (1, 6, 6))
    assert label.min() >= 0
    assert label.max() < spec.label_values(3)
    space = image.shape[2:] if spec.labels is Labels.MASK else ()
    logits = torch.zeros(5, 1 if spec.one_logit else 3, *space, dtype=torch.float64)
    assert loss(logits, label).shape == (5,)


def test_an_unknown_task_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="task=binry is unknown") as refused:
        task_spec("binry")
    assert refused.value.remedy == "Tasks: binary, multiclass, multilabel, segmentation."


MEMBERS_ALONE = {*Task, *Format, *BudgetKind, *RunStatus} - {"open"}  # other things are open as well


def literals(tree: ast.AST) -> set[str]:
    """Texts that a module compares something with, alone or in a tuple, list or set."""
    texts = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            inner = [e for side in sides if isinstance(side, ast.Tuple | ast.List | ast.Set) for e in side.elts]
            texts |= {e.value for e in (*sides, *inner) if isinstance(e, ast.Constant) and isinstance(e.value, str)}
    return texts


def test_nothing_is_compared_with_a_word_of_the_vocabulary_as_text() -> None:
    assert literals(ast.parse('task in ("binary", other) or "csv" != kind')) == {"binary", "csv"}
    for module in house_counts.read():
        assert not literals(module.tree) & MEMBERS_ALONE, module.name
