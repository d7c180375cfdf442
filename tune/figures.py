"""The figures of a report, in the order of its page: of one run, and of several on common axes.

Each is a `Picture`: a plotly figure with a caption that says how to read it, or the reason why there is none. With
--figures they are written as files for papers, which kaleido draws in a browser.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import plotly.graph_objects as go
import plotly.io

from model.config import InputError
from tune import figures_evidence, figures_experiment, figures_search, figures_space
from tune.drawing import Picture
from tune.report_data import RunData
from tune.results import RunResults, experiment_of

WIDTH_PX, SCALE = 720, 2  # of a file; a PNG has twice as many pixels


def run_pictures(data: RunData) -> dict[str, list[Picture]]:
    """The figures of one run, by the section of the page that they stand in."""
    if data.run.manifest.scale:
        return {
            "experiment": experiment_pictures(data),
            "timeline": [figures_search.timeline(data)],
            "curves": [figures_search.curves(data)],
        }
    return {
        "confirm": [figures_evidence.confirm_means(data), figures_evidence.confirm_differences(data)],
        "mattered": [figures_space.importance(data)],
        "response": [figures_space.response(data, name) for name in data.run.space.domains],
        "history": [figures_search.history([data], by) for by in ("epochs", "time")],
        "rungs": [figures_search.rungs(data), figures_search.agreement(data)],
        "cost": [figures_evidence.pareto_flops(data), figures_evidence.pareto_time(data)],
        "timeline": [figures_search.timeline(data)],
        "curves": [figures_search.curves(data)],
    }


def experiment_pictures(data: RunData) -> list[Picture]:
    """The figures that the run's experiment declares; none where it is no experiment as the project has it."""
    experiment = experiment_of(data)
    return figures_experiment.found(experiment, RunResults(data, experiment)) if experiment else []


def common_pictures(runs: Sequence[RunData]) -> list[Picture]:
    """The figures of several runs on common axes."""
    return [figures_search.history(runs, by) for by in ("epochs", "time")]


def save(pictures: Iterable[tuple[str, Picture]], folder: Path) -> int:
    """Write each as SVG and PNG under its stem; says how many were.

    Raises:
        InputError: kaleido or a browser for it is missing, or the folder can't be written.
    """
    drawn = [(stem, picture.figure) for stem, picture in pictures if picture.figure]
    try:
        import kaleido  # an extra: it needs a browser
    except ImportError:
        raise InputError("--figures needs kaleido and Chromium: pip install 'resnet9-tune[figures]'") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [(stem, figure, form) for stem, figure in drawn for form in ("svg", "png")]
        plotly.io.write_images(
            # the page has one key for all responses
            fig=[_on_paper(figure, with_key=stem.partition("response")[1] != "") for stem, figure, _ in jobs],
            file=[folder / f"{stem}.{form}" for stem, _, form in jobs],
            width=WIDTH_PX,
            height=[figure.layout.height for _, figure, _ in jobs],  # or else it is the same for all
            scale=SCALE,
        )
    except OSError as error:
        raise InputError(f"--figures {folder} can't be written: {error.strerror}") from error
    except (RuntimeError, kaleido.errors.ChromeNotFoundError) as error:
        raise InputError(
            f"--figures: kaleido has no browser that works ({type(error).__name__}): install Chromium"
        ) from error
    return len(drawn)


def _on_paper(figure: go.Figure, with_key: bool) -> go.Figure:
    figure.update_layout(paper_bgcolor="white", plot_bgcolor="white")
    return figure.update_layout(showlegend=True, margin_t=60) if with_key else figure
