"""Who takes part in a run, what bounds a unit in it, and which uses of the rows its epsilon covers."""

from typing import TYPE_CHECKING

from accounting.report.setting import Actor, Setting
from accounting.report.started import StartedFrom
from privads.attacks.evidence import NOT_COVERED
from privads.training.finished import said_of_metrics
from privads.training.plan import TrainPlan

if TYPE_CHECKING:
    from privads.training.run import Run

_CHOSEN_BY = {
    "poisson": "PoissonSampler, a fresh random choice for each batch",
    "truncated-poisson": "TruncatedPoissonSampler, a fresh random choice for each batch",
    "balls-in-bins": "BallsInBinsSampler, a fresh random choice for each epoch",
}


def bounded_by(plan: TrainPlan) -> str:
    """Returns what enforces the most rows of a unit."""
    return _CHOSEN_BY[plan.sampler] if plan.records == 1 else "kept_rows, a random choice before sampling"


def setting(released: str) -> Setting:
    """Returns who sees what: one company trains on its own rows, and hands out what is ``released`` once."""
    return Setting(
        model="central",
        actors=(
            Actor(
                who="whoever runs the job",
                sees="the rows, the gradients and every step",
                trust="to show nothing of them but what is released",
            ),
            Actor(
                who=f"whoever gets the {released}",
                sees=f"the {released} and this report",
                trust="nothing: the promise is about them",
            ),
        ),
        releases="one",
    )


def covered(run: "Run") -> list[str]:
    """Returns the uses of the rows that are paid for, a sentence each: by the run's own epsilon, or beside it."""
    if not run.plan.private:
        return []
    said = [f"Training: {run.plan.steps} steps on the training rows, by the figure of this report."]
    if run.features is not None and run.features.cost is not None:
        said.append(f"Fitting the features, by itself: {run.features.cost}.")
    releases = dict.fromkeys(one.release for one in run.released if one.release)
    return [*said, *(f"Releasing metrics, by itself: {one}." for one in releases)]


def not_covered(run: "Run") -> list[str]:
    """Returns the uses of the rows that no figure of the report covers, a sentence each."""
    if not run.plan.private:
        said = ["Anything: this run has no differential privacy."]
        return [*said, _initial_weights(run.started_from)] if run.started_from else said
    return [
        *said_of_metrics(
            bare=bool(run.metrics or run.values) and not run.schema.public,
            released=bool(run.released),
            calibrated=bool(run.calibrations),
        ),
        *([] if run.evidence is None else [NOT_COVERED]),
        "Choices made by looking at the rows before the run: features, buckets, ranges, model, budget.",
        _initial_weights(run.started_from),
        "Other uses of these data that are not charged to the same ledger.",
        "Side channels: how long the run took and how much memory it used.",
    ]


def _initial_weights(runs: tuple[StartedFrom, ...]) -> str:
    """Returns what is not covered of what the model had learned before this run."""
    if not runs:
        return "What the model's initial weights had learned elsewhere."
    latest, older = runs[0], len(runs) - 1
    others = {0: "", 1: ", and of a run before it"}.get(older, f", and of {older} runs before it")
    return (
        f"What the initial weights had learned: they are those of run {latest.run} ({latest.cost}, {latest.charged})"
        f"{others}. The figure here is this run's alone, and whoever is in the data of several runs loses what they "
        "cost together."
    )
