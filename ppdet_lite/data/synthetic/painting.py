"""The appearance of the synthetic shapes: silhouettes, textures and backgrounds."""

import cv2
import numpy as np

SUBPIXEL_BITS = 4  # fractional bits of the fixed-point coordinates that OpenCV draws with
HUES = {"ellipse": 0, "rectangle": 45, "triangle": 130, "star": 180, "cross": 225, "ring": 290}  # mean hue, degrees
HUE_STD = 14  # standard deviation of the hue, degrees
MAX_STRETCH, MAX_SHEAR, MAX_BEND = 4.0, 0.8, 1.2  # of deformed shapes; the bend in radians from the middle to each end


def silhouette(rng: np.random.Generator, name: str, side: float, deformed: bool = False) -> list[np.ndarray]:
    """Return the contours [P, 2] (x, y) of a shape, centered at the origin and randomly rotated, stretched and sheared.

    The second contour, if there is one, is a hole.
    side: the longer side of the bounding box in pixels.
    deformed: stretch and shear it much more, and bend it.
    """
    angle, bend = rng.uniform(0, 2 * np.pi), 0.0
    if deformed:
        stretch, shear = np.exp(rng.uniform(-np.log(MAX_STRETCH), 0)), rng.uniform(-MAX_SHEAR, MAX_SHEAR)
        bend = rng.uniform(-MAX_BEND, MAX_BEND)
    else:
        stretch, shear = rng.uniform(0.75, 1.0), rng.uniform(-0.25, 0.25)
    cos, sin = np.cos(angle), np.sin(angle)
    contours = [contour @ np.array([[1, 0], [shear, stretch]]) for contour in _contours(name)]
    contours = [
        contour @ np.array([[cos, sin], [-sin, cos]]) for contour in (_bent(contours, bend) if bend else contours)
    ]
    low, high = contours[0].min(0), contours[0].max(0)
    return [(contour - (low + high) / 2) * (side / (high - low).max()) for contour in contours]


def _bent(contours: list[np.ndarray], bend: float) -> list[np.ndarray]:
    """Return contours whose x axis is bent to an arc of `bend` radians to each side; less if the inside would fold."""
    half_width, half_height = np.abs(contours[0]).max(0)
    curvature = np.sign(bend) * min(abs(bend) / half_width, 0.7 / half_height)
    bent = []
    for contour in contours:
        steps = np.linspace(0, 1, 16, endpoint=False)[:, None]  # straight edges become arcs
        dense = np.concatenate(
            [start + (end - start) * steps for start, end in zip(contour, np.roll(contour, -1, axis=0), strict=True)]
        )
        radius, turn = 1 / curvature - dense[:, 1], curvature * dense[:, 0]
        bent.append(np.stack([radius * np.sin(turn), 1 / curvature - radius * np.cos(turn)], axis=1))
    return bent


def disc(radius: float) -> list[np.ndarray]:
    """Return the contour of a disc around the origin, in the form of `silhouette`."""
    return [_circle_points(32) * radius]


def hue_of(rng: np.random.Generator, name: str) -> float:
    """Return a random hue of a class, in degrees."""
    return HUES[name] + rng.normal(0, HUE_STD)


def draw_mask(contours: list[np.ndarray], center: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the antialiased mask, uint8 [H, W], of contours around a center (x, y). Holes are not filled."""
    mask = np.zeros(shape, np.uint8)
    # The centers of pixels have integer coordinates in OpenCV, and half-integer coordinates here.
    points = [np.rint((contour + center - 0.5) * (1 << SUBPIXEL_BITS)).astype(np.int32) for contour in contours]
    return cv2.fillPoly(mask, points, 255, cv2.LINE_AA, SUBPIXEL_BITS)


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a background of low saturation, float32 [H, W, 3] RGB in 0..255: two tones, a texture, uneven light."""
    hue, value = rng.uniform(0, 360), rng.uniform(0.35, 0.9)
    first, second = (
        _color(hue + rng.normal(0, 30), rng.uniform(0.03, 0.22), value * k) for k in (1.0, rng.uniform(0.7, 0.9))
    )
    pixels = _mix(first, second, _texture(rng, height, width, min_period=10) * 0.8)
    pixels *= 1 + 0.35 * (_clouds(rng, height, width, 3)[..., None] - 0.5)
    return pixels + rng.normal(0, 3, (height, width, 1)).astype(np.float32)


def paint(rng: np.random.Generator, image: np.ndarray, hue: float, mask: np.ndarray) -> None:
    """Paint a shape into an image in place, with a random texture, a darkened edge and a soft shadow.

    hue: in degrees.
    """
    margin = 8
    x, y, w, h = cv2.boundingRect(mask)
    top, left = max(y - margin, 0), max(x - margin, 0)
    window = np.s_[top : y + h + margin, left : x + w + margin]
    alpha, pixels = mask[window].astype(np.float32)[..., None] / 255, image[window]
    height, width = alpha.shape[:2]

    saturation, value = rng.uniform(0.55, 0.9), rng.uniform(0.65, 1.0)
    second = _color(hue + rng.uniform(-15, 15), saturation * rng.uniform(0.3, 0.8), value * rng.uniform(0.55, 0.8))
    body = _mix(_color(hue, saturation, value), second, _texture(rng, height, width, min_period=6))
    body *= 1 + 0.4 * (_ramp(rng, height, width)[..., None] - 0.5)
    body = np.clip(body, 0, 255)

    shift = np.array([[1, 0, 3], [0, 1, 3]], np.float32)
    shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, shift, (width, height)), (0, 0), 2.5)[..., None]
    edge = alpha - cv2.erode(alpha, np.ones((3, 3)))[..., None]
    body *= 1 - 0.35 * edge
    pixels *= 1 - 0.4 * shadow
    pixels += alpha * (body - pixels)


