"""Pages of HTML that stand alone: filled templates, with pictures and charts as `data:` addresses."""

import base64
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).with_name("templates")
SETTINGS = {  # texts stay texts and are taken as they are, and the same numbers make the same file
    "svg.fonttype": "none",
    "svg.hashsalt": "ppdet_lite",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.4,
}


def fill(template: str, **values: Any) -> str:
    """Fill a jinja2 template of `templates/`. Texts are escaped, and a name that is not given is an error.

    It has the filters `number` and `signed` for numbers, and may include files beside it.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(number=_number, signed="{:+.3f}".format)
    return environment.get_template(template).render(values)


def chart(draw: Callable[[Any], None], width: float, height: float) -> str:
    """An SVG of so many inches, drawn by matplotlib; `draw` is given the axes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's browser has its own letters
        figure = Figure(figsize=(width, height), layout="tight")
        draw(figure.subplots())
        content = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(content, metadata={"Date": None})
    return address("image/svg+xml", content.getvalue())


def jpeg(picture: Any, quality: int = 85) -> str:
    """A JPEG of uint8 RGB [H, W, 3]."""
    import cv2

    encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return address("image/jpeg", encoded.tobytes())


def address(media_type: str, content: bytes) -> str:
    """Bytes as a `data:` address."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
