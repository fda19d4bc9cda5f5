"""The JSON Schema of a report, generated from its classes; it is published beside this file."""

import json
from importlib.resources import files

from accounting.report.record import Report

FILE = "report.schema.json"
"""Made anew by `privads report schema` where the classes changed."""


def schema_json() -> str:
    """Returns the schema that the classes have now, as canonical JSON."""
    return json.dumps(Report.model_json_schema(), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def published() -> str:
    """Returns the schema that comes with the package."""
    return (files("accounting.report") / FILE).read_text(encoding="utf-8")
