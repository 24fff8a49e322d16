"""Self-contained HTML pages: filled templates, with images and charts embedded as `data:` URLs."""

import base64
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).with_name("templates")
CURVES = "curves.png"  # in the folder of a run
JPEG_QUALITY = 85
SETTINGS = {  # of matplotlib: text stays text and is not parsed as math, and output is reproducible
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
    """Render a jinja2 template of `templates/`. Text is escaped; an undefined name raises an error.

    Templates can use the filters `number` and `signed` for numbers, and extend and import each other.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(number=_number, signed="{:+.3f}".format)
    return environment.get_template(template).render(values)


def chart(draw: Callable[[Any], None], width: float, height: float) -> str:
    """Return an SVG of width x height inches as a data: URL. `draw` receives the matplotlib axes to draw on."""
    return data_url("image/svg+xml", svg(draw, width, height))


def svg(draw: Callable[..., None], width: float, height: float, columns: int = 1) -> bytes:
    """Return an SVG of width x height inches. `draw` receives the matplotlib axes of each column to draw on."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser renders the text with its own fonts
        figure = Figure(figsize=(width, height), layout="tight")
        draw(*figure.subplots(1, columns, squeeze=False)[0])
        content = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(content, metadata={"Date": None})
    return content.getvalue()


def jpeg(image: Any) -> str:
    """Return a uint8 RGB image [H, W, 3] as a JPEG in a data: URL."""
    import cv2

    encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return data_url("image/jpeg", encoded.tobytes())


def training_curves(path: Path) -> str | None:
    """Return curves.png of the run folder that is or contains a path as a data: URL; None if it is in no run folder."""
    folders = (path, *list(path.parents)[:2]) if path.exists() else ()  # up to NAME of output/NAME/checkpoints/best
    for folder in folders:
        if (folder / CURVES).is_file():
            return data_url("image/png", (folder / CURVES).read_bytes())
    return None


def data_url(media_type: str, content: bytes) -> str:
    """Return bytes as a `data:` URL."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
