"""Every example runs as it stands: those on real logs where the data are, the demo in `make test-all`."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from privads import cli

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the real logs are not part of the repository: no ../shared/data"
)


@needs_data
@pytest.mark.parametrize("name", ["avazu_ctr", "criteo_ctr", "talkingdata_conversion"])
def test_the_examples_on_real_logs_train_and_report(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(
        sys, "argv", ["privads", "train", f"{ROOT}/examples/{name}.toml", "--out", str(tmp_path / "run")]
    )
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.main()
    printed = out.getvalue()
    auc = re.match(r"AUC ([\d.]+) \[", printed)
    assert auc, printed
    assert float(auc[1]) > 0.55  # chance is 0.5; what each set allows stands in benchmarks.utility
    assert re.search(
        r"^epsilon <= [123]\.\d\d \(delta 1e-0[56], (example|device), add/remove, final model\)", printed, re.M
    )
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.stem)
def test_an_example_holds_data_model_name_and_budget_only(path: Path) -> None:
    keys = re.findall(r"^(\w+) =", path.read_text(encoding="utf-8"), re.M)
    assert set(keys) <= {"path", "schema", "test_after", "test_fraction", "name", "epsilon", "delta", "unit"}


def test_the_attribution_report_shows_sums_budgets_and_noise(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "attribution_report.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for api in ("w3c", "event", "summary"):
        assert re.search(rf"^{api}: (conversions|reports) of simulated-ads", done.stdout, re.M)
    assert re.search(r"site_budget 1, global_budget 8", done.stdout)
    assert "no guarantee where sites act together" in done.stdout
    assert re.search(r"^  phone-ios +[\d,.]+   true +[\d,]+   noise std 2.8$", done.stdout, re.M)
    assert ("talkingdata-adtracking" in done.stdout) == DATA.is_dir()
    assert done.stdout.splitlines()[-1].startswith("every sum is within ")


@pytest.mark.slow
def test_the_demo_ends_with_its_five_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    starts = [line.split()[0] for line in done.stdout.splitlines()[-5:]]
    assert starts == ["AUC", "calibration", "epsilon", "budget", "report:"]
    assert "Bayes optimum" in done.stdout


def run_of(example: str, folder: Path) -> list[str]:
    """The lines that an example prints; it asserts its own headline."""
    command = [sys.executable, str(ROOT / "examples" / f"{example}.py")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_companies_that_share_users_say_what_it_costs_them(tmp_path: Path) -> None:
    lines = run_of("federated_silos", tmp_path)
    assert lines[2].startswith("epsilon <= 4.00 (delta 1e-06, user, add/remove, models of all rounds)")
    assert re.fullmatch(r"with this noise, epsilon of a user of one silo: 1\.\d\d, of two: 4\.00", lines[-1])


@pytest.mark.slow
def test_pins_are_learned_among_their_users_or_a_simulated_log_in_their_place(tmp_path: Path) -> None:
    lines = run_of("federated_pinterest", tmp_path)
    assert lines[0].startswith("there is no") != DATA.is_dir()
    assert re.fullmatch(r"AUC 0\.\d{3} among users, 0\.\d{3} in one place: [\d.]+%", lines[-1])
