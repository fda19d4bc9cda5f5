"""An exploration as one self-contained HTML page with plots. It needs jinja2 and matplotlib, the extra `report`."""

from importlib import resources

from accounting.report.page import MissingExtra
from privads.features.explore import Column, Estimate, Exploration


def html(found: Exploration) -> str:
    """Returns the page; the same bytes for the same exploration."""
    check_extra()
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("privads.features"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    css = (resources.files("accounting.report") / "templates" / "report.css").read_text(encoding="utf-8")
    return environment.get_template("explore.html").render(
        found=found,
        css=Markup(css),
        ranking=Markup(_ranking(found)),
        plots=[(column, Markup(_rates(column, found))) for column in found.columns],
        count=lambda value: f"{value:,.0f}",
        percent=lambda value: f"{value:.3%}" if abs(value) < 0.01 else f"{value:.2%}",
        short=lambda value: f"{value:.3g}",
    )


def check_extra() -> None:
    """Refuse, before anything is charged, where the page could not be written."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtra('a page needs jinja2 and matplotlib: pip install "privads[report]"') from error


def _ranking(found: Exploration) -> str:
    shown = [column for column in reversed(found.columns) if column.information is not None]
    told = [column.information for column in shown if column.information is not None]
    title = f"What each column tells of {found.label}"
    return _bars([column.name for column in shown], told, title=title, label="nats")


def _rates(column: Column, found: Exploration) -> str:
    known = [(cell.name, cell.rate) for cell in reversed(column.cells) if cell.rate is not None]
    title = f"Rate of {found.label} by {column.name}"
    return _bars([name for name, _ in known], [rate for _, rate in known], title=title, label=f"rate of {found.label}")


def _bars(names: list[str], values: list[Estimate], *, title: str, label: str) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    from accounting.report.plot import ACCENT, drawn, plain_axes, titled

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        # A category may hold a dollar sign: it is a name, no formula.
        settings = {"svg.hashsalt": f"privads:{title}", "svg.fonttype": "none", "text.parse_math": False}
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=(4.4, 0.9 + 0.26 * max(len(names), 1)), layout="constrained")
        axes = plain_axes(figure)
        places = range(len(names))
        axes.hlines(places, [one.low for one in values], [one.high for one in values], color=ACCENT, alpha=0.6)
        axes.plot([one.value for one in values], places, color=ACCENT, marker="o", markersize=4.5, linestyle="none")
        axes.set_yticks(places, [name if len(name) <= 24 else f"{name[:23]}…" for name in names])
        axes.set_xlim(left=0.0)
        axes.set_xlabel(label)
        return titled(drawn(figure), title)
