"""`dptrain check`."""

from __future__ import annotations

from dptrain.commands.command import Command, Takes

CHECK = Command(
    name="check",
    line="is this network and pipeline fit for private training?",
    run="dptrain.commands.acts.check:check",
    about="Is this network, loss and pipeline fit for private training? Uses made-up data only; charges nothing.",
    takes=Takes.HYDRA,
    examples=(
        "dptrain check recipe=chest_xray_pneumonia",
        "dptrain check model=densenet121 data.image_shape=[1,64,64]",
        "dptrain check model=densenet121 model.network._target_=monai.networks.nets.DenseNet169",
        "dptrain check model.network._target_=monai.networks.nets.resnet18 +model.network.spatial_dims=2 \\",
        "    +model.network.n_input_channels=1 ~model.network.in_channels ~model.network.channels "
        "model.batchnorm=replace",
    ),
    notes="An argument that only the named network takes is added with +, one that it does not take is removed with "
    "~.\nA layer that no fast rule fits (the check names it) is trained with +model.rules.LAYER=one-by-one.",
    codes=(4,),
    sections=("model",),
)
