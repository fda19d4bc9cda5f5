"""The same tasks among many parties: users train where their rows are, and only noised sums of their updates are used.

>>> import federation
>>> federation.FederatedPlan.__name__
'FederatedPlan'
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from federation.plan import FederatedPlan as FederatedPlan
    from federation.run import FederatedRun as FederatedRun
    from federation.server import federate as federate
    from federation.task import Task as Task

# Flower and Ray tell their makers of each start unless told not to, and read this when they are imported.
for _name, _value in (
    ("FLWR_TELEMETRY_ENABLED", "0"),
    ("FLWR_DISABLE_UPDATE_CHECK", "1"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
):
    os.environ.setdefault(_name, _value)

_NAMES = {
    "FederatedPlan": "federation.plan",
    "FederatedRun": "federation.run",
    "Task": "federation.task",
    "federate": "federation.server",
}

__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'federation' has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
