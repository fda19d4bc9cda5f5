"""The benchmark of features runs, small, and says what it measured under the agreed names."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_last_line_has_the_figure_and_its_target() -> None:
    command = [sys.executable, "-m", "benchmarks.features", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    figures = {figure["name"]: figure for figure in report["figures"]}
    assert (report["benchmark"], report["quick"]) == ("features", True)
    assert figures["whole_pipeline"]["target"] == "<= 60"
    assert figures["tables"]["value"] == 14
    assert "peak_memory_beyond_start" in figures
