"""Privacy-preserving ads modelling: differentially private training with a stated epsilon, and reports to trust.

>>> import privads as pa
>>> pa.Budget(epsilon=1.0, delta=1e-7, unit="user").unit
'user'
"""

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accounting.budget import Budget as Budget
    from accounting.budget import BudgetExceeded as BudgetExceeded
    from accounting.ledger import Ledger as Ledger
    from privads import models as models
    from privads.batch import Batch as Batch
    from privads.batch import Rows as Rows
    from privads.features.pipeline import Features as Features
    from privads.features.pipeline import fit_features as fit_features
    from privads.features.transforms import Pipeline as Pipeline
    from privads.logs.logs import Logs as Logs
    from privads.logs.schema import Schema as Schema
    from privads.models import losses as losses
    from privads.training.engine import PrivateEngine as PrivateEngine
    from privads.training.fit import fit as fit
    from privads.training.plan import TrainPlan as TrainPlan
    from privads.training.run import Run as Run

_NAMES = {
    "Batch": "privads.batch",
    "Budget": "accounting.budget",
    "BudgetExceeded": "accounting.budget",
    "Features": "privads.features.pipeline",
    "Ledger": "accounting.ledger",
    "Logs": "privads.logs.logs",
    "Pipeline": "privads.features.transforms",
    "PrivateEngine": "privads.training.engine",
    "Rows": "privads.batch",
    "Run": "privads.training.run",
    "Schema": "privads.logs.schema",
    "TrainPlan": "privads.training.plan",
    "fit": "privads.training.fit",
    "fit_features": "privads.features.pipeline",
    "losses": "privads.models",
    "models": "privads",
}

__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'privads' has no attribute {name!r}")
    if name == "models":
        return importlib.import_module("privads.models")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])


def _check_sibling(name: str) -> None:
    """Refuse to run with another package's ``name`` in place of ours: its numbers would not be ours."""
    found = importlib.util.find_spec(name)
    home = Path(__file__).resolve().parent.parent
    origin = None if found is None or found.origin is None else Path(found.origin).resolve()
    if origin is None or origin.parent.parent != home:
        raise ImportError(
            f"privads needs its own package {name!r} (in {home}), but Python finds {origin}: it shadows ours"
        )


_check_sibling("accounting")
_check_sibling("federation")
