"""`privads train --audit`: what it prints, what a contradicted claim exits with, and what is refused for nothing."""

import json
from pathlib import Path

import pytest

from accounting.ledger import Ledger
from privads.noise import Randomness
from tests.privads.test_cli import Done, privads, refused, simulated

RUN_TOML = """\
[data]
path = "log.parquet"
schema = "ads.toml"
[ledger]
url = "sqlite:///budget.db"
[plan]
epsilon = 1.0
delta = 1e-6
unit = "user"
batch = 100
epochs = 4
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return simulated(tmp_path, RUN_TOML, users=1000, epsilon=5.0)


def train(folder: Path, *options: str) -> Done:
    return privads(folder, "train", "run.toml", "--quiet", *options)


def says_that_its_counts_are_not_charged(run: Path) -> bool:
    """An audit compares what was released with what made it: that outcome is a use of the rows of its own."""
    said = json.loads((run / "report.json").read_text())["not_covered"]
    return sum("nothing is charged for its counts" in one for one in said) == 1


def test_an_audited_run_prints_its_audit_beside_the_claim(folder: Path) -> None:
    done = train(folder, "--audit", "canaries=200", "--out", "run")
    assert done.returncode == 0, done.stderr
    claim, audit, left, _ = done.stdout.splitlines()
    assert claim.endswith("its model has learned from up to 200 planted canaries")
    assert audit.startswith(("audit: consistent: epsilon >= ", "audit: inconclusive: epsilon >= "))
    assert "at 95 % confidence by one-run audit, ideal canaries show " in audit
    assert left.startswith("budget left: epsilon = 4.00")
    saved = json.loads((folder / "run" / "report.json").read_text())
    assert [one["canary_kind"] for one in saved["audit"]] == ["gradient"]
    assert saved["run"]["config"]["audit"] == {"canaries": 200, "kind": "gradient"}
    assert says_that_its_counts_are_not_charged(folder / "run")


def test_a_claim_that_the_audit_contradicts_exits_with_4_and_the_run_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Randomness.normal_like
    monkeypatch.setattr(
        Randomness, "normal_like", lambda self, like, *, noise_std: 0.05 * drawn(self, like, noise_std=noise_std)
    )
    done = train(folder, "--audit", "canaries=200", "--audit", "kind=row", "--out", "run", "--json")
    assert done.returncode == 4
    assert done.stderr == "privads: the audit contradicts the claim: do not hand out the model\n"
    assert json.loads(done.stdout)["headline"].startswith("VIOLATED")
    assert (folder / "run" / "report.json").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--audit", "kind=user"], "missing key 'audit.canaries'"),
        (["--audit", "canaries=5"], "audit.canaries"),
        (["--audit", "canary=500"], "did you mean 'canaries'"),
        (["--audit", "500"], "--audit takes KEY=VALUE"),
        (["--audit", "canaries=200", "--set", "run.checkpoint=working"], "cannot be resumed"),
        (["--audit", "canaries=6000", "--set", "plan.delta=1e-4"], "a delta of at most 8.33e-05"),
        (["--audit", "canaries=5000"], "each of 5000 canaries needs a direction of its own, and 4037 weights"),
    ],
)
def test_an_audit_that_cannot_be_made_is_refused_and_spends_nothing(
    folder: Path, options: list[str], words: str
) -> None:
    refused(train(folder, *options), 2, words)
    assert Ledger.open(f"sqlite:///{folder / 'budget.db'}").balance("simulated-ads").spent_epsilon == 0


def federate(folder: Path, *options: str) -> Done:
    table = ("--set", "federation.cohort=300", "--set", "federation.rounds=8")
    return privads(folder, "federate", "run.toml", "--quiet", *table, *options)


def test_an_audited_federated_run_is_held_to_its_claim_in_the_same_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = federate(folder, "--audit", "canaries=200", "--out", "honest")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith("its model has learned from up to 200 planted canaries")
    assert done.stdout.splitlines()[1].startswith(
        ("audit: consistent: epsilon >= ", "audit: inconclusive: epsilon >= ")
    )
    assert says_that_its_counts_are_not_charged(folder / "honest")
    drawn = Randomness.normal_like
    monkeypatch.setattr(
        Randomness, "normal_like", lambda self, like, *, noise_std: 0.05 * drawn(self, like, noise_std=noise_std)
    )
    done = federate(folder, "--audit", "canaries=200", "--out", "run")
    assert done.returncode == 4
    assert done.stderr == "privads: the audit contradicts the claim: do not hand out the model\n"
    assert (folder / "run" / "report.json").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--audit", "canaries=200", "--audit", "kind=row"], "kind 'gradient' or 'user', not 'row'"),
        (["--audit", "canaries=200", "--set", "run.checkpoint=working"], "cannot be resumed"),
    ],
)
def test_a_federated_audit_that_cannot_be_made_spends_nothing(folder: Path, options: list[str], words: str) -> None:
    refused(federate(folder, *options), 2, words)
    assert Ledger.open(f"sqlite:///{folder / 'budget.db'}").balance("simulated-ads").spent_epsilon == 0
