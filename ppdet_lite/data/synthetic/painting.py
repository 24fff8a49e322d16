"""Silhouettes, textures and grounds for the synthetic shapes: all that concerns how they look."""

import cv2
import numpy as np

FRACTION = 4  # bits after the binary point of the coordinates OpenCV draws with
HUES = {"ellipse": 0, "rectangle": 45, "triangle": 130, "star": 180, "cross": 225, "ring": 290}  # degrees, the centre
HUE_SPREAD = 14  # degrees, standard deviation


def silhouette(rng: np.random.Generator, name: str, side: float) -> list[np.ndarray]:
    """Return the contours [P, 2] (x, y) of a shape around the origin, turned, stretched and sheared at random.

    side: the longer side of its bounding box in pixels. A second contour is a hole.
    """
    angle, stretch, shear = rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1.0), rng.uniform(-0.25, 0.25)
    cos, sin = np.cos(angle), np.sin(angle)
    warp = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, stretch]])
    contours = [contour @ warp.T for contour in _contours(name)]
    low, high = contours[0].min(0), contours[0].max(0)
    return [(contour - (low + high) / 2) * (side / (high - low).max()) for contour in contours]


def mask_of(contours: list[np.ndarray], centre: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Fill contours around a centre (x, y): smooth-edged uint8 [H, W], holes left open."""
    mask = np.zeros(shape, np.uint8)
    # Centres of pixels are whole numbers in OpenCV, halves in our coordinates.
    points = [np.rint((contour + centre - 0.5) * (1 << FRACTION)).astype(np.int32) for contour in contours]
    return cv2.fillPoly(mask, points, 255, cv2.LINE_AA, FRACTION)


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a muted ground, float32 [H, W, 3] RGB in 0..255: two tones, a texture and uneven light."""
    hue, value = rng.uniform(0, 360), rng.uniform(0.35, 0.9)
    tones = [_colour(hue + rng.normal(0, 30), rng.uniform(0.03, 0.22), value * k) for k in (1.0, rng.uniform(0.7, 0.9))]
    ground = _mix(*tones, _texture(rng, height, width, finest=10) * 0.8)
    ground *= 1 + 0.35 * (_clouds(rng, height, width, 3)[..., None] - 0.5)
    return ground + rng.normal(0, 3, (height, width, 1)).astype(np.float32)


def paint(rng: np.random.Generator, image: np.ndarray, name: str, mask: np.ndarray) -> None:
    """Paint a shape into an image in place, with its texture, a light edge and a soft shadow."""
    margin = 8
    x, y, w, h = cv2.boundingRect(mask)
    top, left = max(y - margin, 0), max(x - margin, 0)
    window = np.s_[top : y + h + margin, left : x + w + margin]
    alpha, ground = mask[window].astype(np.float32)[..., None] / 255, image[window]
    height, width = alpha.shape[:2]

    hue = HUES[name] + rng.normal(0, HUE_SPREAD)
    saturation, value = rng.uniform(0.55, 0.9), rng.uniform(0.65, 1.0)
    second = _colour(hue + rng.uniform(-15, 15), saturation * rng.uniform(0.3, 0.8), value * rng.uniform(0.55, 0.8))
    body = _mix(_colour(hue, saturation, value), second, _texture(rng, height, width, finest=6))
    body *= 1 + 0.4 * (_ramp(rng, height, width)[..., None] - 0.5)
    body = np.clip(body, 0, 255)

    shift = np.float32([[1, 0, 3], [0, 1, 3]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, shift, (width, height)), (0, 0), 2.5)[..., None]
    edge = alpha - cv2.erode(alpha, np.ones((3, 3)))[..., None]
    body *= 1 - 0.35 * edge
    ground *= 1 - 0.4 * shadow
    ground += alpha * (body - ground)


def _contours(name: str) -> list[np.ndarray]:
    """The contours of a class, about one unit in radius."""
    if name == "ellipse":
        return [_ring_of(64) * (1, 0.72)]
    if name == "rectangle":
        return [np.array([[-1, -0.72], [1, -0.72], [1, 0.72], [-1, 0.72]])]
    if name == "triangle":
        return [_ring_of(3)]
    if name == "star":
        return [_ring_of(10) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]]
    if name == "cross":
        arm = 0.3
        corner = np.array([[1, -arm], [1, arm], [arm, arm]])
        quarter = np.array([[0, -1], [1, 0]])
        return [np.concatenate([corner @ np.linalg.matrix_power(quarter.T, turn) for turn in range(4)])]
    if name == "ring":
        return [_ring_of(64), _ring_of(64) * 0.5]
    raise ValueError(f"no such shape: {name}")


def _ring_of(points: int) -> np.ndarray:
    angles = np.arange(points) * 2 * np.pi / points
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB [3] in 0..255 of a hue in degrees and saturation and value in 0..1."""
    pixel = np.array([[[hue % 360, saturation, value]]], np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0] * 255


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Blend two colours [3] by a share [H, W] of the second."""
    return first + share[..., None] * (second - first)


def _texture(rng: np.random.Generator, height: int, width: int, finest: float) -> np.ndarray:
    """A random pattern, float32 [H, W] in 0..1; finest: the smallest period in pixels."""
    kind = rng.choice(["clouds", "ramp", "stripes", "checks", "dots", "rough"])
    if kind == "clouds":
        return _clouds(rng, height, width, 5)
    if kind == "ramp":
        return _ramp(rng, height, width)
    if kind == "rough":
        return np.clip(_clouds(rng, height, width, 5) + rng.normal(0, 0.15, (height, width)), 0, 1).astype(np.float32)
    period, angle = rng.uniform(1, 3) * finest, rng.uniform(0, np.pi)
    waves = [np.sin(_along(height, width, angle + turn) * (2 * np.pi / period)) for turn in (0, np.pi / 2)]
    wave = {"stripes": waves[0], "checks": waves[0] * waves[1] * 2, "dots": waves[0] + waves[1] - 0.8}[kind]
    return np.clip(0.5 + 2 * wave, 0, 1)  # steep, but not jagged


def _along(height: int, width: int, angle: float) -> np.ndarray:
    """How far each pixel lies along a direction, float32 [H, W] in pixels from the centre."""
    y = np.arange(height, dtype=np.float32)[:, None] - height / 2
    x = np.arange(width, dtype=np.float32) - width / 2
    return x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))


def _ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    distance = _along(height, width, rng.uniform(0, 2 * np.pi))
    return (distance - distance.min()) / max(np.ptp(distance), 1)


def _clouds(rng: np.random.Generator, height: int, width: int, octaves: int) -> np.ndarray:
    """Smooth noise, float32 [H, W] in 0..1."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        grid = rng.random((2**octave + 2, 2**octave + 2), np.float32) / 2**octave
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return (total - total.min()) / max(float(np.ptp(total)), 1e-6)
