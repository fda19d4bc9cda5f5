"""`make demo`: from nothing to a private conversion model and its report, offline, in about a minute.

It simulates an ads log, sets a budget on it, trains a model within the budget and prints what it cost. The folder is
made anew each time; a real data set keeps one ledger for its whole life.
"""

import shutil
import subprocess
import sys
from pathlib import Path

USERS = 40_000
FOLDER = Path("demo")
RUN_TOML = """\
[data]
path = "impressions.parquet"
schema = "ads.toml"
test_after = 2026-11-15T00:00:00
[ledger]
url = "sqlite:///budget.db"
[model]
name = "logistic"
[plan]
epsilon = 3.0
delta = 1e-6
unit = "user"
"""


def privads(*arguments: str) -> str:
    """Run one verb of the command line, shown as a user would type it; returns what it printed."""
    print(f"\n$ privads {' '.join(arguments)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "privads.cli", *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    print(done.stdout, end="", flush=True)
    return done.stdout


def main() -> None:
    """Simulate, set the budget, train, report."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    (FOLDER / "run.toml").write_text(RUN_TOML, encoding="utf-8")
    privads("simulate", "--users", str(USERS), "--out", f"{FOLDER}/impressions.parquet")
    ledger = ("--ledger", f"sqlite:///{FOLDER}/budget.db", "--dataset", "simulated-ads")
    privads("budget", "init", *ledger, "--epsilon", "4", "--delta", "1e-5", "--unit", "user")
    printed = privads("train", f"{FOLDER}/run.toml", "--out", f"{FOLDER}/run").splitlines()
    auc = float(printed[0].split()[1])
    assert auc > 0.65, f"the model learned little: AUC {auc}"
    assert printed[2].startswith("epsilon <= "), printed[2]


if __name__ == "__main__":
    main()
