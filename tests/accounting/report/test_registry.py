"""The registry entry: fields and choices of the registry's schema, and nothing that the report does not say."""

import sys
from datetime import date
from typing import Any

import pytest
import yaml

from accounting.report.guarantee import ProfilePoint
from accounting.report.page import MissingExtra
from accounting.report.record import Report
from accounting.report.registry import registry_entry, registry_yaml
from accounting.report.setting import Product, Setting
from tests.accounting.report.sample import (
    ASSERTED,
    CHECKED,
    STATED,
    VIOLATED,
    audit,
    data,
    guarantee,
    report,
    run,
    started_from,
)

# Of schemas/deployments-schema.yaml, opendp/deployments-registry-data 3e9c812 (2026-07-15): a set is a choice among
# its texts, a type what the value must be. Objects are closed there; what is required is listed below.
TEXT = str
FIELDS: dict[str, dict[str, Any]] = {
    "basic": {
        "name": TEXT,
        "data_curators": list,
        "intended_use": TEXT,
        "data_product_type": {
            "Summary statistics",
            "Machine learning model",
            "Dataset",
            "Synthetic data",
            "Interactive API",
            "SQL queries",
        },
        "data_product_region": TEXT,
        "description": TEXT,
        "publication_date": TEXT,
        "data_product_sector": {"Technology", "Healthcare", "Education", "Government", "Energy", "Finance"},
    },
    "dp_variant": {
        "variant_name": {"Pure DP", "Approximate DP", "Zero-concentrated DP", "Renyi DP", "Custom"},
        "data_domain": TEXT,
        "unprotected_quantities": TEXT,
    },
    "privacy_loss": {
        "privacy_unit": TEXT,
        "privacy_unit_details": TEXT,
        "privacy_parameters": dict,
        "privacy_parameters_details": TEXT,
    },
    "deployment_model": {
        "model_name": {"Local", "Central", "Shuffle", "Federated", "Varies"},
        "model_name_details": TEXT,
        "actors": TEXT,
        "release_type": {"One release", "Many releases"},
        "release_type_details": TEXT,
        "data_source_type": {"Static", "Dynamic"},
        "data_source_type_details": TEXT,
        "access_type": {"Interactive", "Non-interactive"},
        "access_type_details": TEXT,
    },
    "accounting": {"post_processing": TEXT, "composition": TEXT},
    "implementation": {"preprocessing_and_hyperparameter_tuning": TEXT, "mechanisms": TEXT, "justification": TEXT},
    "administrative": {"sources": TEXT, "notes": TEXT, "registry_authors": list},
}
REQUIRED = set(FIELDS["basic"]) - {"data_product_sector"}
FULL = report(
    **STATED, guarantee=guarantee(unprotected=["labels"], public_quantities=["population"], delta_reason="1 / 40,000")
)
VARIANTS = {
    "little stated": report(),
    "much stated": report(**STATED),
    "all stated": FULL,
    "on conditions": report(assumptions=[ASSERTED], audit=[audit()]),
    "continued": report(run=run(started_from=[started_from()]), budget=None),
    "federated": report(setting=Setting(model="federated", releases="many", data="dynamic", interactive=True)),
    "hostile": report(product=Product(name="a: b # c", intended_use="- \"quoted\" 'it' {x} é", curators=("no", "1"))),
}
variants = pytest.mark.parametrize("made", VARIANTS.values(), ids=VARIANTS.keys())


@variants
def test_an_entry_has_the_schemas_fields_and_choices(made: Report) -> None:
    entry = registry_entry(made)
    assert set(entry) == {"url_slug", "status", "tier", "deployment"}
    assert entry["status"] == "Draft"
    assert entry["tier"] in (1, 2, 3)
    deployment = entry["deployment"]
    assert set(deployment) <= set(FIELDS)
    assert set(deployment["basic"]) >= REQUIRED
    for block, fields in deployment.items():
        for name, value in fields.items():
            rule = FIELDS[block][name]
            assert value in rule if isinstance(rule, set) else isinstance(value, rule), (block, name, value)
            assert value, (block, name)
    for many in (deployment["basic"]["data_curators"], deployment["administrative"]["registry_authors"]):
        assert all(isinstance(one, str) for one in many)
    date.fromisoformat(deployment["basic"]["publication_date"])


