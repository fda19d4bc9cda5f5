"""A report as an entry of the public registry of deployments of differential privacy, in the registry's YAML.

Fields and choices are those of `schemas/deployments-schema.yaml` in opendp/deployments-registry-data at commit 3e9c812
of 2026-07-15. What the schema requires and nobody stated reads "not stated", and the date is then the run's; what it
does not require is left out. The entry is a draft: people complete it and send it in.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from accounting.report.guarantee import Guarantee
from accounting.report.page import MissingExtra
from accounting.report.phrase import NOT_STATED
from accounting.report.record import Report
from accounting.report.setting import Product, Setting

TYPES = (
    "Summary statistics",
    "Machine learning model",
    "Dataset",
    "Synthetic data",
    "Interactive API",
    "SQL queries",
)
SECTORS = ("Technology", "Healthcare", "Education", "Government", "Energy", "Finance")

_TIERS = {
    2: {
        "basic": ("data_curators", "intended_use", "data_product_region"),
        "dp_variant": ("variant_name",),
        "privacy_loss": ("privacy_unit", "privacy_parameters"),
        "deployment_model": ("model_name", "release_type", "data_source_type", "access_type"),
    },
    3: {
        "dp_variant": ("data_domain", "unprotected_quantities"),
        "privacy_loss": ("privacy_unit_details", "privacy_parameters_details"),
        "deployment_model": ("actors",),
        "accounting": ("post_processing", "composition"),
        "implementation": ("preprocessing_and_hyperparameter_tuning", "mechanisms", "justification"),
    },
}
"""The fields by which an entry reaches a tier; the schema's further ones say more where there is more to say."""


def registry_entry(report: Report) -> dict[str, Any]:
    """Returns the report as the registry's fields, which YAML or JSON can write; its status is Draft.

    Refused: a run without privacy, one whose noise a seed repeats, and one whose promise does not hold, since an entry
    is a public claim; a product of a type that the registry does not know.
    """
    claim = report.guarantee
    if claim is None or report.verdict not in ("private", "conditional"):
        raise ValueError(f"a registry entry is a claim of privacy, which this run cannot make: {report.headline}")
    deployment = {
        "basic": _basic(report),
        "dp_variant": {
            "variant_name": "Approximate DP",
            "data_domain": _domain(report),
            "unprotected_quantities": _unprotected(claim),
        },
        "privacy_loss": _privacy_loss(report, claim),
        "deployment_model": _deployment_model(report),
        "accounting": {"post_processing": _post_processing(report), "composition": _composition(report, claim)},
        "implementation": {
            "preprocessing_and_hyperparameter_tuning": _uses(report),
            "mechanisms": _mechanisms(report),
            "justification": _justification(report, claim),
        },
        "administrative": {"notes": _notes(report), "registry_authors": [report.run.author or NOT_STATED]},
    }
    stated = {name: found for name, block in deployment.items() if (found := _without_none(block))}
    return {"url_slug": _slug(stated["basic"]), "status": "Draft", "tier": _tier(stated), "deployment": stated}


def registry_yaml(report: Report) -> str:
    """Returns `registry_entry` as YAML: a text of several lines as a block, every other one on one line."""
    try:
        import yaml
    except ImportError as error:
        raise MissingExtra('a registry entry needs PyYAML: pip install "privads[report]"') from error

    class Dumper(yaml.SafeDumper):
        """A dumper of its own, since how texts are written is set on the class."""

    def write(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, write)
    written: str = yaml.dump(
        registry_entry(report), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1_000_000
    )
    return written


def _basic(report: Report) -> dict[str, Any]:
    product = report.product or Product()
    if product.type not in TYPES:
        raise ValueError(f"the registry knows products of type {', '.join(TYPES)}, got {product.type!r}")
    model, dataset = report.model.name, report.data.dataset
    described = f"The model {model}, trained on the data set {dataset} with differential privacy."
    return {
        "name": _stated(product.name) or f"{model} on {dataset}",
        "data_curators": list(product.curators) or [NOT_STATED],
        "description": _stated(product.description) or described,
        "intended_use": product.intended_use,
        "data_product_type": product.type,
        "data_product_region": product.region,
        "publication_date": (product.published or report.run.created_at.date()).isoformat(),
        "data_product_sector": product.sector if product.sector in SECTORS else None,
    }


def _domain(report: Report) -> str:
    data = report.data
    read = f"{data.categorical} categorical and {data.numeric} numeric fields and the labels {', '.join(data.labels)}"
    sha256 = "" if data.schema_sha256 is None else f" Its schema has the SHA-256 {data.schema_sha256}."
    return f"All logs of the data set {data.dataset}, whose rows have {read}.{sha256}"


def _unprotected(claim: Guarantee) -> str | None:
    if claim.unprotected is None and claim.public_quantities is None:
        return None
    public = [f"used as a public fact: {one}" for one in claim.public_quantities or ()]
    return _bullets([*(claim.unprotected or ()), *public]) or "None."


