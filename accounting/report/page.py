"""The one way in which a page of HTML is made of its template: escaped, whole, and of a length that a browser takes."""

from collections.abc import Mapping
from typing import Any

from accounting.report.figures import shortened


class MissingExtra(ImportError):  # noqa: N818 - named for what to do about it
    """An optional dependency is not installed; the message says how to install it."""


def page(template: str, values: Mapping[str, Any]) -> str:
    """Returns a template of this package, filled in: every value is escaped, a missing one is an error."""
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtra('a report in HTML needs jinja2: pip install "privads[report]"') from error

    def kept_short(value: Any) -> Any:
        return value if isinstance(value, Markup) else shortened(str(value))

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("accounting.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=kept_short,
    )
    return environment.get_template(template).render(values)
