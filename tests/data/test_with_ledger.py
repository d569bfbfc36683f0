"""With a real ledger: what is scanned is what is registered, granted and read."""

from __future__ import annotations

import pytest
from PIL import Image

from dptrain.data import PatientLoader, load_records, scan
from dptrain.errors import CheckRefused, LedgerRefused
from dptrain.ledger import Keys, Ledger
from dptrain.plan import Mechanism
from tests.data import made
from tests.data.test_sampling import plan


@pytest.fixture
def site(tmp_path):
    keys = Keys.create(tmp_path / "keys", "a long passphrase")
    return keys, Ledger.create(tmp_path / "ledger.sqlite", keys), keys.controller("a long passphrase")


def test_scan_register_reserve_draw_and_withdraw(tmp_path, site):
    keys, ledger, controller = site
    folder = tmp_path / "data"
    rows = made.rows(24, 2)
    made.write(folder, rows)
    Image.fromarray(made.picture(0)).save(folder / rows[4]["file"])  # patients 0 and 2 share pixels
    config = made.settings(folder, same_pixels="merge")
    cohort = scan(config, keys)
    ledger.register(
        "tiny", unit="patient", issuer="clinic", public_size=21, patients=cohort.hashes(), owner="steward"
    )
    ledger.budget(
        "tiny",
        epsilon=50.0,
        forecast=[Mechanism(0.5, 1.0, 10)],
        reason="a test",
        controller=controller,
    )
    ledger.withdraw(keys.patient_key("clinic", "secret2"))  # one of the merged two
    p = plan(public_size=21, expected_batch_size=21, delta=1e-5, steps=2)
    grant = ledger.reserve(p, "tiny", run="first", fingerprint=cohort.fingerprint)
    merged = next(i for i, patient in enumerate(cohort.patients) if patient.aliases)
    loader = PatientLoader(cohort, p, grant)
    with pytest.raises(LedgerRefused):
        next(iter(loader))  # nothing is paid yet
    grant.commit(2)
    members = cohort.split("train")
    for logical in loader:
        assert logical.patients == len(members) - 1
    assert merged not in cohort.split("train", excluded=grant.excluded)
    assert (load_records(cohort, cohort.patients[merged].records, grant) == 0).all()

    with pytest.raises(CheckRefused, match="not the plan that was granted"):
        PatientLoader(cohort, plan(public_size=21, expected_batch_size=20, delta=1e-5), grant)
    made.write(folder, rows[:-2], images=False)
    config = made.changed(
        config, {"columns.split": None, "split.train": 1.0, "split.validation": 0.0, "split.test": 0.0}
    )
    with pytest.raises(LedgerRefused, match="other data"):
        PatientLoader(scan(config, keys), p, grant)
    grant.close("complete", 2)
    with pytest.raises(LedgerRefused):
        load_records(cohort, [0], grant)
