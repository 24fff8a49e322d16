"""Pictures and charts as `data:` addresses, for pages that stand alone."""

import base64
import io
from collections.abc import Callable
from typing import Any

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
}


def chart(draw: Callable[[Any], None], width: float, height: float) -> str:
    """An SVG of so many inches, drawn by matplotlib; `draw` is given the axes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
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
