"""What a network takes from its data: outputs, channels, length and dimensions, unless they are set."""

from __future__ import annotations

import pytest

from dptrain.errors import ConfigError
from dptrain.settings import load

TABLE = ["data=table", "+data.table.numeric.age=[0,100]", "+data.table.numeric.weight=[0,200]"]
THREE = ["data.task=multiclass", "data.classes=[a,b,c]"]


@pytest.mark.parametrize(
    ("words", "argument", "number"),
    [
        ([], "num_classes", 1),
        (THREE, "num_classes", 3),
        ([*THREE, "data.task=multilabel", "data.columns.label=[a,b,c]"], "num_classes", 3),
        (["data.image_shape=[3,32,32]"], "in_channels", 3),
        (["data.image_shape=[3,32,32]", "model.network.in_channels=2"], "in_channels", 2),
        (["model=densenet121", "data.image_shape=[2,32,32,32]"], "spatial_dims", 3),
        (["model=densenet121", *THREE], "out_channels", 3),
        (["model=unet3d", "data.task=segmentation", "data.classes=[liver]"], "out_channels", 2),
        (["model=mlp", *TABLE], "in_features", 2),
        (["model=linear", "data.image_shape=[1,8,8]"], "in_features", 64),
        (["+model.network.extra=data.features", "data.image_shape=[1,8,8]"], "extra", 64),
    ],
)
def test_arguments_follow_from_the_data_unless_they_are_set(words: list[str], argument: str, number: int) -> None:
    assert load(words).model.network[argument] == number


def test_layers_one_after_another_are_told_too() -> None:
    modules = "model.network.modules=[{_target_: torch.nn.Flatten}, {_target_: torch.nn.Linear, in_features: \
data.features, out_features: data.outputs}]"
    assert load(["model=sequential", modules]).model.network["modules"][1]["in_features"] == 64 * 64


def test_what_stands_for_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing that a network can be told") as caught:
        load(["model.network.num_classes=data.output"])
    assert "data.outputs" in str(caught.value)
