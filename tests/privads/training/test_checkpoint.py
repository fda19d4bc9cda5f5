"""The run folder: complete or absent, and readable without privads."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from accounting.report import render
from accounting.report.record import Report
from privads.config import ConfigError
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.models import DCN, Logistic
from privads.training import checkpoint
from privads.training.checkpoint import check_free, load
from privads.training.fit import fit
from privads.training.run import Run
from privads.training.scores import write_scores
from tests.privads.training.helpers import logs, small_plan


@pytest.fixture
def run(tmp_path: Path) -> Run:
    log = logs(tmp_path)
    return fit(DCN(log.schema, dim=3, tower=(5,)), log, small_plan())


def test_a_saved_run_reads_back_to_the_same_model(run: Run, tmp_path: Path) -> None:
    folder = run.save(tmp_path / "runs" / "one")
    model, schema = load(folder)
    assert schema == run.schema
    assert isinstance(model, DCN)
    for name, value in run.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    log = logs(tmp_path)
    batch = log.take(log.units[:5])
    assert torch.equal(model(batch)["click"], run.model(batch)["click"])


def test_weights_carry_the_plain_modules_names(run: Run, tmp_path: Path) -> None:
    weights = load_file(run.save(tmp_path / "one") / "model.safetensors")
    assert set(weights) == {name for name, _ in DCN(run.schema, dim=3, tower=(5,)).named_parameters()}


def test_the_folder_holds_the_report_and_its_page(run: Run, tmp_path: Path) -> None:
    folder = run.save(tmp_path / "one")
    report = Report.from_json((folder / "report.json").read_text())
    assert report.model.settings == {"dim": 3, "crosses": 2, "tower": [5]}
    assert report.run.config["plan"]["steps"] == 10  # type: ignore[index,call-overload]
    assert report.headline.split(" — ")[0] in (folder / "report.html").read_text().replace("&lt;", "<")


def test_without_the_report_extra_the_page_is_left_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: Report) -> str:
        raise render.MissingExtra('pip install "privads[report]"')

    monkeypatch.setattr(checkpoint, "html", missing)
    folder = run.save(tmp_path / "one")
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors", "report.json"]


def test_a_failure_while_saving_leaves_nothing_behind(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Report) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "html", broken)
    (tmp_path / "runs").mkdir()
    with pytest.raises(OSError, match="no space"):
        run.save(tmp_path / "runs" / "one")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        check_free(tmp_path / "used")
    check_free(tmp_path / "new")


def test_a_model_of_ones_own_is_saved_but_not_built_again(tmp_path: Path) -> None:
    class Mine(Logistic):
        pass

    log = logs(tmp_path)
    folder = fit(Mine(log.schema), log, small_plan()).save(tmp_path / "one")
    assert "table.weight" in load_file(folder / "model.safetensors")
    with pytest.raises(ConfigError, match="model of your own"):
        load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_what_is_no_run_folder_is_refused(run: Run, tmp_path: Path, name: str) -> None:
    folder = run.save(tmp_path / "one")
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"not a run folder: it has no {name}"):
        load(folder)


def test_the_saved_model_is_a_plain_module(run: Run) -> None:
    assert type(run.model) is DCN
    assert all(isinstance(one, nn.Parameter) and not hasattr(one, "grad_sample") for one in run.model.parameters())


@pytest.mark.parametrize("make", [Logistic, DCN])
def test_a_run_read_back_predicts_what_it_predicted(tmp_path: Path, make: type[nn.Module]) -> None:
    """A fixed bug: the schema was saved with its fields in alphabetical order, and scores came out of other rows."""
    log = logs(tmp_path, tasks={"click": "click", "buy": "buy"})
    facts = log.schema.model_dump(mode="json")
    facts["categorical"] = dict(reversed(facts["categorical"].items()))
    shuffled = Logs(log.path, Schema.load(facts))
    run = fit(make(shuffled.schema), shuffled, small_plan(epsilon=50.0))
    folder = run.save(tmp_path / "one")
    model, schema = load(folder)
    assert list(schema.categorical) == list(shuffled.schema.categorical)
    assert schema.tasks == shuffled.schema.tasks
    write_scores(model, schema, log.path, tmp_path / "scores.parquet")
    scores = pyarrow.parquet.read_table(tmp_path / "scores.parquet")
    for task, expected in run.predict(shuffled).items():
        np.testing.assert_allclose(scores[f"{task}_probability"].to_numpy(), expected, rtol=1e-5)


def test_a_changed_schema_is_refused(run: Run, tmp_path: Path) -> None:
    folder = run.save(tmp_path / "one")
    about = json.loads((folder / "model.json").read_text())
    about["schema"]["categorical"] = dict(sorted(about["schema"]["categorical"].items()))
    (folder / "model.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match="was changed"):
        load(folder)
