"""How many times as fast as others' simulations the local backend is: Flower on Ray with a node a user, and pfl.

The task of `benchmarks.federated.speed`, on the same events, in rounds of as many users, one simulation after the
other. The others run with a Python of their own, whose packages need other versions than this project's: Flower with
one of Ray's processes for each of two cores, pfl in one process. They neither clip nor add noise, and their first
round, in which things start, does not count; the local backend's time is that of whole runs, with both.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.federated import speed
from benchmarks.harness import Figure
from federation.server import federate
from federation.task import Task

CORES = 2
LEARNING_RATE = 0.1
LEAST_TIMES = {"flower": 30.0, "pfl": 10.0}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured. rounds: of the others; ours are more, as they are short."""

    users: int = 400
    cohort: int = 200
    rounds: int = 4
    own_rounds: int = 50


QUICK = Sizes(users=20, cohort=10, rounds=2, own_rounds=2)


def figures(sizes: Sizes, pythons: dict[str, Path]) -> Iterator[Figure]:
    """Yields users a second of the local backend and of those simulations whose Python is given, and how many times
    as many the local backend's are. pythons: by the names of `LEAST_TIMES`.
    """
    rows = speed.interactions(sizes.users)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.npz"
        np.savez(path, units=rows.units, items=rows.items.numpy(), engaged=rows.engaged.numpy())
        for name, python in pythons.items():
            before = _own(rows, sizes)
            other = sizes.cohort / _seconds(name, python, path, sizes, Path(folder))
            own = (before + _own(rows, sizes)) / 2  # around the other: the machine may be busier at one time
            yield Figure(name=f"{name}_local_backend", value=own, unit="users/s")
            yield Figure(name=name, value=other, unit="users/s")
            yield Figure(name=f"times_{name}", value=own / other, unit="times", at_least=LEAST_TIMES[name])


def _own(rows: speed.Interactions, sizes: Sizes) -> float:
    """Returns users a second of whole runs."""
    task = Task(
        model=speed.ItemNetwork(), local_learning_rate=LEARNING_RATE, local_steps=speed.LOCAL_STEPS, rows_per_user=32
    )
    plan = speed.plan_for(sizes.users, sizes.cohort, sizes.own_rounds)
    started = time.perf_counter()
    federate(task, rows, plan)
    return sizes.cohort * sizes.own_rounds / (time.perf_counter() - started)


def _seconds(name: str, python: Path, path: Path, sizes: Sizes, folder: Path) -> float:
    """Returns the seconds of one of another simulation's rounds."""
    facts = {
        "users": sizes.users,
        "cohort": sizes.cohort,
        "rounds": sizes.rounds,
        "items": speed.ITEMS,
        "dim": speed.DIM,
        "hidden": speed.HIDDEN,
        "steps": speed.LOCAL_STEPS,
        "lr": LEARNING_RATE,
        "cores": CORES,
    }
    script = str(Path(__file__).with_name(f"by_{name}.py"))
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "FLWR_HOME": str(folder)}
    done = subprocess.run(
        [str(python), script, str(path), json.dumps(facts)],
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{script} failed: {done.stderr.strip().splitlines()[-1:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])
