"""A report read back from its file, or refused in one line that names the file."""

from json import JSONDecodeError
from pathlib import Path

from pydantic import ValidationError

from accounting.report.record import Report

REPORT = "report.json"
"""What the report is called in a run folder."""


def read_report(file: Path) -> Report:
    """Returns the report in a file that `Report.to_json` wrote; refuses one that was changed or never was one."""
    try:
        return Report.from_json(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{file} is not a report of this privads: {where}: {first['msg']}") from None
    except (JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a report: {error}") from None
    except ValueError as error:
        raise ValueError(f"{file} is not a report that agrees with itself: {error}") from None
