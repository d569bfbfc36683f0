"""Networks made fit for private training, and the check that comes before the first charge."""

from dptrain.models.build import build
from dptrain.models.draws import FixedDraws
from dptrain.models.losses import loss_for_task
from dptrain.models.nets import (
    BodyAndHead,
    cnn1d,
    first_output,
    linear_head,
    mlp,
    sequential,
    small_cnn,
    unet3d,
)
from dptrain.models.preflight import Finding, check_separable, made_up, preflight, print_findings, refuse
from dptrain.models.pretrained import pretrained_efficientnet_lite
from dptrain.models.private import Change, FrozenBatchNorm, make_private
from dptrain.models.split import head_name, split_frozen
from dptrain.models.tracing import trace
from dptrain.models.ways import LONGEST_HOURS, Way, hours_alone, last_digits, proof
from dptrain.models.weights import ModelStore

__all__ = [
    "LONGEST_HOURS",
    "BodyAndHead",
    "Change",
    "Finding",
    "FixedDraws",
    "FrozenBatchNorm",
    "ModelStore",
    "Way",
    "build",
    "check_separable",
    "cnn1d",
    "first_output",
    "head_name",
    "hours_alone",
    "last_digits",
    "linear_head",
    "loss_for_task",
    "made_up",
    "make_private",
    "mlp",
    "preflight",
    "pretrained_efficientnet_lite",
    "print_findings",
    "proof",
    "refuse",
    "sequential",
    "small_cnn",
    "split_frozen",
    "trace",
    "unet3d",
]
