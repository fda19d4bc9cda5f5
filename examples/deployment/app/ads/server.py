"""The server: charges the budget, runs the rounds, and writes the model and its report into a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from accounting.ledger import Ledger
from ads.shared import NODES, PLAN, SCHEMA, task
from federation.flower import federate, server_app
from privads.training.fit import Checkpoint


def main(grid: Any, config: Mapping[str, Any]) -> None:
    """Train, going on from the last round where an earlier run of this was killed."""
    folder = Path(config["folder"])
    run = federate(
        task(),
        PLAN,
        grid=grid,
        schema=SCHEMA,
        nodes=NODES,
        round_seconds=float(config["round-seconds"]),
        ledger=Ledger.open(config["ledger"]),
        checkpoint=Checkpoint(path=folder / "working" / "round", resume=True),
    )
    save_file(run.model.state_dict(), folder / "model.safetensors")
    (folder / "report.draft").write_text(run.report().to_json(), encoding="utf-8")
    (folder / "report.draft").rename(folder / "report.json")  # whole or not there


app = server_app(main)