@variants
def test_the_yaml_reads_back_as_the_entry_and_folds_no_text(made: Report) -> None:
    written = registry_yaml(made)
    assert yaml.safe_load(written) == registry_entry(made)
    for token in yaml.scan(written):
        if isinstance(token, yaml.ScalarToken):
            assert token.style in (None, "|", '"', "'"), "the registry's own check refuses folded texts"
            assert token.style == "|" or token.start_mark.line == token.end_mark.line


def test_the_figures_are_the_reports() -> None:
    loss = registry_entry(FULL)["deployment"]["privacy_loss"]
    assert loss["privacy_parameters"] == {"epsilon": 2.9714, "delta": 1e-6}
    assert loss["privacy_unit"] == "user"
    for line in loss["privacy_parameters_details"].splitlines():
        assert "delta 1e-0" in line
        assert "user, add/remove, final model)" in line


def test_the_claim_is_told_once_though_its_profile_holds_it_too() -> None:
    whole = report(guarantee=guarantee(profile=[ProfilePoint(delta=1e-6, epsilon=2.9714)]))
    details = registry_entry(whole)["deployment"]["privacy_loss"]["privacy_parameters_details"]
    assert details.count("epsilon <= 2.98 (delta 1e-06") == 1


def test_an_entry_says_what_its_claim_rests_on() -> None:
    notes = registry_entry(VARIANTS["on conditions"])["deployment"]["administrative"]["notes"]
    assert ASSERTED.text in notes
    assert "epsilon >= 0.31 (delta 1e-06, user, add/remove, what the attacker saw) at 95 % confidence" in notes
    uses = registry_entry(FULL)["deployment"]["implementation"]["preprocessing_and_hyperparameter_tuning"]
    assert all(line in uses for line in (*FULL.covered, *FULL.not_covered))


def test_a_tier_is_reached_with_all_its_fields() -> None:
    tiers = {name: registry_entry(made)["tier"] for name, made in VARIANTS.items()}
    assert (tiers["little stated"], tiers["much stated"], tiers["all stated"]) == (1, 2, 3)
    assert tiers["federated"] == 1, "nobody said who publishes it and what for"


def test_the_slug_is_made_as_the_registry_makes_it() -> None:
    """scripts/update_slug.py there: name, curators joined by a dash, year; no word character is a dash."""
    assert registry_entry(FULL)["url_slug"] == "ranking-model-of-2026-example-ads-2026"
    assert registry_entry(VARIANTS["hostile"])["url_slug"] == "a-b-c-no-1-2026"


@pytest.mark.parametrize(
    "made",
    [
        report(guarantee=None, budget=None),
        report(run=run(insecure_seed=3)),
        report(assumptions=[CHECKED, VIOLATED]),
        report(audit=[audit(epsilon_lower=3.5, verdict="violation")]),
    ],
    ids=["without privacy", "seeded", "violated", "contradicted"],
)
def test_a_run_that_promises_nothing_has_no_entry(made: Report) -> None:
    with pytest.raises(ValueError, match="which this run cannot make") as caught:
        registry_yaml(made)
    assert made.headline in str(caught.value)


def test_a_type_that_the_registry_does_not_know_is_refused_and_a_sector_is_noted() -> None:
    with pytest.raises(ValueError, match="Machine learning model, .* got 'Embedding'"):
        registry_entry(report(product=Product(type="Embedding")))
    deployment = registry_entry(report(product=Product(sector="Advertising")))["deployment"]
    assert "data_product_sector" not in deployment["basic"]
    assert "- sector: Advertising\n" in deployment["administrative"]["notes"]


def test_without_pyyaml_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtra, match=r"privads\[report\]"):
        registry_yaml(report())


def test_a_public_data_set_is_said_to_be_public() -> None:
    assert "public data (ads-2026q4)" in registry_yaml(report(data=data(public=True)))
