"""What a run leaves, as types: run.json, metrics.json, audit.json, attack.json, and the folder that they lie in.

Each file's shape is stated once, as frozen dataclasses with `from_json` and `to_json`; its JSON schema
(`schema/`) is generated from them. Writers build these, readers take them, and nothing here imports torch.
"""

from dptrain.records.attack import Attack
from dptrain.records.audit import Audit
from dptrain.records.folder import RunFolder
from dptrain.records.metrics import Metrics
from dptrain.records.reading import Fault, Reading, read_file
from dptrain.records.run import Run

__all__ = ["Attack", "Audit", "Fault", "Metrics", "Reading", "Run", "RunFolder", "read_file"]
