"""`dptrain check`: is this network, loss and pipeline fit for private training, and would it be granted?"""

from __future__ import annotations

import contextlib

from dptrain import models
from dptrain.commands.command import Call
from dptrain.errors import EXIT_DONE, CheckRefused, ConfigError, DptrainError, LedgerRefused
from dptrain.models.check import check as check_run
from dptrain.models.check import tried_on
from dptrain.models.network import Network, build_network, device_of
from dptrain.models.preflight import Finding
from dptrain.settings import Settings, load
from dptrain.settings.data import shape_of
from dptrain.training.planning import check_chunk, open_status, plan_for
from dptrain.training.trial import try_noise


def check(call: Call) -> int:
    """Check with made-up images, and compare with the ledger where there is one; the data are not looked at."""
    settings = load(call.settings)
    network: Network | None = None
    with contextlib.suppress(CheckRefused):  # its finding is made below, beside what else would be refused
        network = build_network(settings)
    findings = check_run(settings, network)
    fit = not any(finding.status == "refused" for finding in findings)
    if fit and network is not None and network.frozen is None:
        image, label = tried_on(shape_of(settings.data), settings.data.task, len(settings.data.classes))
        findings.append(try_noise(network.trainable, models.loss_for_task(settings.data.task), image, label))
        fit = findings[-1].status != "refused"
    errors, standing = refused_later(settings, network)
    findings += [
        Finding(_what(error), "refused", _first(error), (error.remedy or "").removeprefix("What to do: "))
        for error in errors
    ]
    models.print_findings(findings)
    print("The data were not looked at: the check uses made-up images of data.image_shape.")
    print(standing)
    if not fit:
        return CheckRefused.exit_code
    return max((error.exit_code for error in errors), default=EXIT_DONE)


def refused_later(settings: Settings, network: Network | None) -> tuple[list[DptrainError], str]:
    """What `train` would refuse for its plan or in the ledger's name, and a sentence on where that is known from.

    It follows from settings and the ledger's public facts alone; nothing is charged or written.
    """
    errors: list[DptrainError] = []
    for rule in (lambda: check_chunk(settings), lambda: device_of(settings.training.device)):
        try:
            rule()
        except ConfigError as error:
            errors.append(error)
    try:
        ledger, _, status = open_status(settings)
    except LedgerRefused as error:
        return errors, f"Not compared with a budget, without which nothing trains: {_first(error)}"
    asked = f"Compared with '{status.name}' in the ledger ({status.public_size} {status.unit}s declared)"
    try:
        plan = plan_for(settings, status)
    except DptrainError as error:
        return [*errors, error], f"{asked}."
    weights = None if network is None else network.weights
    refusals = ledger.objections(plan, status.name, weights)
    return [*errors, *refusals], f"{asked}: it {'refuses' if refusals else 'would grant'} this run now."


def _what(error: DptrainError) -> str:
    return "ledger" if isinstance(error, LedgerRefused) else "settings"


def _first(error: DptrainError) -> str:
    return error.message.splitlines()[0]
