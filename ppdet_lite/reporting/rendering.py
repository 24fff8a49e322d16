"""Pages of HTML that need nothing else, from the files in templates/."""

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("templates")


def render_template(name: str, **values: Any) -> str:
    """Fill a template; texts are escaped. It has the filters `number` and `signed`, for numbers or None."""
    import jinja2

    loader = jinja2.FileSystemLoader(FOLDER)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(number=_number, signed=_signed)
    return environment.get_template(name).render(values)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"
