"""The direction in which a surface of accuracies is flattest, from a grid of trainings."""

import math
import random
from collections.abc import Mapping, Sequence

Point = tuple[float, float]
RESAMPLES = 400


def ridge_angle(points: Sequence[Point], values: Sequence[float]) -> float:
    """Angle in degrees, -90 to 90, of the direction of least curvature of the quadratic that fits the surface best
    (least squares): 45 where z depends on x - y alone, -45 where on x + y, 0 where on y alone.

    Args:
        points: (x, y), six different ones or more that no conic goes through.
        values: z at each.
    """
    *_, xx, xy, yy = _least_squares([_terms(at) for at in points], values)
    theta = 0.5 * math.atan2(xy, xx - yy)  # of the directions of extreme curvature
    angles = (theta, theta + math.pi / 2)

    def curvature(angle: float) -> float:
        c, s = math.cos(angle), math.sin(angle)
        return abs(xx * c * c + xy * c * s + yy * s * s)

    degrees = math.degrees(min(angles, key=curvature))
    return (degrees + 90) % 180 - 90


def ridge_interval(seeds: Mapping[Point, Sequence[float]], around: float) -> tuple[float, float, float]:
    """The angle, with the 2.5th and 97.5th percentile over fits to resampled residuals; within 90 degrees of `around`,
    since a direction has no sign.

    What a quadratic leaves over is both the spread of trainings and that the surface is none, so one seed of each point
    is enough.

    Args:
        seeds: z of one or more trainings by (x, y), seven or more in all.
    """
    rng = random.Random(0)
    points = [at for at, own in seeds.items() for _ in own]
    values = [value for own in seeds.values() for value in own]
    fit = _least_squares([_terms(at) for at in points], values)
    fitted = [sum(a * b for a, b in zip(fit, _terms(at), strict=True)) for at in points]
    wider = math.sqrt(len(points) / (len(points) - len(fit)))  # residuals of a fit are smaller than errors
    residuals = [wider * (value - at) for value, at in zip(values, fitted, strict=True)]

    def angle_of(values: Sequence[float]) -> float:
        return around + (ridge_angle(points, values) - around + 90) % 180 - 90

    drawn = []
    for _ in range(RESAMPLES):
        errors = rng.choices(residuals, k=len(points))
        drawn.append(angle_of([at + error for at, error in zip(fitted, errors, strict=True)]))
    drawn.sort()
    return angle_of(values), drawn[int(0.025 * RESAMPLES)], drawn[int(0.975 * RESAMPLES)]


def _terms(at: Point) -> tuple[float, ...]:
    x, y = at
    return 1.0, x, y, x * x, x * y, y * y


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
