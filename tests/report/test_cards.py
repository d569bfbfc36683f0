"""What machines read: registry entry, model card, bundle metadata."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dptrain.report import facts as facts_module
from dptrain.report.cards import bundle_privacy, model_card, registry

SCHEMA = Path(__file__).parents[3] / "shared" / "registry" / "deployments-schema.yaml"


class Plain(yaml.SafeLoader):
    """YAML with dates kept as text, as the registry reads it."""


Plain.yaml_implicit_resolvers = {
    key: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for key, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def change_infinite(values):
    values["privacy"].update(epsilon=None, infinite=True)
    values["cohort"]["public"] = True


@pytest.mark.parametrize("change", [None, change_infinite])
def test_registry_entry_is_valid(edited, change):
    jsonschema = pytest.importorskip("jsonschema")
    if not SCHEMA.exists():
        pytest.skip("the registry's schema is absent (../shared/registry)")
    facts = facts_module.public(facts_module.read(edited(change)))
    entry = yaml.load(registry(facts), Loader=Plain)
    jsonschema.validate(entry, yaml.safe_load(SCHEMA.read_text()))
    assert entry["tier"] == (1 if change else 3)
    said = entry["deployment"]["privacy_loss"]["privacy_parameters"]
    assert said.get("epsilon") == (None if change else facts.privacy.epsilon)
    assert said["delta"] == facts.privacy.delta


def test_registry_fills_all_three_tiers(edited):
    entry = yaml.safe_load(registry(facts_module.public(facts_module.read(edited()))))
    parts = entry["deployment"]
    assert set(parts) == {"basic", "dp_variant", "privacy_loss", "deployment_model", "accounting", "implementation",
                          "administrative"}  # fmt: skip
    assert all(value for part in parts.values() for value in part.values())


def test_model_card_front_matter(faces):
    facts, made = faces("public", "en")
    _, front, body = made["MODEL_CARD.md"].decode().split("---\n", 2)
    values = yaml.safe_load(front)
    found = values["model-index"][0]["results"][0]["metrics"]
    assert {row["type"]: row["value"] for row in found}["auroc"] == facts.utility.overall["auroc"].value
    assert "not covered by ε" in body


def test_model_card_without_release_has_no_results(edited):
    card = model_card(facts_module.public(facts_module.read(edited())))
    assert "model-index" not in card
    assert "No result is released." in card


def test_bundle_metadata_says_what_the_facts_say(faces):
    facts = faces("public", "en")[0]
    said = bundle_privacy(facts)
    assert said["epsilon"] == facts.privacy.epsilon
    assert said["ledger_head"] == facts.ledger.head.hash
    assert "auroc" not in str(said)
