"""The benchmark of features runs, small, and says what it says under its own names."""

import json

from typer.testing import CliRunner

from benchmarks import features
from tests.benchmarks.test_rows import app_of


def test_the_small_run_prints_one_line_of_figures() -> None:
    done = CliRunner().invoke(app_of(features.main), ["--quick", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    names = {figure["name"] for figure in found["figures"]}
    assert found["benchmark"] == "features"
    assert {"rows", "tables", "fit", "transform_and_cache", "whole_pipeline", "peak_memory_beyond_start"} == names
