"""The server: charges the budget, runs the rounds, and writes the model and its report into a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accounting.ledger import Ledger
from ads.shared import NODES, PLAN, SCHEMA, task
from federation.flower import federate, server_app
from privads.training import working
from privads.training.fit import Checkpoint


def main(grid: Any, config: Mapping[str, Any]) -> None:
    """Train, going on from the last round where an earlier run of this was killed."""
    folder = Path(config["folder"])
    if (folder / "result").exists():
        raise FileExistsError(f"{folder / 'result'} holds a finished run: name another folder")
    checkpoint = Checkpoint(path=folder / "working" / "round", resume=True, keep=True)
    run = federate(
        task(),
        PLAN,
        grid=grid,
        schema=SCHEMA,
        nodes=NODES,
        round_seconds=float(config["round-seconds"]),
        ledger=Ledger.open(config["ledger"]),
        checkpoint=checkpoint,
    )
    run.save(folder / "result")
    working.remove(checkpoint.path)


app = server_app(main)
