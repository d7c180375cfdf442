"""The released net is what its card says."""

import json

import pytest
import torch
from conftest import REAL_DATA, REPO

from model.config import load_config
from model.data import to_device
from model.evaluate import evaluate
from model.sources import load
from model.weights import load_weights

RELEASED = REPO / "docs" / "speedrun" / "1-trial2.json"


def test_config_and_weights_belong_together() -> None:
    _, record = load_weights(RELEASED.with_suffix(".safetensors"))
    assert record.config == load_config(RELEASED)
    confirmed = json.loads(RELEASED.read_text())["provenance"]["confirmed"]
    card = RELEASED.with_suffix(".md").read_text()
    assert f"| {100 * confirmed['accs'][0]:.2f}% | 1 |" in card and f"| {100 * confirmed['mean_acc']:.2f}% (" in card


@pytest.mark.slow
@pytest.mark.skipif(not (REAL_DATA / "cifar10").exists(), reason=f"no real CIFAR-10 at {REAL_DATA}/cifar10")
def test_the_weights_score_what_is_said_of_them() -> None:
    net, record = load_weights(RELEASED.with_suffix(".safetensors"))
    data = load(str(REAL_DATA / "cifar10"))
    assert data.fingerprint == record.fingerprint
    acc, _ = evaluate(net, record.config, to_device(data, torch.device("cpu")))
    said = json.loads(RELEASED.read_text())["provenance"]["confirmed"]["accs"][0]
    assert acc == pytest.approx(said, abs=2e-4)  # machines round differently