def _contours(name: str) -> list[np.ndarray]:
    """Return the contours [P, 2] (x, y) of a shape around the origin, with a radius of about 1."""
    if name == "ellipse":
        return [_circle_points(64) * (1, 0.72)]
    if name == "rectangle":
        return [np.array([[-1, -0.72], [1, -0.72], [1, 0.72], [-1, 0.72]])]
    if name == "triangle":
        return [_circle_points(3)]
    if name == "star":
        return [_circle_points(10) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]]
    if name == "cross":
        arm = 0.3
        corner = np.array([[1, -arm], [1, arm], [arm, arm]])
        quarter = np.array([[0, -1], [1, 0]])
        return [np.concatenate([corner @ np.linalg.matrix_power(quarter.T, turn) for turn in range(4)])]
    if name == "ring":
        return [_circle_points(64), _circle_points(64) * 0.5]
    raise ValueError(f"unknown shape: {name}")


def _circle_points(count: int) -> np.ndarray:
    angles = np.arange(count) * 2 * np.pi / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _color(hue: float, saturation: float, value: float) -> np.ndarray:
    """Return RGB [3] in 0..255 for a hue in degrees and a saturation and value in 0..1."""
    pixel = np.array([[[hue % 360, saturation, value]]], np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0] * 255


def _mix(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Blend two colors [3] with the weight [H, W] of the second; return [H, W, 3]."""
    return first + weight[..., None] * (second - first)


def _texture(rng: np.random.Generator, height: int, width: int, min_period: float) -> np.ndarray:
    """Return a random pattern, float32 [H, W] in 0..1; min_period: smallest period of stripes, in pixels."""
    kind = str(rng.choice(["clouds", "ramp", "stripes", "checks", "dots", "rough"]))
    if kind == "clouds":
        return _clouds(rng, height, width, 5)
    if kind == "ramp":
        return _ramp(rng, height, width)
    if kind == "rough":
        return np.clip(_clouds(rng, height, width, 5) + rng.normal(0, 0.15, (height, width)), 0, 1).astype(np.float32)
    period, angle = rng.uniform(1, 3) * min_period, rng.uniform(0, np.pi)
    waves = [np.sin(_positions_along(height, width, angle + turn) * (2 * np.pi / period)) for turn in (0, np.pi / 2)]
    wave = {"stripes": waves[0], "checks": waves[0] * waves[1] * 2, "dots": waves[0] + waves[1] - 0.8}[kind]
    return np.clip(0.5 + 2 * wave, 0, 1)  # steep edges without aliasing


def _positions_along(height: int, width: int, angle: float) -> np.ndarray:
    """Return the position of each pixel along a direction, float32 [H, W] in pixels from the center."""
    y = np.arange(height, dtype=np.float32)[:, None] - height / 2
    x = np.arange(width, dtype=np.float32) - width / 2
    return x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))


def _ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    positions = _positions_along(height, width, rng.uniform(0, 2 * np.pi))
    return (positions - positions.min()) / max(np.ptp(positions), 1)


def _clouds(rng: np.random.Generator, height: int, width: int, octaves: int) -> np.ndarray:
    """Return smooth noise, float32 [H, W] in 0..1."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        grid = rng.random((2**octave + 2, 2**octave + 2), np.float32) / 2**octave
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return (total - total.min()) / max(float(np.ptp(total)), 1e-6)
