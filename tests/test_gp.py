"""The process behind the sampler gp, against direct computations."""

import numpy as np
import pytest

from tune.gp import JITTER, NO_TRIAL, Array, Data, GaussianProcess, standardised


def some_data(rng: np.random.Generator, count: int = 12, dims: int = 3) -> Data:
    """Four trials, each observed several times at one of two fidelities."""
    trial = np.arange(count) % 4
    x = rng.random((4, dims))[trial]
    return Data(x, np.where(np.arange(count) < count // 2, 0.4, 1.0), trial, rng.standard_normal(count))


def theta(dims: int = 3, tau2: float = 0.15) -> Array:
    return np.log([*np.linspace(0.4, 0.9, dims), 0.8, 0.35, 0.6, 0.25, tau2, 0.05])


def covariance(data: Data, x: Array, s: Array, trial: Array, logs: Array) -> Array:
    """The formula of the module, number by number."""
    lengths, (v1, v2, ell, vb, tau2, _) = np.exp(logs[: x.shape[1]]), np.exp(logs[x.shape[1] :])
    result = np.empty((len(x), len(data)))
    for i, j in np.ndindex(result.shape):
        r = np.sqrt(5 * sum(((x[i] - data.x[j]) / lengths) ** 2))
        matern = (1 + r + r * r / 3) * np.exp(-r)
        rbf = np.exp(-((s[i] - data.s[j]) ** 2) / (2 * ell**2))
        result[i, j] = matern * (v1 + v2 * rbf) + vb * rbf + tau2 * (trial[i] == data.trial[j])
    return result


def posterior(process: GaussianProcess, data: Data, x: Array, trial: Array) -> tuple[Array, Array]:
    """Mean and covariance of the final values at x by the textbook's formulas."""
    at_end = np.ones(len(x))
    points = Data(x, at_end, np.where(trial == NO_TRIAL, -100 - np.arange(len(x)), trial), at_end)
    k = covariance(data, data.x, data.s, data.trial, process.theta)
    k += (np.exp(process.theta[-1]) + JITTER) * np.eye(len(data))
    cross = covariance(data, x, at_end, trial, process.theta)
    own = covariance(points, x, at_end, points.trial, process.theta)
    own -= np.exp(process.theta[-2]) * np.diag(trial == NO_TRIAL)  # a config that was not tried has no part of its own
    return cross @ np.linalg.solve(k, data.z), own - cross @ np.linalg.solve(k, cross.T)


def test_the_gradient_is_that_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    data, process = some_data(rng), GaussianProcess(3)
    squares = (data.x.T[:, :, None] - data.x.T[:, None, :]) ** 2
    at = theta() + 0.3 * rng.standard_normal(9)
    _, gradient = process._loss(at, data, squares)
    step = 1e-5
    for index in range(len(at)):
        moved = step * (np.arange(len(at)) == index)
        difference = process._loss(at + moved, data, squares)[0] - process._loss(at - moved, data, squares)[0]
        assert gradient[index] == pytest.approx(difference / (2 * step), rel=1e-4, abs=1e-6), index


def test_the_loss_is_the_negative_log_posterior() -> None:
    """From one point to another it changes as the densities of scipy do."""
    from scipy.stats import multivariate_normal, norm

    data, process = some_data(np.random.default_rng(1)), GaussianProcess(3)
    squares = (data.x.T[:, :, None] - data.x.T[:, None, :]) ** 2

    def direct(at: Array) -> float:
        k = covariance(data, data.x, data.s, data.trial, at) + (np.exp(at[-1]) + JITTER) * np.eye(len(data))
        medians = np.log([0.8] * 3 + [0.7, 0.3, 0.5, 0.3, 0.01, 0.01])
        sds = [0.8] * 3 + [0.5, 0.5, 0.5, 0.5, 1.0, 1.0]
        return -multivariate_normal(cov=k).logpdf(data.z) - norm(medians, sds).logpdf(at).sum()

    here, there = theta(), theta() + 0.2
    losses = [process._loss(at, data, squares)[0] for at in (here, there)]
    assert losses[1] - losses[0] == pytest.approx(direct(there) - direct(here), rel=1e-6)


def test_the_mean_is_the_textbooks() -> None:
    rng = np.random.default_rng(2)
    data, process = some_data(rng), GaussianProcess(3)
    process.theta = theta()
    process.condition(data)
    x, trial = np.vstack([data.x[:2], rng.random((3, 3))]), np.array([0, 1, NO_TRIAL, NO_TRIAL, 3])
    np.testing.assert_allclose(process.mean(x, trial), posterior(process, data, x, trial)[0], rtol=1e-8, atol=1e-10)


def test_draws_have_the_posteriors_mean_and_covariance() -> None:
    """At tried and new configs, known at two fidelities. A pathwise draw is exact in its mean and, up to the random
    features, in its covariance; 3000 draws of them leave a standard error of about 1/40 of an SD."""
    rng = np.random.default_rng(3)
    data, process = some_data(rng), GaussianProcess(3)
    process.theta = theta()
    process.condition(data)
    x, trial = np.vstack([data.x[:2], rng.random((2, 3)), data.x[:1]]), np.array([0, 1, NO_TRIAL, NO_TRIAL, NO_TRIAL])
    count = 3000
    draws = np.array([process.draw(np.random.default_rng((4, index)))(x, trial) for index in range(count)])
    mean, cov = posterior(process, data, x, trial)
    sd = np.sqrt(np.diag(cov))
    assert np.abs((draws.mean(0) - mean) / sd).max() < 4.5 / np.sqrt(count)
    scaled = np.cov(draws.T) / np.outer(sd, sd)
    assert np.abs(scaled - cov / np.outer(sd, sd)).max() < 4.5 * np.sqrt(2 / count)


def test_what_is_known_exactly_is_drawn_exactly() -> None:
    """Without noise, a finished trial is what it was; one seen early only is uncertain, less so than a new one."""
    x, trial = np.array([[0.1], [0.5]]), np.array([0, 1])
    process = GaussianProcess(1)
    process.theta = np.log([0.3, 0.8, 0.35, 0.3, 0.25, 0.1, 1e-8])
    process.condition(Data(x, np.array([1.0, 0.5]), trial, np.array([1.3, -0.4])))
    everywhere, who = np.array([[0.1], [0.5], [0.9]]), np.array([0, 1, NO_TRIAL])
    draws = np.array([process.draw(np.random.default_rng(index))(everywhere, who) for index in range(300)])
    sd = draws.std(0)
    assert sd[0] < 0.01 and draws[:, 0].mean() == pytest.approx(1.3, abs=0.01)
    assert 0.1 < sd[1] < sd[2]


def test_the_fit_finds_the_dimension_that_matters() -> None:
    rng = np.random.default_rng(5)
    x = rng.random((40, 2))
    values = np.sin(5 * x[:, 0]) + 0.05 * rng.standard_normal(40)
    process = GaussianProcess(2)
    before = process.theta.copy()
    process.fit(Data(x, np.ones(40), np.arange(40), (values - values.mean()) / values.std()))
    matters, does_not = np.exp(process.theta[:2])
    assert np.array_equal(before[:1], before[1:2]) and matters < 0.8 < does_not and does_not > 3 * matters
    process.condition(Data(x, np.ones(40), np.arange(40), (values - values.mean()) / values.std()))
    new = rng.random((200, 2))
    truth = (np.sin(5 * new[:, 0]) - values.mean()) / values.std()
    assert np.corrcoef(process.mean(new, np.full(200, NO_TRIAL)), truth)[0, 1] > 0.98


def test_the_fit_sees_whether_early_values_tell_the_final_ones() -> None:
    """Early = final: what both share is most of the variance. Early = unrelated: it is not."""
    rng = np.random.default_rng(6)
    x = np.tile(rng.random((25, 1)), (2, 1))
    s, trial = np.repeat([0.3, 1.0], 25), np.tile(np.arange(25), 2)
    final = np.sin(6 * x[:25, 0])
    shares = {}
    for name, early in (("same", final), ("other", np.cos(9 * x[:25, 0]))):
        z = np.concatenate([early, final])
        process = GaussianProcess(1)
        process.fit(Data(x, s, trial, (z - z.mean()) / z.std()))
        v1, v2 = np.exp(process.theta[1:3])
        shares[name] = v1 / (v1 + v2)
    assert shares["same"] > shares["other"] + 0.2


@pytest.mark.parametrize("values", [np.zeros(1), np.zeros(6), np.full(6, 2.0)])
def test_equal_values_and_single_ones_are_no_trouble(values: Array) -> None:
    rng, count = np.random.default_rng(7), len(values)
    process = GaussianProcess(2)
    data = Data(np.full((count, 2), 0.5), np.ones(count), np.arange(count), values)
    process.fit(data)
    process.condition(data)
    drawn = process.draw(rng)(rng.random((5, 2)), np.full(5, NO_TRIAL))
    assert np.isfinite(process.theta).all() and np.isfinite(drawn).all()


@pytest.mark.parametrize(
    "values", [np.array([0.1, 0.9, 0.91, 0.92, 0.93]), np.linspace(0, 1, 7), np.array([0.5, 0.5, 0.7])]
)
def test_standardised_values_rise_with_accuracy_and_have_mean_0_and_sd_1(values: Array) -> None:
    to_z = standardised(values, 0.005)
    assert to_z(values).mean() == pytest.approx(0, abs=1e-12) and to_z(values).std() == pytest.approx(1)
    grid = np.linspace(-1, 1.5, 400)  # beyond the best as well
    assert (np.diff(to_z(grid)) > 0).all()


def test_standardised_keeps_its_resolution_near_the_best() -> None:
    """One outlier far below: the step from 0.92 to 0.93 is still worth much of the SD."""
    good = np.linspace(0.90, 0.93, 10)
    to_z = standardised(np.append(good, 0.1), 0.005)
    plain = (np.append(good, 0.1) - np.append(good, 0.1).mean()) / np.append(good, 0.1).std()
    squeezed = to_z(np.array([0.93]))[0] - to_z(np.array([0.92]))[0]
    assert squeezed > 5 * (0.01 / np.append(good, 0.1).std()) and squeezed > 0.2 > plain.max() - plain[:-1].min()


def test_standardised_equal_values_are_zero() -> None:
    assert standardised(np.full(4, 0.3), 0.005)(np.full(4, 0.3)).tolist() == [0, 0, 0, 0]
