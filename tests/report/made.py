"""Made-up run folders: realistic numbers, no patients."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

MU = 1.46
PLANTED = 0.98213  # the AUROC that must not appear before its release
PLANTED_EXPOSED = 37


def tradeoff(mu: float, points: int = 101) -> dict[str, list[float]]:
    fpr = np.linspace(0, 1, points)
    tpr = norm.cdf(norm.ppf(fpr) + mu)
    return {"fpr": [float(v) for v in fpr], "tpr": [float(v) for v in tpr]}


def ceiling(rate: float, mu: float = MU) -> float:
    return float(norm.cdf(norm.ppf(rate) + mu))


def run_facts() -> dict[str, Any]:
    steps = [int(s) for s in np.unique(np.linspace(1, 200, 30).astype(int))]
    return {
        "schema": "dptrain.run/1",
        "id": "chest-20261122-171500-a1b2c3",
        "created": "2026-11-22T17:15:00Z",
        "finished": "2026-11-22T17:19:30Z",
        "status": "complete",
        "program": {
            "dptrain": "0.1.0",
            "torch": "2.13.0",
            "opacus": "1.6.0",
            "monai": "1.6.1",
            "numpy": "2.4.6",
            "dp-accounting": "0.6.0",
            "python": "3.11.7",
            "platform": "Linux-6.1",
            "device": "cpu",
        },
        "recipe": "chest_xray_pneumonia",
        "command": "dptrain train recipe=chest_xray_pneumonia privacy.target_epsilon=8",
        "task": "binary",
        "classes": ["normal", "pneumonia"],
        "cohort": {
            "name": "chest_xray_pneumonia",
            "version": 1,
            "unit": "patient_group",
            "unit_column": "patient_group",
            "units_per_person": 1,
            "public": False,
            "public_size": 2180,
            "owner": "Radiologie, Musterklinik",
            "source": "Kermany et al. 2018, doi:10.17632/rscbjbr9sj",
            "licence": "CC BY 4.0",
            "cautions": ["Some numbers may join two children; taking one of them out changes the unit."],
        },
        "privacy": {
            "unit": "patient_group",
            "adjacency": "add_remove",
            "target_epsilon": 8.0,
            "epsilon": 6.542258379108255,
            "infinite": False,
            "delta": 1e-5,
            "n_delta": 0.0218,
            "accountant": "PLD",
            "sample_rate": 600 / 2180,
            "expected_batch_size": 600,
            "steps_planned": 200,
            "steps_run": 200,
            "steps_charged": 200,
            "noise_multiplier": 2.90625,
            "max_grad_norm": 1.0,
            "max_records_per_patient": 8,
            "views": 1,
            "normaliser": 600,
            "generator": "cryptographic",
            "mechanisms": [
                {"sample_rate": 600 / 2180, "noise_multiplier": 2.90625, "steps": 200, "what": "training"},
                {"sample_rate": 1.0, "noise_multiplier": 20.0, "steps": 1, "what": "calibration"},
            ],
            "inherited": [],
            "epsilon_over_steps": [[s, float(6.542258379108255 * (s / 200) ** 0.55)] for s in steps],
            "tradeoff": tradeoff(MU),
            "tpr_at_1pct_fpr": ceiling(0.01),
            "tpr_at_5pct_fpr": ceiling(0.05),
            "tpr_at_10pct_fpr": ceiling(0.1),
            "auc_ceiling": float(norm.cdf(MU / 2**0.5)),
            "advantage": float(2 * norm.cdf(MU / 2) - 1),
            "mu": MU,
            "group_epsilon": {"2": 15.4079},
            "reconstruction": {"0.001": ceiling(0.001), "0.01": ceiling(0.01), "0.1": ceiling(0.1)},
        },
        "gate": {
            "kind": "open",
            "accountant": "RDP at one order",
            "order": 3.5,
            "budget_epsilon": 8.0,
            "budget_delta": 1e-5,
            "spent_before": 0.0,
            "spent_after": 7.9931,
            "remaining": 0.0069,
            "minimum_charge": 0.25,
            "locked": True,
        },
        "ledger": {
            "grant": "g-7f3a91",
            "site": "musterklinik",
            "head": {
                "site": "musterklinik",
                "hash": "5f" * 32,
                "entries": 9,
                "signature": "ab" * 64,
                "time": "2026-11-22T17:19:29Z",
                "public_key": "cd" * 32,
            },
            "witness": False,
            "rollback_detectable": False,
        },
        "weights": {"source": "package", "sha256": "12" * 32, "note": "EfficientNet-Lite0, ImageNet"},
        "model": {
            "file": "model/model.safetensors",
            "sha256": hashlib.sha256(b"weights").hexdigest(),
            "network": "dptrain.models.efficientnet_lite",
            "train": "head",
            "parameters": 3372289,
            "trainable_parameters": 1281,
            "changes": [],
        },
        "config_sha256": hashlib.sha256(b"name: chest\n").hexdigest(),
        "not_covered": [
            {"what": "test and validation patients", "status": "not_covered", "note": "They have no epsilon."},
            {"what": "test metrics and group tables", "status": "not_covered", "note": "Un-noised."},
            {"what": "audit results", "status": "not_covered", "note": "Un-noised."},
            {"what": "normalisation constants", "status": "public", "note": "Fixed."},
            {"what": "training length and final weights", "status": "public", "note": "Fixed."},
            {"what": "temperature and conformal sets", "status": "charged", "note": "Noisy histogram."},
            {"what": "starting weights", "status": "public", "note": "EfficientNet-Lite0, ImageNet"},
        ],
        "checks": [
            *(
                {"id": i, "name": i, "status": "passed", "by": "program", "note": ""}
                for i in ("one_plan", "charged_first", "separable", "rules", "poisson", "noise")
            ),
            {"id": "rollback", "name": "witness", "status": "not_checked", "by": "program", "note": ""},
            *(
                {"id": i, "name": i, "status": "not_checked", "by": "person", "note": ""}
                for i in ("unit", "size", "weights", "constants", "access")
            ),
        ],
        "resume": {"crashes": 0, "steps_lost": 0},
        "sweep": None,
        "released": None,
    }


def metrics() -> dict[str, Any]:
    def cell(v: float, half: float) -> dict[str, float]:
        return {"value": v, "low": v - half, "high": min(v + half, 1.0)}

    table = {
        "auroc": cell(PLANTED, 0.0071),
        "average_precision": cell(0.99317, 0.0042),
        "sensitivity_at_90_specificity": cell(0.95783, 0.0217),
        "sensitivity_at_95_specificity": cell(0.91236, 0.0311),
        "brier": cell(0.04871, 0.0063),
        "calibration_error": cell(0.02317, 0.0089),
    }

    def group(v: float, half: float, patients: int) -> dict[str, Any]:
        return {"patients": patients, "records": 2 * patients, "auroc": cell(v, half), "brier": cell(0.051, 0.009)}

    bins = [
        {
            "low": i / 10,
            "high": (i + 1) / 10,
            "confidence": i / 10 + 0.05,
            "observed": min(1, max(0, i / 10 + 0.03)),
            "count": c,
        }
        for i, c in enumerate((211, 37, 22, 15, 13, 12, 18, 29, 66, 455))
    ]
    return {
        "schema": "dptrain.metrics/1",
        "split": "test",
        "level": "record",
        "task": "binary",
        "patients": 463,
        "records": 878,
        "overall": table,
        "by_class": {"pneumonia": {"auroc": table["auroc"]}},
        "groups": {
            "sex": {"F": group(0.9841, 0.0102, 221), "M": group(0.9803, 0.0097, 242)},
            "age_group": {
                "0-2": group(0.9512, 0.0131, 97),
                "3-5": group(0.9873, 0.0077, 205),
                "6-12": group(0.9891, 0.0069, 161),
            },
        },
        "suppressed": [{"group": "age_group", "value": "13-17", "why": "fewer than 10 patients"}],
        "reliability": bins,
        "temperature": 1.31,
        "conformal": {"miscoverage": 0.1, "threshold": -2.1, "coverage": 0.9127, "set_size": 1.043},
        "bootstrap": {"replicates": 500, "level": 0.95, "unit": "patient"},
    }


def audit() -> dict[str, Any]:
    measured = 0.37
    auc = np.linspace(0.42, 0.78, 25)
    share = np.clip(1 - norm.cdf((auc - 0.54) / 0.06), 0, 1)
    return {
        "schema": "dptrain.audit/1",
        "game": "population",
        "attack": "student_t",
        "references": 64,
        "models": 64,
        "promised": {"epsilon": 6.542258379108255, "delta": 1e-5},
        "patients": 2180,
        "exposed": {"count": PLANTED_EXPOSED, "share": PLANTED_EXPOSED / 2180, "low": 0.0121, "high": 0.0233},
        "verdicts": {"exposed": PLANTED_EXPOSED, "not_shown": 1925, "inconclusive": 218},
        "confirmed": {"tested": 20, "confirmed": 16},
        "roc": tradeoff(measured, 51),
        "auc": {
            "mean": 0.6032,
            "median": 0.5911,
            "max": 0.7783,
            "max_by_chance": 0.7521,
            "low": 0.5987,
            "high": 0.6079,
        },
        "baseline_max": {"mean": 0.6411, "max": 0.8123},
        "survival": {
            "auc": [float(v) for v in auc],
            "share": [float(v) for v in share],
            "null": [float(norm.sf((v - 0.5) / 0.04)) for v in auc],
        },
        "tpr_at": {
            "0.01": {
                "mean": 0.0254,
                "median": 0.021,
                "max": 0.3125,
                "ceiling": ceiling(0.01),
                "low": 0.02,
                "high": 0.03,
                "extrapolated": True,
            },
            "0.05": {
                "mean": 0.1017,
                "median": 0.09,
                "max": 0.4063,
                "ceiling": ceiling(0.05),
                "low": 0.09,
                "high": 0.11,
                "extrapolated": False,
            },
            "0.1": {
                "mean": 0.1812,
                "median": 0.17,
                "max": 0.5313,
                "ceiling": ceiling(0.1),
                "low": 0.17,
                "high": 0.19,
                "extrapolated": False,
            },
        },
        "groups": {
            "sex": {
                "F": {"patients": 1021, "share": 0.0157, "low": 0.0088, "high": 0.0235},
                "M": {"patients": 1159, "share": 0.0181, "low": 0.0112, "high": 0.0267},
            },
            "number of records": {
                "1": {"patients": 1302, "share": 0.0092, "low": 0.0046, "high": 0.0146},
                "2-3": {"patients": 598, "share": 0.0201, "low": 0.01, "high": 0.0318},
                "4+": {"patients": 280, "share": 0.0464, "low": 0.0214, "high": 0.0714},
            },
        },
        "suppressed": [],
        "new_scan": {"auc": 0.5523, "low": 0.531, "high": 0.5741},
        "canary": {
            "kind": "flipped labels",
            "count": 50,
            "trainings": 64,
            "epsilon_lower": 1.317,
            "confidence": 0.95,
            "method": "steinke",
            "broken": False,
        },
        "withheld": [{"what": "tpr_at_0.01", "have": 64, "need": 220}],
        "masks_sha256": "9a" * 32,
        "seconds": 41.2,
    }


def make_run(folder: Path, *, run: Any = None, with_metrics: Any = True, with_audit: Any = True) -> Path:
    """A run folder with model, configuration, metrics and audit; pass other contents to change them."""
    (folder / "restricted" / "audit").mkdir(parents=True, mode=0o700)
    (folder / "model" / "configs").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    (folder / "model" / "configs" / "metadata.json").write_text(json.dumps({"name": "chest", "privacy": None}))
    (folder / "config.yaml").write_bytes(b"name: chest\n")
    (folder / "run.json").write_text(json.dumps(run_facts() if run is None else run))
    if with_metrics:
        (folder / "restricted" / "metrics.json").write_text(
            json.dumps(metrics() if with_metrics is True else with_metrics)
        )
    if with_audit:
        text = json.dumps(audit() if with_audit is True else with_audit)
        (folder / "restricted" / "audit" / "audit.json").write_text(text)
    return folder
