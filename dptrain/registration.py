"""`dptrain ledger …`: the ledger's commands, with the data floor's eyes where a cohort is registered.

The ledger knows nothing of images. `register` and `budget` accept a recipe and data settings; this module turns
them into patient keys and record hashes, and into the forecast that fixes an open budget's order. Configuration
and data are imported only then, so that `dptrain ledger show` starts at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dptrain.ledger import commands

if TYPE_CHECKING:
    from dptrain.ledger import Keys, ScanResult
    from dptrain.plan import Mechanism


def ledger_main(argv: list[str]) -> int:
    """`dptrain ledger`."""
    if argv[:1] == ["weights"] and any(word.startswith("recipe=") for word in argv):
        argv = ["weights", *weights(argv[1:])]
    return commands.main(argv, scan=scan, forecast=forecast)


def scan(words: Sequence[str], keys: Keys) -> ScanResult:
    """Read, check and hash every record that these settings name. Raises DataUnreadable with every fault."""
    from dptrain import data
    from dptrain.ledger import ScanResult
    from dptrain.settings import load

    settings = load(words)
    cohort = data.scan(settings.data, keys)
    return ScanResult(
        name=settings.ledger.cohort or settings.data.name,
        patients=cohort.hashes(),
        unit=settings.data.unit,
        issuer=settings.data.issuer,
        cautions=tuple(settings.data.cautions),
        source=settings.data.source,
        licence=settings.data.licence,
    )


def forecast(words: Sequence[str], public_size: int, epsilon: float, delta: float | None) -> tuple[Mechanism, ...]:
    """The mechanisms of one run as these settings would train it, when it may cost epsilon."""
    from dptrain.settings import load
    from dptrain.training.planning import make_plan

    settings = load(
        [*words, f"privacy.target_epsilon={epsilon}", f"privacy.delta={'null' if delta is None else delta}"]
    )
    return make_plan(settings.privacy, public_size=public_size, unit=settings.data.unit).mechanisms


def weights(words: Sequence[str]) -> list[str]:
    """The words that declare the weights which a recipe's network brings: hash, source and licence.

    Words of the ledger (`ledger.…`, flags) are passed on. Raises ConfigError for a recipe that starts at random.
    """
    from dptrain.errors import ConfigError
    from dptrain.settings import load
    from dptrain.training.session import build_network

    ours = [word for word in words if word.startswith(("ledger.", "-", "licence="))]
    network = build_network(load([word for word in words if word not in ours]))
    if network.weights is None:
        raise ConfigError("this recipe starts from random weights: there is nothing to declare.")
    licence = [] if any(word.startswith("licence=") for word in ours) else ["licence=Apache-2.0"]
    return [f"sha256={network.weights.sha256}", f"source={network.weights_note}", *licence, *ours]
