"""`dptrain train`."""

from __future__ import annotations

from dptrain.commands.command import Command, Takes
from dptrain.settings.names import GROUPS

TRAIN = Command(
    name="train",
    line="train under a plan that the ledger has granted",
    run="dptrain.commands.acts.train:train",
    about="Train under a plan that the ledger has granted. -m makes a sweep; --cfg job prints the configuration and "
    "stops.",
    takes=Takes.HYDRA,
    examples=(
        "dptrain train recipe=chest_xray_pneumonia privacy.target_epsilon=8",
        "dptrain train recipe=chest_xray_pneumonia debug=steps            # a few steps, charged like any other",
        "dptrain train -m recipe=chest_xray_pneumonia privacy.target_epsilon=1,2,4    # every trial is charged",
        "dptrain train training.resume=runs/…                 # go on after a crash; noise is never repeated",
        "dptrain train recipe=chest_xray_pneumonia --cfg job",
    ),
    notes=f"groups: {', '.join(GROUPS)}\ninterrupted: the charge is closed, unless the last lines say how to go on",
    codes=(3, 4, 5, 130),
    sections=("privacy", "optimizer", "training"),
)
