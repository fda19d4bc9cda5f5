"""The plot of epsilon against normalized entropy, a panel for each data set and label. Needs the extra `report`."""

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.utility.results import Result
from privads.config import ConfigError

FORMATS = (".svg", ".png")
COLUMNS = 3
WIDTH, HEIGHT = 4.2, 3.0  # of a panel, in inches


def check(file: Path) -> None:
    """Refuse a file that cannot be drawn, before anything is measured."""
    if file.suffix not in FORMATS:
        raise ConfigError(f"a plot is written as {' or '.join(FORMATS)}, got {file.name!r}")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError('a plot needs matplotlib: pip install "privads[report]"') from error


def draw(found: Sequence[Result], file: Path) -> None:
    """Writes the means over seeds with their intervals; the models without privacy stand at the right."""
    from matplotlib.figure import Figure

    groups: dict[str, list[Result]] = {}
    for result in found:
        groups.setdefault(f"{result.first.dataset}, {result.task}", []).append(result)
    epsilons = sorted({one.first.epsilon for one in found}, key=lambda epsilon: epsilon or math.inf)
    models = list(dict.fromkeys(one.first.model for one in found))
    rows = math.ceil(len(groups) / COLUMNS)
    columns = min(COLUMNS, len(groups))
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows + 0.5), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (title, group) in zip(panels, groups.items(), strict=False):
        for number, model in enumerate(models):
            line = sorted(
                (one for one in group if one.first.model == model),
                key=lambda one: one.first.epsilon or math.inf,
            )
            if not line:
                continue
            x = [epsilons.index(one.first.epsilon) + 0.06 * (number - len(models) / 2) for one in line]
            y = [one.entropy.mean for one in line]
            up = [0.0 if math.isnan(one.entropy.high) else one.entropy.high - one.entropy.mean for one in line]
            axes.errorbar(x, y, yerr=up, color=f"C{number}", marker="o", markersize=3, linewidth=1, label=model)
        axes.axhline(1.0, color="0.4", linewidth=1, linestyle="--")  # the constant predictor
        axes.set_xticks(range(len(epsilons)), ["none" if one is None else f"{one:g}" for one in epsilons])
        axes.set(title=title, xlabel="epsilon", ylabel="normalized entropy")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    handles = {label: one for axes in figure.axes for one, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), frameon=False)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
