"""Models: each is ``forward(batch) -> {task: logit (rows,)}``, made from a schema; a number has outputs of its kind."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from privads.config import ConfigError, nearest_name
from privads.logs.schema import Schema
from privads.models import losses
from privads.models.dcn import DCN
from privads.models.deepfm import DeepFM
from privads.models.dlrm import DLRM
from privads.models.esmm import ESMM
from privads.models.fm import FM
from privads.models.logistic import Logistic
from privads.models.mmoe import MMoE
from privads.models.ple import PLE
from privads.models.shared_bottom import SharedBottom
from privads.models.wide_deep import WideDeep

MODELS: dict[str, type[nn.Module]] = {
    "logistic": Logistic,
    "fm": FM,
    "wide-deep": WideDeep,
    "deepfm": DeepFM,
    "dcn": DCN,
    "dlrm": DLRM,
    "shared-bottom": SharedBottom,
    "mmoe": MMoE,
    "ple": PLE,
    "esmm": ESMM,
}

__all__ = [
    "DCN",
    "DLRM",
    "ESMM",
    "FM",
    "MODELS",
    "PLE",
    "DeepFM",
    "Logistic",
    "MMoE",
    "SharedBottom",
    "WideDeep",
    "build",
    "losses",
]


def build(name: str, schema: Schema, settings: Mapping[str, Any] | None = None) -> nn.Module:
    """Returns the model that a run's [model] table asks for; raises `ConfigError` for an unknown name or setting."""
    if name not in MODELS:
        raise ConfigError(f"model.name {name!r} is unknown{nearest_name(name, MODELS)}; known: {', '.join(MODELS)}")
    known = {key: one.default for key, one in inspect.signature(MODELS[name]).parameters.items() if key != "schema"}
    given = {key: tuple(one) if isinstance(one, list) else one for key, one in (settings or {}).items()}
    for key, value in given.items():
        if key not in known:
            near = nearest_name(key, known) or f"; known: {', '.join(known) or 'none'}"
            raise ConfigError(f"model {name!r} has no setting {key!r}{near}")
        numbers = value if isinstance(value, tuple) else ()
        if type(value) is not type(known[key]) or any(type(one) is not int for one in numbers):
            raise ConfigError(f"model {name!r}: {key} must be {_form(known[key])}, got {value!r}")
    return MODELS[name](schema, **given)


def _form(default: Any) -> str:
    """Returns what a setting with this default looks like in a file."""
    return "a list of whole numbers, such as [8]" if isinstance(default, tuple) else f"of the form {default!r}"
