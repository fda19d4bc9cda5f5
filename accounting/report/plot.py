"""The calibration plot of a report, and what all plots have in common. The only file here that imports matplotlib."""

import io
import re
from xml.sax.saxutils import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from accounting.report.scores import TaskMetrics

# Stand-ins for the page's colors, so that the plot follows its dark mode.
INK = "#010203"
ACCENT = "#040506"


def calibration_plot(task: TaskMetrics) -> str:
    """Returns an SVG of observed rate against mean prediction, the same bytes for the same numbers."""
    x = [at.mean_predicted for at in task.curve]
    y = [at.observed_rate for at in task.curve]
    low = [y[i] if at.low is None else at.low for i, at in enumerate(task.curve)]
    high = [y[i] if at.high is None else at.high for i, at in enumerate(task.curve)]
    least, most = min(x + low), max(x + high)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": f"privads:{task.task}", "svg.fonttype": "none"})
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
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.plot(ends, ends, color=INK, alpha=0.45, linewidth=1, linestyle=(0, (4, 3)))
        axes.vlines(x, low, high, color=ACCENT, alpha=0.6, linewidth=1.6)
        axes.plot(x, y, color=ACCENT, marker="o", markersize=4.5, linestyle="none")
        axes.set(xlim=ends, ylim=ends, xlabel="mean predicted", ylabel="observed rate")
        drawing = drawn(figure)
    return titled(drawing, f"Calibration of {task.task}: observed rate against mean prediction")


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
