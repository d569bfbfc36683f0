"""`dptrain check`."""

from __future__ import annotations

from dptrain.commands.command import Command, Takes

CHECK = Command(
    name="check",
    line="is this network and pipeline fit for private training?",
    run="dptrain.commands.acts.check:check",
    about="Is this network, loss and pipeline fit for private training, and would the ledger grant it? Uses made-up "
    "data and the ledger's public facts only; charges nothing.",
    takes=Takes.HYDRA,
    examples=(
        "dptrain check recipe=chest_xray_pneumonia",
        "dptrain check model=densenet121 data.image_shape=[1,64,64]",
        "dptrain check model=densenet121 model.network._target_=monai.networks.nets.DenseNet169",
        "dptrain check model.network._target_=monai.networks.nets.resnet18 +model.network.spatial_dims=data.dims \\",
        "    +model.network.n_input_channels=data.channels ~model.network.in_channels ~model.network.channels "
        "model.batchnorm=replace",
    ),
    notes="An argument that only the named network takes is added with +, one that it does not take is removed with "
    "~.\ndata.outputs, data.channels, data.features and data.dims stand for the numbers that follow from the data."
    "\nA layer that no fast rule fits (the check names it) is trained with +model.rules.LAYER=one-by-one.",
    codes=(3, 4),
    sections=("model",),
)
