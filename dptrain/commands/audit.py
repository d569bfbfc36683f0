"""`dptrain audit`."""

from __future__ import annotations

from dptrain.commands.command import Command, Takes
from dptrain.terminal.words import Word

AUDIT = Command(
    name="audit",
    line="measure the risk that remains, patient by patient",
    run="dptrain.commands.acts.audit:audit",
    about="""\
Measure the risk that remains, patient by patient: train reference models on random halves of the patients, attack
them, and plant canaries to test the promise. Charges nothing; needs the ledger's leave. Everything it writes is
restricted: restricted/audit/audit.json (aggregates), patients.csv (pseudonymised), scores.npz.""",
    words={"run": Word(str, "the run folder; without one, recipe=… says what is audited", None)},
    takes=Takes.HYDRA,
    examples=(
        "dptrain audit run=runs/demo",
        "dptrain audit run=runs/demo audit.game=release audit.confirm=5     # the most exposed, on fresh models",
        "dptrain audit run=runs/demo audit.models=128 audit.attack=lira_online",
        "dptrain audit recipe=chest_xray_pneumonia privacy.target_epsilon=1   # without a run",
        "dptrain audit -m recipe=chest_xray_pneumonia privacy.target_epsilon=1,2,8 hydra/launcher=joblib",
    ),
    notes="""\
Of a run audit.…, ledger.…, data.root, training.device and training.chunk can be set.
audit.attack decides the AUCs, the TPRs and the ROC; who counts as exposed is decided by exact tests of its own.
Mislabelled canaries are planted from audit.canary_trainings=16 on; with fewer all are gradient-aligned.
An audit that was interrupted goes on where it stopped when the same command is given again; one that was finished
is told again, without training anything or asking the ledger.""",
    codes=(3, 5, 6),
    sections=("audit",),
)
