"""What differs between two reports: in words, as the reports print it, and in figures, as their JSON holds them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pydantic import JsonValue

from accounting.report.facts import audit_rows, facts
from accounting.report.figures import Row, counted, covered, name, scores, shortened, value_scores
from accounting.report.record import Report
from accounting.report.scores import TaskMetrics

_OWN = {"run", "created", "time taken", "ledger entry", "ledger head"}
"""Rows that differ between any two runs; which runs they are stands above the differences."""

_OWN_PATHS = ("headline", "run.id", "run.created_at", "run.seconds", "budget.entry", "budget.head")
_DRAWN, _DRAWN_BLOCK = ("guarantee.curve", "guarantee.over_steps"), "Epsilon over steps"
"""Points of plots: what they are drawn from is compared."""

_KEYS = ("text", "task", "method", "delta", "order", "false_positive_rate", "who", "run")
"""Fields by which an item of a list is found again in the other report's."""


class Change(NamedTuple):
    """One difference, printed with a plus where it is new and a minus where it is gone. None: not there."""

    block: str
    what: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.what}: {self.after}"
        if self.after is None:
            return f"- {self.what}: {self.before}"
        return f"  {self.what}: {self.before} -> {self.after}{_relative(self.before, self.after)}"


class Difference(NamedTuple):
    """A value of the JSON that is not the same in both reports. None: not there, or not stated."""

    path: str
    before: JsonValue
    after: JsonValue


def changes(before: Report, after: Report) -> list[Change]:
    """Returns the differences between what two reports say, in the order in which they say it."""
    said, says = _said(before), _said(after)
    keys = dict.fromkeys([*says, *said])
    blocks = dict.fromkeys(block for block, _ in keys)
    ordered = [key for block in blocks for key in keys if key[0] == block]
    return [Change(*key, said.get(key), says.get(key)) for key in ordered if said.get(key) != says.get(key)]


def differences(before: Report, after: Report) -> list[Difference]:
    """Returns the differences between the figures of two reports, by their path in the JSON."""
    old, new = (dict(_flat(report.model_dump(mode="json"))) for report in (before, after))
    paths = (path for path in dict.fromkeys([*old, *new]) if not path.startswith((*_OWN_PATHS, *_DRAWN)))
    return [Difference(path, old.get(path), new.get(path)) for path in paths if old.get(path) != new.get(path)]


def verdict(before: Report, after: Report) -> str:
    """Returns whether the second run promises more or less than the first, in one sentence."""
    first, second = before.guarantee, after.guarantee
    if first is None or second is None:
        which = (
            "neither run promises" if first is second else f"the {'first' if first is None else 'second'} run promises"
        )
        return f"{which} {'anything' if first is second else 'nothing'}"
    terms = ("delta", "unit", "unit_columns", "neighbors", "released")
    differ = [one.replace("_", " ") for one in terms if getattr(first, one) != getattr(second, one)]
    if differ:
        return f"the promises cannot be compared: they differ in {', '.join(differ)}"
    if first.epsilon == second.epsilon:
        return "both promise the same"
    if first.phrase() == second.phrase():
        return f"both promise the same, but for digits that are not shown: {first.phrase()}"
    more = second.epsilon < first.epsilon
    return f"the second run promises {'more' if more else 'less'}: {first.phrase()} -> {second.phrase()}" + _share(
        first.epsilon, second.epsilon, of=" epsilon"
    )


def _said(report: Report) -> dict[tuple[str, str], str]:
    """Returns (block, name) -> words of all that a report says."""
    found: dict[tuple[str, str], str] = {("Headline", "verdict"): report.verdict}
    found |= {("Covered", line.rstrip(".")): "covered" for line in report.covered}
    found |= {("Covered", line.rstrip(".")): "not covered" for line in report.not_covered}
    found |= {("Assumptions", one.text): f"{one.status}, by {one.by}" for one in report.assumptions}
    blocks: list[tuple[str, list[Row]]] = [
        *((f"Audit: {one.method}", audit_rows(report, one)) for one in report.audit),
        *((block, rows) for block, rows in facts(report).items() if block != _DRAWN_BLOCK),
        *((f"Metrics: {name(task)}", [_about(report, task), *scores(task)]) for task in report.metrics),
        *((f"Metrics: {task.task}", value_scores(task)) for task in report.values),
    ]
    for block, rows in blocks:
        seen: Counter[str] = Counter()
        for what, words, *_ in rows:
            seen[what] += 1
            if what not in _OWN:
                found[block, what if seen[what] == 1 else f"{what} ({seen[what]})"] = words
    return found


def _about(report: Report, task: TaskMetrics) -> Row:
    return "rows", f"{counted(task)} {covered(report, task)}"


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Yields the path and the value of everything in a JSON value that is no object."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        for place, inner in enumerate(value):
            yield from _flat(inner, f"{path}[{_key(inner, place)}]")
    else:
        yield path, value


def _key(item: Any, place: int) -> str:
    own: Iterable[str] = _KEYS if isinstance(item, dict) else ()
    found = next((one for one in own if one in item), None)
    if found is None:
        return str(place)
    segment = item.get("segment")
    return shortened(f"{item[found]}, {segment}" if segment else f"{item[found]}")


def _relative(before: str, after: str) -> str:
    try:
        return _share(float(before.replace(",", "")), float(after.replace(",", "")))
    except ValueError:
        return ""


def _share(before: float, after: float, *, of: str = "") -> str:
    if before <= 0 or before == after:
        return ""
    return f" ({abs(after / before - 1):.1%} {'more' if after > before else 'less'}{of})".replace("%", " %")


def in_words(before: Report, after: Report) -> str:
    """Returns the whole comparison for a terminal."""
    lines = [f"{which}: run {one.run.id}, {one.headline}" for which, one in (("first", before), ("second", after))]
    lines += [verdict(before, after)]
    found = changes(before, after)
    for block in dict.fromkeys(change.block for change in found):
        lines += ["", block, *(str(change) for change in found if change.block == block)]
    return "\n".join(map(shortened, lines))
