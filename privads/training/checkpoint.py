"""The run folder: written whole or not at all, and read back."""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accounting.report.page import MissingExtra
from accounting.report.record import Report
from accounting.report.render import html
from privads.config import ConfigError, parse_model
from privads.evaluation.calibrate import Calibration
from privads.features.pipeline import Features
from privads.logs.schema import Schema
from privads.models import MODELS, build
from privads.new_folder import new_folder
from privads.training.finished import Finished

WEIGHTS, MODEL, REPORT, PAGE = "model.safetensors", "model.json", "report.json", "report.html"
FEATURES = "features.json"


def check_free(folder: Path) -> None:
    """Refuse a run folder that exists and is not empty: a run never overwrites another's report."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"run folder {folder} exists already: choose another with --out, or remove it")


def check_writable(folder: Path) -> None:
    """Refuse a place for the run folder that cannot be written, before anything is charged; makes its parent."""
    check_free(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot write the run folder {folder} ({error.strerror}): choose another with --out"
        ) from None


def save(run: Finished, folder: Path) -> Path:
    """Returns ``folder``, written by a rename of a complete one, so that half a run is never found.

    The weights carry the plain module's parameter names and load into it without privads. Without the `report` extra
    there is no report.html; report.json says everything it would.
    """
    check_free(folder)
    report = run.report()
    with new_folder(folder) as draft:
        save_file({name: value.contiguous() for name, value in run.model.state_dict().items()}, draft / WEIGHTS)
        about = {
            "name": name_of(run.model),
            "settings": report.model.settings,
            "schema": run.schema.model_dump(mode="json"),
            "schema_sha256": run.schema.sha256,
            "features_sha256": None if run.features is None else run.features.sha256,
            "calibrations": {task: one.to_json() for task, one in run.calibrations.items()},
        }
        if run.features is not None:
            run.features.save(draft / FEATURES)
        # In the schema's own order: the order of its fields is the order of the table's rows and of the columns.
        (draft / MODEL).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        (draft / REPORT).write_text(report.to_json(), encoding="utf-8")
        with contextlib.suppress(MissingExtra):
            (draft / PAGE).write_text(html(report), encoding="utf-8")
    return folder


def load(folder: Path) -> tuple[nn.Module, Schema]:
    """Returns (model, schema) of a run folder; raises `ConfigError` where it is none."""
    name, settings, schema = read_about(folder)
    if name not in MODELS:
        raise ConfigError(f"{folder} holds a model of your own ({name}): load {WEIGHTS} into it with safetensors")
    model = build(name, schema, settings)
    model.load_state_dict(read_weights(folder))
    return model.eval(), schema


def load_features(folder: Path) -> Features | None:
    """Returns the fitted transforms by which a run folder's model reads rows; None where it reads their columns."""
    about = json.loads(_existing(folder, MODEL).read_text(encoding="utf-8"))
    if about.get("features_sha256") is None:
        return None
    features = Features.load(_existing(folder, FEATURES))
    if features.sha256 != about["features_sha256"]:
        raise ConfigError(f"{folder / FEATURES} was changed: these are not the features the model was trained with")
    return features


def load_calibrations(folder: Path) -> dict[str, Calibration]:
    """Returns {task: the map to calibrated probabilities} of a run folder; empty where it has none."""
    file = _existing(folder, MODEL)
    stated = json.loads(file.read_text(encoding="utf-8")).get("calibrations", {})
    try:
        return {task: Calibration.from_json(one) for task, one in stated.items()}
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(f"{file} was changed: its calibrations cannot be read") from None


def name_of(model: nn.Module) -> str:
    """Returns the name by which a run asks for the model; of one's own model, that of its class."""
    names = {kind: name for name, kind in MODELS.items()}
    return names.get(type(model), type(model).__name__)


def read_about(folder: Path) -> tuple[str, dict[str, Any], Schema]:
    """Returns (name, settings, schema) of a run folder's model."""
    file = _existing(folder, MODEL)
    if (folder / "learned.json").is_file():
        raise ConfigError(
            f"{folder} is no run folder: `privads learn` wrote it. Score a log with it by `privads predict`, or train "
            "on a synthetic log of it (learn.sample)"
        )
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        name, settings, stated, sha256 = (about[key] for key in ("name", "settings", "schema", "schema_sha256"))
        name, settings = str(name), dict(settings)
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{file} was changed: it does not say what model it is about") from None
    schema = parse_model(Schema, stated, source=str(file))
    if schema.sha256 != sha256:
        raise ConfigError(f"{file} was changed: its schema is not the one that the model was trained with")
    return name, settings, schema


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Returns {name: weight} of a run folder."""
    file = _existing(folder, WEIGHTS)
    try:
        weights: dict[str, Tensor] = load_file(file)
    except SafetensorError:
        raise ConfigError(f"{file} is damaged: no weights can be read from it") from None
    return weights


def read_report(folder: Path) -> Report:
    """Returns the report of a run folder; refuses one whose facts do not agree with each other."""
    file = _existing(folder, REPORT)
    try:
        return Report.from_json(file.read_text(encoding="utf-8"))
    except ValueError:
        raise ConfigError(f"{file} was changed, or is no report: its facts do not agree with each other") from None


def _existing(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no {name}")
    return folder / name
