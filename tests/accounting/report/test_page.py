"""The report's page in a browser: drawn without complaint, readable for everyone, with the figures of the JSON."""

import json
import re
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.accounting.report.test_render import VARIANTS, hostile, page_source
from tests.browser import AXE, Drawn, draw

DARK = "@media screen and (prefers-color-scheme: dark)"
PRINT = "@media print"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return draw(page_source(VARIANTS["everything stated"]), tmp_path_factory.mktemp("light"))


def test_the_page_is_drawn_without_complaint_and_loads_nothing(drawn: Drawn) -> None:
    assert drawn.complaints == []
    assert drawn.loaded == []
    assert drawn.overflow == 0
    assert drawn.text.startswith("Privacy report")
    assert all(len(page_source(made).encode()) < 200_000 for made in VARIANTS.values())


def test_its_figures_are_those_of_the_json(drawn: Drawn) -> None:
    fields = json.loads(VARIANTS["everything stated"].to_json())
    promise, budget, (audit,) = fields["guarantee"], fields["budget"], fields["audit"]
    terms = f"{promise['unit']}, {promise['neighbors'].replace('-', '/')}, {promise['released']})"
    own = f"(delta {promise['delta']:.3g}, {terms}"
    claim = f"epsilon <= {up(promise['epsilon'])} {own}"
    seen = own.replace(promise["released"], "what the attacker saw")
    expected = [
        ("claim", claim),
        ("at the claim's delta", claim),
        ("lower end", f"epsilon >= {down(promise['epsilon_lower'])} {own}"),
        ("without sampling", f"epsilon <= {up(promise['epsilon_without_amplification'])} {own}"),
        ("proved", f"epsilon >= {down(audit['epsilon_lower'])} {seen}"),
        ("power", f"epsilon >= {down(audit['power'])} {seen}"),
        ("may stay unseen", f"epsilon <= {up(audit['detectable'])} {seen}"),
        ("guesses", f"{audit['correct']} of {audit['guesses']} correct"),
        ("this run", f"epsilon <= {up(budget['this_run_epsilon'])} {own}"),
        ("limit", f"epsilon = {down(budget['limit_epsilon'])} "),
        ("left", f"epsilon = {down(budget['left_epsilon'])} "),
        ("ledger head", budget["head"]),
        ("noise multiplier", str(fields["mechanism"]["noise_multiplier"])),
        ("steps", str(fields["mechanism"]["steps"])),
        *(
            ("at another delta", f"epsilon <= {up(at['epsilon'])} (delta {at['delta']:.3g}, {terms}")
            for at in promise["profile"]
        ),
        *((f"after {at['steps']}", f"epsilon <= {up(at['epsilon'])} ") for at in promise["over_steps"]),
    ]
    for name, said in expected:
        assert any(known == name and said in text for known, text in drawn.facts), (name, said)
    assert drawn.text.count(claim) >= 4, "headline, guarantee, profile, audit"
    shown = re.findall(r"(\d+\.(\d+)) \[(\d+\.\d+), (\d+\.\d+)\]", drawn.text)
    for task in fields["metrics"]:
        for score in (one for one in task["scores"].values() if one["value"] is not None):
            wanted = [score[name] for name in ("value", "low", "high")]
            assert any(
                [float(value), float(low), float(high)] == [round(one, len(decimals)) for one in wanted]
                for value, decimals, low, high in shown
            ), score


def up(value: float) -> str:
    return str(Decimal(repr(value)).quantize(Decimal("0.01"), ROUND_CEILING))


def down(value: float) -> str:
    return str(Decimal(repr(value)).quantize(Decimal("0.01"), ROUND_FLOOR))


def test_everyone_can_read_it(drawn: Drawn) -> None:
    if drawn.violations is None:
        pytest.skip("axe-core is not there: make axe")
    assert drawn.violations == []


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dark", "printed", "narrow", "hostile", "violated and seeded"])
def test_everyone_can_read_it_in_every_form(form: str, tmp_path: Path) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not there: make axe")
    source = page_source(VARIANTS["contradicted by an audit" if form == "dark" else "everything stated"])
    forms: dict[str, dict[str, Any]] = {
        "dark": {"source": source.replace(DARK, "@media screen")},
        "printed": {"source": source.replace(PRINT, "@media screen").replace(DARK, "@media print")},
        "narrow": {"source": source, "width": 500},
        "hostile": {"source": page_source(hostile())},
        "violated and seeded": {"source": page_source(VARIANTS["violated and seeded"])},
    }
    seen = draw(**forms[form], folder=tmp_path)
    assert seen.violations == []
    assert seen.complaints == []
    assert seen.overflow == 0


@pytest.mark.slow
def test_the_checks_find_what_nobody_could_read(tmp_path: Path) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not there: make axe")
    source = page_source(VARIANTS["private"]).replace("--muted: #5b626b", "--muted: #e8e8e8").replace('lang="en"', "")
    found = draw(source, tmp_path).violations or []
    assert {one.partition(":")[0] for one in found} >= {"color-contrast", "html-has-lang"}
