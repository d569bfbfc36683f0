"""Networks made fit for private training, and the check that comes before the first charge."""

from dptrain.models.build import build
from dptrain.models.nets import BodyAndHead, cnn1d, linear_head, mlp, sequential, small_cnn, unet3d
from dptrain.models.pretrained import pretrained_efficientnet_lite
from dptrain.models.private import Change, FrozenBatchNorm, make_private
from dptrain.models.split import head_name, split_frozen
from dptrain.models.weights import file_sha256, load_weights, read_weights

__all__ = [
    "BodyAndHead",
    "Change",
    "FrozenBatchNorm",
    "build",
    "cnn1d",
    "file_sha256",
    "head_name",
    "linear_head",
    "load_weights",
    "make_private",
    "mlp",
    "pretrained_efficientnet_lite",
    "read_weights",
    "sequential",
    "small_cnn",
    "split_frozen",
    "unet3d",
]
