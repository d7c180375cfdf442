"""Weights files: what goes in comes out bit for bit, and nothing but a whole file of ours is read."""

import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import noise
from safetensors.torch import load_file, save_file

from model.config import Config, InputError
from model.data import to_device
from model.net import NETS
from model.predict import scored_logits
from model.recipes import RECIPES
from model.train import TrainState, init_state
from model.weights import load_weights, restore_net, save_weights

DATA = noise(64, 20)


def used_state(config: Config) -> TrainState:
    """A net whose every number differs from what it was built with."""
    state = init_state(config, to_device(DATA, torch.device("cpu")), seed=0)
    generator = torch.Generator().manual_seed(1)
    for tensor in state.scored_net.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5, generator=generator)
    return state


def logits(net: torch.nn.Module, config: Config) -> torch.Tensor:
    data = to_device(DATA, torch.device("cpu"))
    return scored_logits(net.eval(), config, data.eval_images, data.mean, data.std)


@pytest.fixture
def saved(tiny: Config, tmp_path: Path) -> Path:
    file = tmp_path / "net.safetensors"
    save_weights(file, used_state(tiny).scored_net.state_dict(), tiny, DATA, seed=7, test_acc=0.5)
    return file


AIRBENCH = Config(act="gelu", whiten=True, whiten_px=2, whiten_both_signs=True, ema_decay=0.95, lookahead=True)
BASES = {**{name: recipe.config() for name, recipe in RECIPES.items()}, "airbench": AIRBENCH}


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_every_net_answers_the_same_to_the_last_bit(base: Config, tmp_path: Path) -> None:
    config = replace(base, width=2, batch_size=32)
    net = used_state(config).scored_net
    save_weights(tmp_path / "w", net.state_dict(), config, DATA)
    loaded, record = load_weights(tmp_path / "w")
    assert record.config == config and not loaded.training
    assert torch.equal(logits(loaded, config), logits(net, config))
    assert logits(net, config).std() > 0


@pytest.mark.parametrize("net", NETS)
def test_every_net_comes_back_to_the_last_bit(net: str, tiny: Config, tmp_path: Path) -> None:
    config = replace(tiny, net=net, norm_scale_uniform=True)
    trained = init_state(config, to_device(DATA, torch.device("cpu")), seed=0).scored_net
    save_weights(tmp_path / "w", trained.state_dict(), config, DATA)
    loaded, _ = load_weights(tmp_path / "w")
    assert torch.equal(logits(loaded, config), logits(trained, config)) and logits(trained, config).std() > 0


def test_the_header_says_what_the_file_is(saved: Path, tiny: Config) -> None:
    _, record = load_weights(saved)
    assert (record.config, record.dataset, record.fingerprint) == (tiny, DATA.name, DATA.fingerprint)
    assert (record.classes, record.mean, record.std) == (DATA.classes, DATA.mean, DATA.std)
    assert record.facts == {"seed": 7, "test_acc": 0.5}


