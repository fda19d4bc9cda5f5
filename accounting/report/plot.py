"""The plots of a report, and what all plots have in common. The only file here that draws."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from xml.sax.saxutils import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from accounting.report.figures import shortened
from accounting.report.guarantee import Guarantee
from accounting.report.scores import TaskMetrics

# Stand-ins for the page's colors, so that the plot follows its dark mode.
INK = "#010203"
ACCENT = "#040506"

_PLAIN = FuncFormatter(lambda value, _: f"{value:.3g}")


def calibration_plot(task: TaskMetrics) -> str:
    """Returns an SVG of observed rate against mean prediction, the same bytes for the same numbers."""
    x = [at.mean_predicted for at in task.curve]
    y = [at.observed_rate for at in task.curve]
    low = [y[i] if at.low is None else at.low for i, at in enumerate(task.curve)]
    high = [y[i] if at.high is None else at.high for i, at in enumerate(task.curve)]
    least, most = min(x + low), max(x + high)
    with _fresh(f"{task.task}"):
        figure = Figure(figsize=(4.4, 3.3), layout="constrained")
        axes = plain_axes(figure)
        if least > 0 and max(x) > 10 * min(x):
            axes.set(xscale="log", yscale="log")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_minor_locator(NullLocator())
            ends = (least / 1.3, most * 1.3)
        else:
            ends = (0.0, most * 1.06 or 1.0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_PLAIN)
        axes.plot(ends, ends, color=INK, alpha=0.45, linewidth=1, linestyle=(0, (4, 3)))
        axes.vlines(x, low, high, color=ACCENT, alpha=0.6, linewidth=1.6)
        axes.plot(x, y, color=ACCENT, marker="o", markersize=4.5, linestyle="none")
        axes.set(xlim=ends, ylim=ends, xlabel="mean predicted", ylabel="observed rate")
        drawing = drawn(figure)
    return titled(drawing, shortened(f"Calibration of {task.task}: observed rate against mean prediction"))


def steps_plot(promise: Guarantee) -> str:
    """Returns an SVG of epsilon over the steps of the run; nothing where there are not two points to draw."""
    x = [at.steps for at in promise.over_steps]
    y = [at.epsilon for at in promise.over_steps]
    if len(x) < 2:
        return ""
    with _fresh("steps"):
        figure = Figure(figsize=(4.4, 2.9), layout="constrained")
        axes = plain_axes(figure)
        axes.plot(x, y, color=ACCENT, marker="o", markersize=4.5, linewidth=1.4)
        axes.set(xlim=(0, max(x) * 1.03), ylim=(0, max(y) * 1.08 or 1.0), xlabel="steps", ylabel="epsilon")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.yaxis.set_major_formatter(_PLAIN)
        drawing = drawn(figure)
    return titled(drawing, f"Epsilon over the steps: {promise.phrase()} after all {x[-1]:,}")


def profile_plot(promise: Guarantee) -> str:
    """Returns an SVG of delta over epsilon, the claim marked; nothing where there are not two points to draw."""
    of_claim = (promise.epsilon, promise.delta)
    points = sorted({of_claim, *((at.epsilon, at.delta) for at in (*promise.profile, *promise.curve))})
    if len(points) < 2:
        return ""
    with _fresh("profile"):
        figure = Figure(figsize=(4.4, 2.9), layout="constrained")
        axes = plain_axes(figure)
        axes.plot(*zip(*points, strict=True), color=ACCENT, marker="o", markersize=3, linewidth=1.4)
        axes.plot(*of_claim, color=INK, marker="D", markersize=7, fillstyle="none", linestyle="none")
        axes.set(yscale="log", xlim=(0, points[-1][0] * 1.04 or 1.0), xlabel="epsilon", ylabel="delta")
        axes.xaxis.set_major_formatter(_PLAIN)
        axes.yaxis.set_major_locator(LogLocator(numticks=8))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
        drawing = drawn(figure)
    return titled(drawing, f"Privacy profile: delta over epsilon; the diamond is the claim, {promise.phrase()}")


@contextmanager
def _fresh(name: str) -> Iterator[None]:
    """Draw with matplotlib's defaults, and with identifiers that are the same in every drawing of this name alone."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": f"privads:{name}", "svg.fonttype": "none"})
        yield


def plain_axes(figure: Figure) -> Axes:
    """Returns the figure's axes, in the page's colors and without what is no information."""
    axes = figure.subplots()
    for one in (figure, axes):
        one.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(color=INK, labelcolor=INK, labelsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(INK)
    return axes


def drawn(figure: Figure) -> str:
    """Returns a figure as SVG, without what would differ from drawing to drawing."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawing, flags=re.DOTALL)
    return re.sub(r'(<g) id="[^"]*"', r"\1", drawing)  # matplotlib's names repeat from plot to plot


def titled(drawing: str, title: str) -> str:
    """Returns the SVG with a title for who cannot see it, in the page's own colors."""
    head = re.search(r"<svg .*?(viewBox=\"[^\"]*\").*?>", drawing, flags=re.DOTALL)
    drawing = f'<svg role="img" {head[1]}><title>{escape(title)}</title>{drawing[head.end() :]}' if head else ""
    return drawing.replace(INK, "currentColor").replace(ACCENT, "var(--accent)")
