"""`dptrain check`: is this network, loss and pipeline fit for private training?"""

from __future__ import annotations

from dptrain import models
from dptrain.commands.command import Call
from dptrain.errors import EXIT_DONE, EXIT_REFUSED_BY_CHECK
from dptrain.models.check import check as check_run
from dptrain.settings import load


def check(call: Call) -> int:
    """Check with made-up images; the data are not looked at."""
    findings = check_run(load(call.settings))
    models.print_findings(findings)
    print("The data were not looked at: the check uses made-up images of data.image_shape.")
    return EXIT_REFUSED_BY_CHECK if any(finding.status == "refused" for finding in findings) else EXIT_DONE
