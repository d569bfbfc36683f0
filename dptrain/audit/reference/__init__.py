"""Train reference models: many at once, each with its own patients, start, draws and noise; keep scores only.

Four ways, chosen by what is trained:

- *linear*: one layer on fixed features. Patient gradients have a closed form; every step is two matrix
  products for all models together.
- *dense*: a chain of fully connected layers and activations. As above, layer by layer.
- *stacked*: any other small network, with `torch.func`: vmap over models of vmap over records of grad. Many times
  faster than one after another on a GPU, slower on a CPU (benchmarks/results/audit.md).
- *engine*: the training loop of the run itself, one model after another, in as many processes as asked for.
  The canaries of a promise go this way, since only it runs the code that made the promise.

In all of them a patient's gradient is the mean over the records drawn, its norm is taken over all layers, and
it is clipped before it is summed; noise is added once a step; the sum is divided by the plan's expected batch.
"""

from dptrain.audit.reference.engine import engine_loader, engine_step, train_in_processes, train_with_engine
from dptrain.audit.reference.material import Material, fresh_start, half_plan
from dptrain.audit.reference.stacked import unstackable
from dptrain.audit.reference.together import train_together, way_of

__all__ = [
    "Material",
    "engine_loader",
    "engine_step",
    "fresh_start",
    "half_plan",
    "train_in_processes",
    "train_together",
    "train_with_engine",
    "unstackable",
    "way_of",
]
