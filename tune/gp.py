"""A Gaussian process over configs and how far they were trained: the model behind the sampler `gp`.

An observation is the accuracy of trial t, with config x (a point of the unit cube), after a share of its training;
s = log(share * E) / log(E) with E the epochs of a full training, so s = 1 is a finished trial.

    z = f(x, s) + b(s) + a_t + e
    cov(f) = M(x, x') (v1 + v2 R(s, s'))     M: Matern 5/2, a length scale l_d per dimension
    cov(b) = vb R(s, s')                     R: exp(-((s - s') / ell)^2 / 2)
    var(a_t) = tau2, the same for all epochs of a trial;  var(e) = noise2

v1 is what early and final accuracy share, v2 what they don't, b the learning curve common to all configs. The form is
that of multi-task processes (Swersky et al. 2013) with fidelity as the task, as in Klein et al. (2017, FABOLAS).
Hyperparameters are maximum a posteriori under log-normal priors. Posterior functions are drawn pathwise: a prior draw
from random Fourier features, corrected by the exact update (Wilson et al. 2020, Matheron's rule).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_solve, cholesky
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

JITTER = 1e-6
FEATURES = 512  # half of them for the part that all epochs share
PRIOR = {"length": (0.8, 0.8), "v1": (0.7, 0.5), "v2": (0.3, 0.5), "ell": (0.5, 0.5), "vb": (0.3, 0.5)} | {
    "tau2": (0.01, 1.0),
    "noise2": (0.01, 1.0),
}
"""median and log-SD of each hyperparameter, for standardised z and unit-cube x"""


@dataclass(frozen=True)
class Data:
    """n observations."""

    x: Array
    """configs, [n, d], in the unit cube"""
    s: Array
    """how far they were trained, [n]"""
    trial: Ints
    """which trial was observed, [n]; not NO_TRIAL"""
    z: Array
    """values, [n], standardised"""

    def __getitem__(self, index: Ints) -> "Data":
        return Data(self.x[index], self.s[index], self.trial[index], self.z[index])

    def __len__(self) -> int:
        return len(self.z)


NO_TRIAL = -1
"""stands for a config that has not been tried: it has no a_t of its own"""


class GaussianProcess:
    """The process above in `dimensions` of x: `fit` its hyperparameters, `condition` it on data, then ask it."""

    def __init__(self, dimensions: int) -> None:
        medians, sds = zip(*([PRIOR["length"]] * dimensions), *(PRIOR[name] for name in list(PRIOR)[1:]), strict=True)
        self._prior_mean, self._prior_sd = np.log(medians), np.array(sds)
        self.theta = self.prior
        """log of (l_1 .. l_d, v1, v2, ell, vb, tau2, noise2)"""

    @property
    def prior(self) -> Array:
        """The hyperparameters before any data, as theta has them."""
        return self._prior_mean.copy()

    def fit(self, data: Data, steps: int = 30) -> None:
        """Move the hyperparameters towards the most probable ones, from where they are, in so many steps of L-BFGS."""
        squares = (data.x.T[:, :, None] - data.x.T[:, None, :]) ** 2
        bounds = list(
            zip(self._prior_mean - 4 * self._prior_sd, self._prior_mean + 4 * self._prior_sd, strict=True)
        )  # beyond them the likelihood is flat or the matrix singular
        found = minimize(
            self._loss, self.theta, (data, squares), "L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": steps}
        )
        self.theta = found.x

    def _loss(self, theta: Array, data: Data, squares: Array) -> tuple[float, Array]:
        """-log p(z, theta) up to a constant, and its gradient; `squares` is (x_d - x'_d)^2, [d, n, n]."""
        dims = len(squares)
        lengths, (v1, v2, ell, vb, tau2, noise2) = np.exp(theta[:dims]), np.exp(theta[dims:])
        scaled = squares / (lengths**2)[:, None, None]
        r = np.sqrt(5 * scaled.sum(0))
        decay = np.exp(-r)
        matern = (1 + r + r * r / 3) * decay
        s_squares = (data.s[:, None] - data.s) ** 2 / ell**2
        rbf = np.exp(-s_squares / 2)
        same = (data.trial[:, None] == data.trial).astype(float)
        k = matern * (v1 + v2 * rbf) + vb * rbf + tau2 * same + (noise2 + JITTER) * np.eye(len(data))
        try:
            lower = cholesky(k, lower=True)
        except LinAlgError:
            return 1e10, np.zeros_like(theta)
        weights = cho_solve((lower, True), data.z)
        a = np.outer(weights, weights) - cho_solve((lower, True), np.eye(len(data)))
        # d log p / d log theta_i = tr(a dk/dlog theta_i) / 2
        slope = a * (v1 + v2 * rbf) * 5 / 3 * (1 + r) * decay
        gradient = np.empty_like(theta)
        gradient[:dims] = np.tensordot(scaled, slope, axes=2)
        gradient[dims:] = (
            v1 * np.sum(a * matern),
            v2 * np.sum(a * matern * rbf),
            np.sum(a * (v2 * matern + vb) * rbf * s_squares),
            vb * np.sum(a * rbf),
            tau2 * np.sum(a * same),
            noise2 * np.trace(a),
        )
        away = (theta - self._prior_mean) / self._prior_sd
        loss = data.z @ weights / 2 + np.log(np.diag(lower)).sum() + away @ away / 2
        return float(loss), -gradient / 2 + away / self._prior_sd

    def condition(self, data: Data) -> None:
        """Take these observations as what is known."""
        self._data = data
        v1, v2, ell, vb, tau2, noise2 = np.exp(self.theta[data.x.shape[1] :])
        levels, of_level = np.unique(np.append(data.s, 1.0), return_inverse=True)
        self._rbf_levels, self._of_level = np.exp(-(((levels[:, None] - levels) / ell) ** 2) / 2), of_level
        rbf = self._rbf_levels[of_level[:, None], of_level]  # s = 1 comes last
        self._matern_known = self._matern(data.x)
        k = self._matern_known * (v1 + v2 * rbf[:-1, :-1]) + vb * rbf[:-1, :-1]
        k += tau2 * (data.trial[:, None] == data.trial) + (noise2 + JITTER) * np.eye(len(data))
        self._factor = (cholesky(k, lower=True), True)
        self._weights = cho_solve(self._factor, data.z)
        self._rbf_to_end = rbf[-1, :-1]
        self._trials, self._first, self._of_trial = np.unique(data.trial, return_index=True, return_inverse=True)

    def _matern(self, x: Array) -> Array:
        """M of configs x, [n, d], and those known, [n, known]."""
        lengths = np.exp(self.theta[: x.shape[1]])
        r = cdist(x * (np.sqrt(5) / lengths), self._data.x * (np.sqrt(5) / lengths))
        result: Array = (1 + r + r * r / 3) * np.exp(-r)
        return result

    def _at_end(self, matern: Array, trial: Ints, weights: Array) -> Array:
        """Covariance of final values, of configs of which M is given and of these trials or NO_TRIAL, with the known
        observations, times weights; [n]. The matrix itself is not needed."""
        v1, v2, _, vb, tau2, _ = np.exp(self.theta[self._data.x.shape[1] :])
        own: Array = self._own(np.bincount(self._of_trial, weights).astype(float), trial)
        result: Array = (
            matern @ ((v1 + v2 * self._rbf_to_end) * weights) + vb * (self._rbf_to_end @ weights) + tau2 * own
        )
        return result

    def _own(self, values: Array, trial: Ints) -> Array:
        """Of a value for each known trial, those of these trials, 0 where one is not known."""
        place = np.minimum(np.searchsorted(self._trials, trial), len(self._trials) - 1)
        return np.where(self._trials[place] == trial, values[place], 0.0)

    def mean(self, x: Array, trial: Ints) -> Array:
        """Expected final value of configs x, [n, d], of these trials or NO_TRIAL."""
        return self._at_end(self._matern(x), trial, self._weights)

    def known(self) -> tuple[Ints, Array]:
        """The trials that were observed, in order, and the expected final value of a new trial of each one's config."""
        at = self._matern_known[self._first]
        return self._trials, self._at_end(at, np.full(len(at), NO_TRIAL), self._weights)

    def draw(self, rng: np.random.Generator) -> Callable[[Array, Ints], Array]:
        """One function from the posterior: final values of configs x, [n, d], of these trials or NO_TRIAL."""
        data, dims = self._data, self._data.x.shape[1]
        lengths, (v1, v2, ell, vb, tau2, noise2) = np.exp(self.theta[:dims]), np.exp(self.theta[dims:])
        # frequencies: those of a Matern 5/2 have a Student t distribution of 5 degrees of freedom
        x_frequency = rng.standard_normal((FEATURES, dims)) / np.sqrt(rng.chisquare(5, (FEATURES, 1)) / 5) / lengths
        s_frequency = rng.standard_normal(FEATURES) / ell
        half = FEATURES // 2
        s_frequency[:half] = 0
        phase = rng.uniform(0, 2 * np.pi, FEATURES)
        scale = np.sqrt(2 / half * np.where(np.arange(FEATURES) < half, v1, v2))
        feature_weights = rng.standard_normal(FEATURES) * scale

        def prior(x: Array, s: Array) -> Array:
            angle = x @ x_frequency.T + np.outer(s, s_frequency) + phase
            # cosines of single precision take a third of the time, and features are an approximation anyway
            result: Array = np.cos(angle.astype(np.float32)) @ feature_weights
            return result

        count = len(self._rbf_levels)
        curve_cov = vb * self._rbf_levels + JITTER * np.eye(count)
        curve = (cholesky(curve_cov, lower=True) @ rng.standard_normal(count))[self._of_level]
        own = np.sqrt(tau2) * rng.standard_normal(len(self._trials))
        noise = np.sqrt(noise2) * rng.standard_normal(len(data))
        drawn = prior(data.x, data.s) + curve[:-1] + own[self._of_trial] + noise
        correction = cho_solve(self._factor, data.z - drawn)

        def posterior(x: Array, trial: Ints) -> Array:
            drawn = prior(x, np.ones(len(x))) + curve[-1] + self._own(own, trial)
            result: Array = drawn + self._at_end(self._matern(x), trial, correction)
            return result

        return posterior


def how_far(share: Array, units: int) -> Array:
    """s of the formula: of a share of the training, [n], where a full one has so many epochs."""
    result: Array = np.log(np.maximum(share * units, 1)) / np.log(max(units, 2))
    return result


def standardised(values: Array, spread_floor: float) -> Callable[[Array], Array]:
    """The increasing map from accuracies to z: resolution near the best, the bad tail squeezed,

        z = -log(1 + (max - y) / (3 w)),  w = q75 - q50 of the values, at least `spread_floor`,

    then mean 0 and SD 1 over `values`. Accuracies of bad configs lie far below and would otherwise set the scale.
    """
    best, width = values.max(), max(float(np.subtract(*np.quantile(values, [0.75, 0.5]))), spread_floor)

    def squeeze(y: Array) -> Array:
        gap = (best - y) / (3 * width)
        result: Array = np.where(gap > 0, -np.log1p(np.maximum(gap, 0)), -gap)
        return result

    z = squeeze(values)
    mean, sd = z.mean(), z.std() or 1.0
    return lambda y: (squeeze(y) - mean) / sd
