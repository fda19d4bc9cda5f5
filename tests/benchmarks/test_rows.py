"""The benchmark of drawing and gathering says what it measured in the agreed form."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import rows as benchmark
from benchmarks.harness import Figure
from privads.logs.cache import CachedRows, cached
from privads.logs.encode import Part

ROOT = Path(__file__).resolve().parents[2]
SIZES = benchmark.Sizes(rows=20_000, batches=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> CachedRows:
    facts = benchmark.schema(SIZES.rows)
    return cached(lambda: benchmark.parts(facts, SIZES.rows), facts, folder=tmp_path_factory.mktemp("rows"))


def test_the_last_line_has_the_two_figures_and_their_targets() -> None:
    command = [sys.executable, "-m", "benchmarks.rows", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["benchmark"], report["quick"], report["batch"]) == ("rows", True, 4096)
    figures = {figure["name"]: figure for figure in report["figures"]}
    assert figures["example_draw"]["target"] == "<= 1"
    assert figures["example_draw_and_gather"]["target"] == "<= 10"
    for figure in figures.values():
        assert set(figure) == {"name", "value", "unit", "target", "holds"}
        assert figure["value"] > 0


def test_the_rows_are_those_that_the_figures_speak_of(made: CachedRows) -> None:
    figures = {figure.name: figure.value for figure in benchmark.batch_figures(made, SIZES)}
    assert made.dense.shape == (20_000, 13)
    assert made.ids.shape == (20_000, 26)
    assert figures["example_rows"] == pytest.approx(4096, rel=0.05)
    assert figures["user_rows"] > 10_000  # every user of 2,500
    counts = np.bincount(made.ids[:, 0])
    assert counts[1] > 8 * counts[20:30].mean()  # ids fall off as 1 / rank


def test_a_slow_gather_misses_its_target(made: CachedRows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "as_batch", lambda rows, numbers: time.sleep(0.011))
    figures: dict[str, Figure] = {figure.name: figure for figure in benchmark.batch_figures(made, SIZES)}
    assert figures["example_draw_and_gather"].holds is False


def test_a_user_s_rows_are_spread_over_the_log() -> None:
    facts = benchmark.schema(300_000)
    first: Part = next(benchmark.parts(facts, 300_000))
    assert len(set(first.units[0])) > 30_000
