"""What attribution interfaces report of a log: noisy sums beside the true ones, and whose privacy that costs what.

A simulated log, which is public, so that its true sums may be shown and its noise repeated, is reported by W3C
Attribution Level 1 and by both ways of the retired Attribution Reporting API. Where real clicks are at hand
(TalkingData's, in ../shared/data), their installs are reported too. True sums are those of the reports that browsers
made within their budgets. Offline, in some seconds.
"""

import tempfile
from datetime import datetime
from pathlib import Path

import pyarrow.parquet

from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.logs.simulator import DEVICES, schema_toml, simulate
from privads.run_config import AttributionTable
from privads.signals.attribution import AttributionPlan

USERS = 20_000
CLICKS = Path(__file__).resolve().parents[2] / "shared" / "data" / "talkingdata-adtracking" / "clicks.csv.gz"
WEEK = {"label": "conversion", "keys": {"device": list(DEVICES)}, "start": datetime(2026, 11, 9), "days": 7}
ASKED = {  # what each interface is asked for, and the budget of the run: what that costs an owner of rows
    "w3c": (
        {
            "epsilon": 1.0,
        },
        {"epsilon": 2.0, "unit": "user"},
    ),
    "event": ({"epsilon": 3.0}, {"epsilon": 6.0, "unit": "example"}),
    "summary": ({"epsilon": 1.0, "sources_per_unit": 2}, {"epsilon": 2.0, "unit": "user"}),
}


def show(logs: Logs, plan: AttributionPlan) -> float:
    """Print a report beside the true sums; returns the largest error in standard deviations of the noise."""
    report, true = plan.run(logs, ledger=None, insecure_seed=1), plan.exact(logs, insecure_seed=1)
    (measure, noisy), *_ = report.values.items()
    std, exact = report.noise_std[measure], true[measure]
    print(f"\n{plan.asked.api}: {measure} of {logs.source.dataset}, {report.law}")
    for key, value, noise_std, truth in zip(report.keys, noisy, std, exact, strict=True):
        print(f"  {key[-1]!s:<14} {value:9,.1f}   true {truth:7,.0f}   noise std {noise_std:.1f}")
    print("  budgets and caps: " + ", ".join(f"{name} {value:g}" for name, value in report.limits.items()))
    print(f"  seen on devices: {dict(report.seen)}\n  {report.promise}\n  {report.cost}")
    return float((abs(noisy - exact) / std).max())


def planned(schema: Schema, api: str, unit: str | None = None, **asked: object) -> AttributionPlan:
    """Returns the plan of one interface, by its budget above."""
    own, cost = ASKED[api]
    table = AttributionTable.model_validate({**own, "api": api, **asked})
    return AttributionPlan.of(table, schema, epsilon=cost["epsilon"], delta=1e-6, unit=unit or cost["unit"])


def main() -> None:
    """Report the simulator's week by each interface, and the real clicks by the first."""
    with tempfile.TemporaryDirectory() as folder:
        log, facts = Path(folder) / "impressions.parquet", Path(folder) / "ads.toml"
        pyarrow.parquet.write_table(simulate(USERS, seed=1), log)
        facts.write_text(schema_toml(USERS, public=True), encoding="utf-8")
        logs = Logs(log, facts)
        errors = {api: show(logs, planned(logs.source, api, **WEEK)) for api in ASKED}
    if CLICKS.is_file():
        clicks = Logs(CLICKS, "talkingdata")
        apps = {"app": ["19", "35", "29", "10", "5"]}
        asked = {"label": "conversion", "keys": apps, "start": datetime(2017, 11, 6), "days": 5}
        installs = planned(clicks.source, "w3c", unit="device", **asked, impression_site="channel")
        errors["w3c on real clicks"] = show(clicks, installs)
    worst = max(errors.values())
    assert worst < 6, f"the stated noise does not explain the errors: {errors}"
    print(f"\nevery sum is within {worst:.1f} standard deviations of its noise, and every report says whom it protects")


if __name__ == "__main__":
    main()
