"""What TensorBoard makes of our events, asked of its own plugins: hparams, custom scalars, text, images."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import noise
from PIL import Image
from tensorboard import plugin_util
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from model.config import Config
from model.data import Dataset, to_device
from model.evaluate import evaluate
from model.train import init_state, train
from tune.pictures import confusion_matrix, misclassified
from tune.tensorboard import TrialEvents, confirm_events

DATA = noise(64, 20)


def write_trial(folder: Path, config: Config, params: dict[str, Any], accs: list[float], *, complete: bool) -> None:
    events = TrialEvents(folder, config, params, DATA, seed=0)
    for epoch, acc in enumerate(accs, start=1):
        metrics = {"split": "val", "epoch": epoch, "acc": acc, "loss": 1 - acc, "train_loss": 1.0, "lr": 0.1}
        events.epoch({**metrics, "train_s": epoch})
    events.close({"epoch": len(accs), "acc": accs[-1]}, complete=complete)


@pytest.fixture
def runs(tiny: Config, tmp_path: Path) -> Path:
    """Two runs of different spaces; the first trial of each stopped early, with the best accuracy of all so far."""
    for number, (accs, complete) in enumerate([([0.9], False), ([0.3, 0.5], True), ([0.2, 0.7], True)]):
        params = {"lr_scale": 0.5 + number, **({"cutout_px": number} if number else {})}
        write_trial(tmp_path / "a" / "trials" / str(number), tiny, params, accs, complete=complete)
    for number, (accs, complete) in enumerate([([0.8], False), ([0.1, 0.6], True)]):
        params = {"flip": number == 0, "solver": "sgd"}
        write_trial(tmp_path / "b" / "trials" / str(number), tiny, params, accs, complete=complete)
    return tmp_path


def tensorboard(logdir: Path) -> TBContext:
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    return TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(logdir)), plugin_name_to_instance={})


def sorted_by(logdir: Path, metric: str) -> list[Any]:
    """Rows of the hparams table, sorted by a metric, downwards."""
    context = backend_context.Context(tensorboard(logdir))
    column = api_pb2.ColParams(metric=api_pb2.MetricName(tag=metric), order=api_pb2.ORDER_DESC)
    statuses = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING]
    request = api_pb2.ListSessionGroupsRequest(col_params=[column], slice_size=100, allowed_statuses=statuses)
    return list(list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups)


def test_hparams_sort_by_final_accuracy_with_unfinished_trials_last(runs: Path) -> None:
    names = [group.name for group in sorted_by(runs, "final/acc")]
    assert names[:3] == ["a/trials/2", "b/trials/1", "a/trials/1"]
    assert set(names[3:]) == {"a/trials/0", "b/trials/0"}


def test_hparams_of_all_runs_and_conditions_are_columns_and_final_accuracy_is_the_first_metric(runs: Path) -> None:
    context = backend_context.Context(tensorboard(runs))
    content = context.hparams_metadata(RequestContext(), "")
    experiment = context.experiment_from_metadata(RequestContext(), "", True, content, [])
    assert {info.name for info in experiment.hparam_infos} == {"lr_scale", "cutout_px", "flip", "solver"}
    assert [info.name.tag for info in experiment.metric_infos][:2] == ["final/acc", "final/epochs"]
    (flip,) = (info for info in experiment.hparam_infos if info.name == "flip")
    assert {value.string_value for value in flip.domain_discrete.values} == {"True", "False"}


def test_one_layout_shows_accuracy_loss_and_rate_also_after_a_resume(runs: Path, tiny: Config) -> None:
    write_trial(runs / "a" / "trials" / "0", tiny, {"lr_scale": 0.5}, [0.9, 0.95], complete=True)
    plugin = CustomScalarsPlugin(tensorboard(runs))
    layout = json.loads(plugin.layout_impl(RequestContext(), ""))
    (category,) = layout["category"]
    charts = {chart["title"]: chart["multiline"]["tag"] for chart in category["chart"]}
    assert list(charts) == ["accuracy", "loss", "learning rate"]
    there = {}
    for number in "012":
        events = EventAccumulator(str(runs / "a" / "trials" / number))
        events.Reload()
        there[number] = [tag for tag in events.Tags()["tensors"] if tag.startswith("custom_scalars")]
        shown = {tag for tags in charts.values() for tag in events.Tags()["scalars"] if re.match("|".join(tags), tag)}
        assert shown == {"val/acc", "val/loss", "train/loss", "lr"}
    assert list(map(len, there.values())) == [1, 0, 0]


# --- confirmed configs


def confirmed(tiny: Config, folder: Path, dataset: Dataset = DATA, **facts: Any) -> tuple[EventAccumulator, float]:
    """The events of a trained net, and its accuracy."""
    config = replace(tiny, ema_decay=0.9, tta="flip")
    data = to_device(dataset, torch.device("cpu"))
    state = init_state(config, data, seed=0)
    list(train(config, data, state=state))
    confirm_events(folder, config, dataset, state.scored_net.state_dict(), {"seed": 3, **facts})
    events = EventAccumulator(str(folder))
    events.Reload()
    return events, evaluate(state.scored_net, config, data)[0]


def test_a_confirmed_config_has_its_pictures_and_texts_once(tiny: Config, tmp_path: Path) -> None:
    for _ in range(2):
        events, _ = confirmed(tiny, tmp_path / "confirm" / "trial7", trial=7)
    assert len(list((tmp_path / "confirm" / "trial7").iterdir())) == 1
    assert events.Tags()["images"] == ["test/confusion", "test/misclassified", "train/images"]
    for tag in events.Tags()["images"]:
        (event,) = events.Images(tag)
        assert min(Image.open(io.BytesIO(event.encoded_image_string)).size) >= 30
    (text,) = (events.Tensors(tag) for tag in events.Tags()["tensors"] if tag == "confirm/text_summary")
    assert b'"trial": 7' in text[0].tensor_proto.string_val[0]
    assert "config/text_summary" in events.Tags()["tensors"]


def test_the_pictures_are_of_the_scored_net(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def keep(probabilities: torch.Tensor, dataset: Dataset) -> np.ndarray:
        seen.append((probabilities.argmax(1).numpy() == dataset.eval_labels).mean())
        return confusion_matrix(probabilities, dataset)

    monkeypatch.setattr("tune.tensorboard.confusion_matrix", keep)
    _, acc = confirmed(tiny, tmp_path)
    assert seen == [pytest.approx(acc)]


NASTY = "x\n```\n<script>alert(1)</script>\n[a](http://b)\n# head"


def test_hostile_strings_stay_text(tiny: Config, tmp_path: Path) -> None:
    """As TensorBoard itself makes HTML of them."""
    dataset = replace(DATA, classes=(NASTY, "\x1b[31m", "", "猫" * 100), name=NASTY)
    events, _ = confirmed(tiny, tmp_path, dataset, run=NASTY, classes=list(dataset.classes))
    (event,) = events.Tensors("confirm/text_summary")
    html = plugin_util.markdown_to_safe_html(event.tensor_proto.string_val[0])
    inside = html.partition("<code")[2].rpartition("</code>")[0]
    assert html.count("<code") == 1 and "alert(1)" in inside
    for tag in ("<script", "<a ", "<h1"):
        assert tag not in html


def probabilities(predicted: list[int], sure: float = 0.7, classes: int = 4) -> torch.Tensor:
    rest = (1 - sure) / (classes - 1)
    return torch.full((len(predicted), classes), rest).index_put(
        (torch.arange(len(predicted)), torch.tensor(predicted)), torch.tensor(sure)
    )


def red_share(picture: np.ndarray) -> float:
    red, green = picture[..., 0].astype(int), picture[..., 1].astype(int)
    return float((red > green + 60).mean())


def blue_share(picture: np.ndarray) -> float:
    red, blue = picture[..., 0].astype(int), picture[..., 2].astype(int)
    return float((blue > red + 60).mean())


def test_the_confusion_matrix_shows_right_in_blue_and_wrong_in_red() -> None:
    right = DATA.eval_labels.tolist()
    all_right = confusion_matrix(probabilities(right), DATA)
    assert red_share(all_right) == 0 and blue_share(all_right) > 0.05
    all_wrong = confusion_matrix(probabilities([(label + 1) % 4 for label in right]), DATA)
    assert blue_share(all_wrong) == 0
    assert red_share(all_wrong) == pytest.approx(blue_share(all_right), rel=0.1)  # four cells each
    one_wrong = confusion_matrix(probabilities([1, *right[1:]]), DATA)
    assert not np.array_equal(one_wrong, all_right)  # one of five is a pale cell, with its count


@pytest.mark.parametrize("classes", [1, 2, 30, 100, 1000])
def test_a_confusion_matrix_of_any_size(classes: int) -> None:
    labels = np.arange(classes).repeat(2)
    names = tuple(f"class number {label}" for label in range(classes))
    dataset = replace(DATA, eval_labels=labels, classes=names)
    picture = confusion_matrix(torch.eye(classes)[labels], dataset)
    assert picture.dtype == np.uint8 and max(picture.shape) < 2100
    assert red_share(picture) == 0 and blue_share(picture) > 0


def test_the_surest_mistakes_come_first_and_right_images_are_not_shown() -> None:
    colours = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0]], dtype=np.uint8)
    images = np.broadcast_to(colours[:, None, None], (4, 32, 32, 3)).copy()
    dataset = replace(DATA, eval_images=images, eval_labels=np.array([0, 1, 2, 3]))
    shares = torch.cat([probabilities([label], sure) for label, sure in [(1, 0.5), (1, 0.99), (0, 0.9), (0, 0.7)]])
    picture = misclassified(shares, dataset)
    places = [np.argwhere((picture == colour).all(-1)) for colour in colours]
    assert len(places[1]) == 0
    assert places[2][:, 1].max() < places[3][:, 1].min() and places[3][:, 1].max() < places[0][:, 1].min()
    assert misclassified(torch.eye(4), dataset).shape[2] == 3  # nothing to show
