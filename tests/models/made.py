"""Networks that tests name in a configuration (with `dptrain.targets.ALLOWED` widened by this module)."""

from __future__ import annotations

from torch import Tensor, nn

HERE = f"{__name__}."


class SequenceFirst(nn.Module):
    """[N, 1, length, 8] -> [N, 1] through an attention layer that takes the sequence before the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
        self.body = nn.Linear(8, 4)
        self.out = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x[:, 0].transpose(0, 1)).transpose(0, 1)
        return self.out(self.body(y.mean(1)).tanh())
