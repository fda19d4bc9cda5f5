"""The step benchmark says what it measured in the agreed form, and its contenders do the same work."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import dp_step as benchmark
from benchmarks.dp_step import FIELDS, InMemory, Workload

ROOT = Path(__file__).resolve().parents[2]
SMALL = Workload(table_rows=26 * 50, examples=2000, batch=64)


@pytest.mark.slow
def test_the_last_line_has_the_agreed_keys_and_the_issues_figures() -> None:
    command = [sys.executable, "-m", "benchmarks.dp_step", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert report["benchmark"] == "dp_step"
    names = {figure["name"] for figure in report["figures"]}
    stems = ("lazy_over_ordinary", "adafest_over_ordinary", "lazy_over_ghost", "memory_over_ordinary")
    for stem in (*stems, "user_over_example"):
        assert any(name.startswith(stem) for name in names), stem
        assert stem in report["aims"]
    assert all(figure["value"] > 0 for figure in report["figures"])


@pytest.mark.parametrize("ids", ["zipf", "uniform"])
def test_ids_have_the_stated_frequencies(ids: benchmark.Ids) -> None:
    rows = InMemory(Workload(table_rows=26 * 50, examples=20_000, ids=ids))
    field = rows.take(np.arange(20_000)).ids.view(-1, FIELDS)[:, 3] - 3 * 50
    assert 0 <= int(field.min()) <= int(field.max()) < 50
    shares = field.bincount(minlength=50).sort(descending=True).values / 20_000
    weights = 1 / torch.arange(1, 51) if ids == "zipf" else torch.ones(50)
    # ten standard errors of a share of 0.22 at most, and what sorting equal ones adds
    assert torch.allclose(shares, weights / weights.sum(), atol=0.03 if ids == "zipf" else 0.01)


def test_every_contender_takes_steps_on_fresh_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = InMemory(SMALL)
    seen: list[int] = []
    take = rows.take
    monkeypatch.setattr(rows, "take", lambda numbers: (seen.append(hash(numbers.tobytes())), take(numbers))[1])
    for step in (
        benchmark.ordinary(SMALL, rows),
        benchmark.ours(SMALL, rows, noise="lazy", steps=10),
        benchmark.ours(SMALL, rows, noise="dense", steps=10),
        benchmark.ours(SMALL, rows, noise="lazy", unit="user", steps=10),
        benchmark.ours(SMALL, rows, noise="adafest", steps=10),
        benchmark.opacus_ghost(SMALL, rows),
    ):
        step()
        step()
    assert len(set(seen)) == len(seen) == 12


def test_medians_take_turns_and_leave_out_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, turns = [0.0], []

    def taking(name: str, seconds: list[float]) -> benchmark.Step:
        def step() -> None:
            turns.append(name)
            clock[0] += seconds.pop(0)

        return step

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    steps = {"a": taking("a", [9.0, 9.0, 1.0, 2.0, 3.0]), "b": taking("b", [9.0, 9.0, 4.0, 4.0, 40.0])}
    assert benchmark.medians(steps, repetitions=3) == pytest.approx({"a": 2000.0, "b": 4000.0})
    assert turns == ["a", "b"] * 5


@pytest.mark.slow
@pytest.mark.skipif(not benchmark._STATUS.is_file(), reason="only Linux tells a process's own peak")
def test_peak_memory_is_the_steps_own_and_not_the_parents() -> None:
    ballast = np.ones(1 << 27)  # a gibibyte in the parent
    found = {one.name: one.value for one in benchmark.memory_figures(26_000, steps=1)}
    assert found["lazy_peak_memory_26k"] < len(ballast) * 8 / 2**20
