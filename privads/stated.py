"""What only people know of a run, from the `[report]` table of its configuration, as the report's blocks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accounting.report.phrase import NOT_STATED
from accounting.report.setting import Justification, Product, Security
from privads.config import parse_model
from privads.run_config import ReportTable

SIDE_CHANNELS = "looked at and left open: how long the run took and how much memory it used"


@dataclass(frozen=True, kw_only=True)
class Stated:
    """The blocks of a report that people fill; None where they said nothing of it."""

    author: str | None
    product: Product | None
    security: Security
    justification: Justification | None


def stated(config: Mapping[str, Any]) -> Stated:
    """Returns what the table ``report`` of a run's configuration says; an unknown key is refused."""
    table = parse_model(ReportTable, dict(config.get("report") or {}), source="[report]")
    product = {
        "name": table.product,
        "description": table.description,
        "curators": tuple(table.curators),
        "intended_use": table.intended_use,
        "region": table.region,
        "sector": table.sector,
        "published": table.published,
    }
    known = {name: value for name, value in product.items() if value}
    chosen = table.epsilon_chosen_by is not None or table.epsilon_reason is not None
    return Stated(
        author=table.author,
        product=Product.model_validate(known) if known else None,
        security=Security(
            access=table.access or NOT_STATED,
            log_retention=table.log_retention or NOT_STATED,
            side_channels=SIDE_CHANNELS,
        ),
        justification=Justification(
            chosen_by=table.epsilon_chosen_by or NOT_STATED, why=table.epsilon_reason or NOT_STATED
        )
        if chosen
        else None,
    )
