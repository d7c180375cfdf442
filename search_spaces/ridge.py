"""The direction in which a surface of accuracies is flattest, from a grid of trainings."""

import math
import random
from collections.abc import Mapping, Sequence

Point = tuple[float, float]
RESAMPLES = 400


def ridge_angle(surface: Mapping[Point, float]) -> float:
    """Angle in degrees, -90 to 90, of the direction of least curvature of the quadratic that fits the surface best
    (least squares): 45 where z depends on x - y alone, -45 where on x + y, 0 where on y alone.

    Args:
        surface: z by (x, y), six points or more that no conic goes through.
    """
    rows = [(1.0, x, y, x * x, x * y, y * y) for x, y in surface]
    *_, xx, xy, yy = _least_squares(rows, list(surface.values()))
    # directions of extreme curvature of xx x^2 + xy x y + yy y^2
    theta = 0.5 * math.atan2(xy, xx - yy)
    angles = (theta, theta + math.pi / 2)

    def curvature(angle: float) -> float:
        c, s = math.cos(angle), math.sin(angle)
        return abs(xx * c * c + xy * c * s + yy * s * s)

    degrees = math.degrees(min(angles, key=curvature))
    return (degrees + 90) % 180 - 90


def ridge_interval(seeds: Mapping[Point, Sequence[float]], around: float) -> tuple[float, float, float]:
    """The angle of the means over seeds, with the 2.5th and 97.5th percentile over resamples of the seeds of each
    point; angles are taken within 90 degrees of `around`, since a direction has no sign."""
    rng = random.Random(0)

    def near(angle: float) -> float:
        return around + (angle - around + 90) % 180 - 90

    angle = near(ridge_angle({at: sum(own) / len(own) for at, own in seeds.items()}))
    drawn = sorted(
        near(ridge_angle({at: sum(rng.choices(own, k=len(own))) / len(own) for at, own in seeds.items()}))
        for _ in range(RESAMPLES)
    )
    return angle, drawn[int(0.025 * RESAMPLES)], drawn[int(0.975 * RESAMPLES)]


def _least_squares(rows: Sequence[Sequence[float]], z: Sequence[float]) -> list[float]:
    """Coefficients that fit z best, by the normal equations and Gauss's elimination with pivots."""
    n = len(rows[0])
    matrix = [
        [sum(row[i] * row[j] for row in rows) for j in range(n)]
        + [sum(row[i] * value for row, value in zip(rows, z, strict=True))]
        for i in range(n)
    ]
    for i in range(n):
        pivot = max(range(i, n), key=lambda row: abs(matrix[row][i]))
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        for row in range(n):
            if row != i:
                factor = matrix[row][i] / matrix[i][i]
                matrix[row] = [a - factor * b for a, b in zip(matrix[row], matrix[i], strict=True)]
    return [matrix[i][n] / matrix[i][i] for i in range(n)]