def test_tensors_that_share_memory_or_are_strided(tiny: Config, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in used_state(tiny).scored_net.state_dict().items()}
    weights = [name for name in state if name.endswith("norm.weight")]
    same_shape = [name for name in weights if state[name].shape == state[weights[-1]].shape]
    assert len(same_shape) > 1
    for name in same_shape:
        state[name] = state[weights[-1]]
    state["linear.weight"] = state["linear.weight"].T.contiguous().T
    save_weights(tmp_path / "w", state, tiny, DATA)
    loaded, _ = load_weights(tmp_path / "w")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_a_full_disk_leaves_the_file_as_it_was(saved: Path, tiny: Config) -> None:
    before = saved.read_bytes()
    saved.with_name(f"{saved.name}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"No space left.*{saved.name}'"):
        save_weights(saved, used_state(tiny).scored_net.state_dict(), tiny, DATA)
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


def test_loading_leaves_the_random_state_alone(saved: Path) -> None:
    before = torch.get_rng_state()
    load_weights(saved)
    assert torch.equal(torch.get_rng_state(), before)


# --- what is refused


def refused(file: Path, *facts: str) -> None:
    with pytest.raises(InputError) as error:
        load_weights(file)
    message = str(error.value)
    assert "\n" not in message
    for fact in (str(file), *facts):
        assert fact in message


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize(
    "write",
    [
        lambda content, file: torch.save(content, file),
        lambda content, file: torch.save(content, file, _use_new_zipfile_serialization=False),
        lambda content, file: file.write_bytes(pickle.dumps(content)),
    ],
)
def test_a_pickle_is_named_and_not_loaded(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    write({"net": Trap(tmp_path / "sprung")}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "pickle", "only safetensors")
    assert not (tmp_path / "sprung").exists()


def test_no_file_a_folder_and_other_content(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "can't be read", "No such file")
    refused(tmp_path, "can't be read", "directory")
    (tmp_path / "text").write_text("hello, this is no net\n" * 10)
    refused(tmp_path / "text", "no whole safetensors file")


@pytest.mark.parametrize("share", [0, 1e-4, 0.01, 0.1, 0.5, 0.99])
def test_a_truncated_file(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    refused(saved, "no whole safetensors file")


def test_a_file_of_another_program(saved: Path, tmp_path: Path) -> None:
    save_file(load_file(saved), tmp_path / "bare")
    refused(tmp_path / "bare", "say nothing of version, config, classes, mean, std")


@pytest.mark.parametrize(
    ("key", "value", "fact"),
    [
        ("version", 99, "version 99: this program reads version 1"),
        ("config", {"width": 2, "widht": 3}, "unknown field 'widht' (did you mean width?)"),
        ("config", {"width": "wide"}, "width = 'wide' is not allowed"),
        ("config", 3, "damaged header"),
        ("classes", "abcd", "no list of names"),
        ("classes", [1, 2, 3, 4], "no list of names"),
        ("mean", [1.0, 2.0], "three numbers each"),
        ("std", [1.0, 2.0, 0.0], "three numbers each"),
        ("std", [1.0, 2.0, float("nan")], "three numbers each"),
        ("mean", [1.0, 2.0, "x"], "three numbers each"),
        ("mean", None, "damaged header"),
    ],
)
def test_a_header_that_was_tampered_with(saved: Path, key: str, value: Any, fact: str) -> None:
    change_header(saved, {key: json.dumps(value)})
    refused(saved, fact)


def test_a_header_that_is_no_json(saved: Path) -> None:
    change_header(saved, {"config": "{width: 2"})
    refused(saved, "damaged header")


def change_header(file: Path, changes: dict[str, str]) -> None:
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] |= changes
    packed = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(packed)) + packed + content[8 + size :])


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"width": 3}, ["prep.conv.weight has [2, 3, 3, 3], the net [3, 3, 3, 3]"]),
        ({"whiten": True}, ["prep.whiten.weight has no such tensor, the net [27, 3, 3, 3]"]),
        ({"residual_layers": "1"}, ["layer3.residual", "the net no such tensor"]),
        ({"extra_layers": "2"}, ["layer2.extra", "has no such tensor"]),
        ({"width": 1024}, ["[1024, 3, 3, 3]"]),  # refused before the memory for it is asked for
    ],
)
def test_tensors_of_another_net(saved: Path, tiny: Config, change: dict[str, Any], facts: list[str]) -> None:
    change_header(saved, {"config": json.dumps(replace(tiny, **change).to_dict())})
    refused(saved, "don't fit the config", *facts)


def test_other_classes_than_the_net_has(saved: Path) -> None:
    change_header(saved, {"classes": json.dumps(["a", "b"])})
    refused(saved, "linear.weight has [4, 16], the net [2, 16]")


def test_a_net_without_tensors(tiny: Config) -> None:
    with pytest.raises(InputError, match="don't fit"):
        restore_net(tiny, 4, {})
