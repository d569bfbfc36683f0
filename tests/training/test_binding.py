"""No patient whom a run drew is ever scored un-noised: the split is part of what was registered."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dptrain import data
from dptrain.errors import LedgerRefused
from dptrain.plan import Mechanism
from dptrain.settings import load
from dptrain.training.run import evaluate_run, train

from .conftest import PASSPHRASE, PUBLIC_SIZE, Site
from .test_spine import quiet, run

FIRST = ("privacy.target_epsilon=1.5", "training.evaluate=false")
TURNED = (
    "data.split.values.train=test",
    "data.split.values.test=train",
    "data.split.values.calibration=validation",
)


@pytest.mark.parametrize(
    "words", [TURNED, ["data.split.salt=another"], ["data.columns.groups=[]"], ["data.columns.split=null"]], ids=str
)
def test_a_cohort_is_read_as_it_was_registered(make_site: Callable[..., Site], words: list[str]) -> None:
    """Another word for "test" scored all training patients of the first run."""
    site = make_site(8.0)
    before = site.ledger.head().entries
    with pytest.raises(LedgerRefused) as caught:
        run(site, "run", *FIRST, *words)
    assert site.ledger.head().entries == before
    assert "another way than it was registered" in caught.value.message


def register_again(site: Site, name: str, *words: str) -> list[str]:
    """The same data under other settings: as a new version, or as a cohort of another name."""
    settings = load([*site.words, *words, f"name={name}"])
    cohort = data.scan(settings.data, site.keys)
    controller = site.keys.controller(PASSPHRASE)
    site.ledger.register(
        name,
        unit="patient",
        issuer="made-up",
        public_size=PUBLIC_SIZE,
        patients=cohort.hashes(),
        owner="Radiology",
        binding=data.binding_of(cohort),
    )
    if name != "tiny":
        site.ledger.budget(
            name,
            epsilon=20.0,
            delta=1e-5,
            forecast=(Mechanism(20 / PUBLIC_SIZE, 2.0, 12),),
            reason="test",
            controller=controller,
        )
    return [*words, f"name={name}"]


def test_another_version_with_another_split_scores_nobody_of_inherited_runs(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    first = run(site, "first", *FIRST)
    words = register_again(site, "tiny", *TURNED)
    with pytest.raises(LedgerRefused, match="another split"):
        run(site, "second", "privacy.target_epsilon=0.5", f"model.weights={first.path}", *words)
    second = run(site, "third", "privacy.target_epsilon=0.5", "training.evaluate=false",
                 f"model.weights={first.path}", *words)  # fmt: skip
    with pytest.raises(LedgerRefused, match="another split"):
        evaluate_run(second.path, ledger={"url": str(site.folder / "ledger.sqlite")})


def test_another_cohort_leaves_out_the_patients_of_the_first(make_site: Callable[..., Site]) -> None:
    site = make_site(8.0)
    first = run(site, "first", *FIRST)
    words = register_again(site, "other", *TURNED)
    settings = site.settings("privacy.target_epsilon=0.5", f"model.weights={first.path}", *words)
    outcome = train(settings, say=quiet)
    assert not outcome.folder.metrics.exists()  # all its test patients are in the first cohort: nobody is left
    alone = train(site.settings("privacy.target_epsilon=0.5", *words), say=quiet)  # other weights: nobody was drawn
    assert len(np.load(alone.folder.predictions)["patient"]) > 0
