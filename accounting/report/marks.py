"""The marks of Markdown that every page here is put together from; what others wrote is escaped."""

import json
import re
from collections.abc import Iterable

from pydantic import JsonValue

from accounting.report.figures import Row, shortened
from accounting.report.phrase import NOT_STATED


def escaped(text: str) -> str:
    """Returns ``text`` for a line of Markdown: nothing in it is a mark, a tag or a link."""
    return re.sub(r"([\\|*~`]|\](?=[(\[:])|<(?=[A-Za-z/!?])|&(?=[#\w]+;)|\b_|_\b)", r"\\\1", shortened(text))


def table(header: Row, rows: Iterable[Row]) -> str:
    """Returns a table of GitHub-flavored Markdown, its cells escaped; one without rows says "not stated"."""
    lines = [header, ("---",) * len(header), *(tuple(map(escaped, row)) for row in rows)]
    lines = lines if len(lines) > 2 else [*lines, (NOT_STATED,) * len(header)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def json_block(value: JsonValue) -> str:
    """Returns a block of code that holds ``value`` as JSON."""
    return f"```json\n{shortened(indented(value))}\n```"


def indented(value: JsonValue) -> str:
    """Returns ``value`` as JSON for people to read."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
