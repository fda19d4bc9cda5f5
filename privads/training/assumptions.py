"""What a run's guarantee rests on, each with how it is known to hold."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from accounting.report import record
from privads.training.plan import TrainPlan
from privads.training.resume import Resumption

if TYPE_CHECKING:
    from privads.training.run import Facts

_JOINS = "every unit joins every batch independently with the stated probability"
_SAMPLED = {
    "poisson": ((_JOINS, "PoissonSampler"),),
    "balls-in-bins": (
        ("in each epoch every unit joins exactly one batch, a uniformly random one", "BallsInBinsSampler"),
    ),
    "truncated-poisson": (
        (f"{_JOINS}; of more than the largest batch a uniformly random choice stays", "TruncatedPoissonSampler"),
        ("fewer units than the plan's most_units are used, by a private count that the event holds", "at_most"),
    ),
}


def assumptions(plan: TrainPlan, facts: "Facts", *, charged: bool) -> list[record.Assumption]:
    """Returns the assumptions of a finished run. charged: it was charged to a ledger."""
    if not plan.private:
        return []

    def say(status: record.Status, text: str, by: str) -> record.Assumption:
        return record.Assumption(text=text, status=status, by=by)

    who = "unit" if plan.records == 1 else "row"
    said = [
        *(say("enforced", text.replace("every unit", f"every {who}"), by) for text, by in _SAMPLED[plan.sampler]),
        *(say(*one) for one in _about_clipping(plan)),
        say("enforced", "the noised sum is divided by the plan's batch, a public number", "PlanOptimizer"),
        say(
            "checked",
            "no unit's rows enter another unit's gradient through the model",
            "probe on made-up rows",
        ),
    ]
    if charged:
        said.append(say("enforced", "the budget was charged before the first row was read", "Ledger"))
    if plan.table_noise in ("adafest", "fest"):
        text = "which rows of tables are trained follows from noised counts alone, and each of them gets its noise"
        said.append(say("enforced", text, "SelectedTables"))
    if plan.table_noise == "lazy":
        text = "what rows of tables owed of their noise was paid before the model was handed out"
        said.append(say("enforced", text, "LazyTables"))
        if facts.own_loop or facts.own_parts:
            text = "the model reads tables by calling their layers, and no weight is shown while it owes noise"
            said.append(say("asserted", text, "the author of the training loop or the model"))
    if facts.loss_probed and not facts.own_loop:
        said.append(say("checked", "no unit's rows enter another unit's loss", "probe on made-up rows"))
    else:
        said.append(say("asserted", "no unit's rows enter another unit's loss", "the author of the training loop"))
    if facts.own_loop:
        for text in (
            "the training loop shows and keeps nothing but the model",
            "learning rates follow a schedule that no row decides, and weights change in optimizer.step() only",
            *(["nothing of the steps that were repeated had been shown"] if facts.resumptions else []),
        ):
            said.append(say("asserted", text, "the author of the training loop"))
    elif facts.own_parts:
        text = "the model and the loss show and keep nothing of the rows they are given"
        said.append(say("asserted", text, "the author of the model or the loss"))
    else:
        said.append(say("enforced", "nothing computed from rows is shown while training", "privads.fit"))
    said += (
        say("enforced", *one) for one in of_resumptions(facts.resumptions, each="step", again="the steps after it were")
    )
    if facts.steps_done < plan.steps:
        text = f"the loop ended after {facts.steps_done} of {plan.steps} steps for a reason that is not in the rows"
        said.append(say("asserted", text, "the author of the training loop"))
    return said


def of_resumptions(resumptions: Iterable[Resumption], *, each: str, again: str) -> Iterator[tuple[str, str]]:
    """Yields of each time that a run went on from a checkpoint (what holds, by what).

    each: "step" or "round". again: what was charged once more, where anything was.
    """
    for one in resumptions:
        if one.entry is not None:
            yield (
                f"resumed after {each} {one.step}: {again} charged again, as entry {one.entry}",
                "Ledger",
            )
        else:
            yield (
                f"resumed after {each} {one.step} under the run's own charge, which one process can do once",
                "Ledger, by a single-use lease",
            )


def _about_clipping(plan: TrainPlan) -> Iterator[tuple[record.Status, str, str]]:
    who = "unit" if plan.records == 1 else "row"
    yield "enforced", f"one {who} adds at most clip_norm to a step's sum", "UnitGradients, in floating point"
    if plan.clip_quantile is not None:
        text = "the clip norm follows a noised count of clipped units, and the noise is that of the norm in use"
        yield "enforced", text, "ClipNorm"
    if plan.records > 1 and plan.budget is not None and plan.budget.unit != "example":
        text = f"of each unit only a choice of at most {plan.records} rows, made before sampling, is sampled"
        yield "enforced", text, "kept_rows"
    elif plan.records > 1:
        text = f"a row's values enter at most {plan.records // 2} later rows"
        yield "asserted", text, "the author of the schema"