def _privacy_loss(report: Report, claim: Guarantee) -> dict[str, Any]:
    rows = report.mechanism.rows_per_unit
    neighbors = f"{claim.neighbors.replace('-', '/')}: {claim.neighbors_definition.rstrip('.')}."
    bounded = "" if rows is None else f" At most {rows:,} rows of one {claim.unit} are used in a batch."
    profile = (claim.phrase_of(at.epsilon, delta=at.delta) for at in claim.profile)
    details = list(dict.fromkeys((claim.phrase(), *profile)))  # the profile holds the claim's own delta too
    if claim.epsilon_without_amplification is not None:
        details.append(f"without trust in the sampler: {claim.phrase_of(claim.epsilon_without_amplification)}")
    return {
        "privacy_unit": claim.unit,
        "privacy_unit_details": neighbors + bounded,
        "privacy_parameters": {"epsilon": claim.epsilon, "delta": claim.delta},
        "privacy_parameters_details": _bullets(details),
    }


def _deployment_model(report: Report) -> dict[str, Any]:
    setting: Setting | None = report.setting
    if setting is None:
        return {}
    actors = [f"{one.who} sees {one.sees}; trusted with: {one.trust}" for one in setting.actors]
    return {
        "model_name": setting.model.capitalize(),
        "actors": _bullets(actors) or None,
        "release_type": "One release" if setting.releases == "one" else "Many releases",
        "data_source_type": setting.data.capitalize(),
        "access_type": "Interactive" if setting.interactive else "Non-interactive",
    }


def _post_processing(report: Report) -> str:
    calibration = report.model.calibration
    mapped = "no map to calibrated probabilities" if calibration is None else f"calibrated by {calibration}"
    return f"Averaging of the iterates: {report.model.averaging}; {mapped}."


def _composition(report: Report, claim: Guarantee) -> str:
    by, budget = claim.accountant, report.budget
    steps = f"The {report.mechanism.steps:,} steps are composed by {by.method} ({by.library} {by.version})."
    if budget is None:
        return f"{steps} No budget over several runs is kept."
    return f"{steps} Runs on the data set add up by the rule {budget.rule}, in a ledger that refuses what exceeds it."


def _uses(report: Report) -> str:
    covered = [f"covered by epsilon: {one}" for one in report.covered]
    return _bullets([*covered, *(f"not covered: {one}" for one in report.not_covered)]) or NOT_STATED


def _mechanisms(report: Report) -> str:
    what, security = report.mechanism, report.security
    noise = what.noise_multiplier
    said = {
        "sampler": f"{what.sampler}, rate {what.sampling_rate:.4g}" if what.sampling_rate else what.sampler,
        "clipping": what.clipping if what.clip_norm is None else f"{what.clipping}, at most {what.clip_norm:.4g}",
        "Gaussian noise, as a multiple of the clip norm": None if noise is None else f"{noise:.4g}",
        "randomness": what.randomness,
        "floating point": what.floating_point,
        "implementation": _stated(what.implementation),
        "side channels": security and _stated(security.side_channels),
        "access": security and _stated(security.access),
        "code": f"privads {report.run.library_version}, commit {report.run.library_commit or NOT_STATED}",
    }
    return _bullets(f"{name}: {text}" for name, text in said.items() if text is not None)


def _justification(report: Report, claim: Guarantee) -> str | None:
    chosen = report.justification
    said = [
        *([f"epsilon was chosen by {chosen.chosen_by}: {chosen.why}"] if chosen is not None else []),
        *([f"delta: {claim.delta_reason}"] if _stated(claim.delta_reason) else []),
    ]
    return _bullets(said) or None


def _notes(report: Report) -> str:
    product, budget = report.product, report.budget
    said = [report.headline, f"run {report.run.id} of {report.run.created_at.date()}"]
    if budget is not None:
        said.append(f"ledger entry {budget.entry}, ledger head {budget.head}")
    said += [f"audit: {report.proved(one)}, {one.verdict}" for one in report.audit]
    if product is not None and product.sector not in (NOT_STATED, *SECTORS):
        said.append(f"sector: {product.sector}")
    return _bullets(said)


def _slug(basic: Mapping[str, Any]) -> str:
    """Returns the entry's place in the registry: name, publishers and year, as the registry joins them."""
    parts = basic["name"], "-".join(basic["data_curators"]), basic["publication_date"].partition("-")[0]
    return "-".join(re.sub(r"[\W_]+", "-", part.lower()) for part in parts)


def _tier(deployment: Mapping[str, Mapping[str, Any]]) -> int:
    """Returns how complete an entry is; a tier is reached with all of its fields and those of the tiers below."""
    reached = 1
    for tier, blocks in _TIERS.items():
        found = [deployment.get(block, {}).get(name) for block in blocks for name in blocks[block]]
        if any(value in (None, NOT_STATED, [NOT_STATED]) for value in found):
            break
        reached = tier
    return reached


def _stated(text: str) -> str | None:
    return None if text == NOT_STATED else text


def _without_none(block: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in block.items() if value is not None}


def _bullets(lines: Iterable[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)
