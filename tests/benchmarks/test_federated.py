"""The benchmark of federated training runs, small, and says what it measured under the agreed names."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.federated.speed import EVENTS, ITEMS, ItemNetwork, interactions

ROOT = Path(__file__).resolve().parents[2]


def test_the_last_line_has_the_figures_and_their_targets() -> None:
    command = [sys.executable, "-m", "benchmarks.federated", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    figures = {figure["name"]: figure for figure in report["figures"]}
    assert (report["benchmark"], report["quick"]) == ("federated", True)
    assert figures["local_backend"]["target"] == ">= 2000"
    assert figures["memory_of_ten_times_the_cohort"]["holds"]
    assert figures["epsilon_over_dp_accounting"]["holds"]
    anchors = {"silos_1": 2.13, "silos_2": 4.55, "silos_5": 13.0, "over_selection_30": 2.80}
    for name, expected in anchors.items():
        assert figures[f"epsilon_{name}"]["value"] == pytest.approx(expected, rel=0.004)


def test_the_task_is_the_one_that_the_figures_speak_of() -> None:
    rows = interactions(2000)
    assert np.bincount(rows.units).mean() == pytest.approx(EVENTS, rel=0.05)
    assert tuple(ItemNetwork().table.weight.shape) == (ITEMS, 32)
