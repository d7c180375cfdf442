"""The Ray nodes a search runs on: this machine alone, or a cluster whose nodes may come and go."""

import logging
import math
import socket
import time
from typing import Any

import ray
import torch
from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.console import Console

import model
import search_spaces
import tune
from model.config import InputError
from tune.run import Manifest
from tune.searcher import StudySearcher

EVERY_S = 2.0  # between two looks at the cluster
NODE_DEATH_S = 60.0  # until Ray is sure that a node is dead
DEATHS_IN_A_ROW = 10  # and three per slot: so many workers that die without an epoch between them have one cause


def check_address(address: str) -> None:
    """That something listens at HOST:PORT, which Ray takes minutes to find out. Other forms of address are left to Ray.

    Raises:
        InputError: nothing does.
    """
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            raise InputError(f"--address {address}: no Ray cluster can be joined there ({error})") from error


def start_ray(manifest: Manifest, address: str | None, console: Console) -> int:
    """Start Ray on this machine, or join the cluster at `address`; returns how many trials run at once.

    Raises:
        InputError: there is no such cluster, or none of its nodes has room for a trial.
    """
    if not ray.is_initialized():
        console.print("starting Ray ...")
        logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)  # `Progress` says it shorter
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address:
            code = {"py_modules": [package.__path__[0] for package in (model, search_spaces, tune)]}
            try:
                ray.init(address=address, runtime_env=code, **quiet)  # nodes need our packages' dependencies only
            except (ConnectionError, ValueError) as error:
                raise InputError(f"--address {address}: no Ray cluster can be joined there ({error})") from error
        else:
            ray.init(address="local", num_gpus=torch.cuda.device_count(), include_dashboard=False, **quiet)
    slots = count_slots(ray.nodes(), manifest.cpus_per_trial, manifest.gpus_per_trial)
    if slots == 0:
        raise InputError(
            f"no node of the cluster has the {manifest.cpus_per_trial:g} CPUs and {manifest.gpus_per_trial:g} GPUs "
            f"of a trial: lower --cpus-per-trial or --gpus-per-trial in a new run"
        )
    return slots


def count_slots(nodes: list[dict[str, Any]], cpus: float, gpus: float) -> int:
    """How many trials run at once on these Ray nodes: a trial stays on one node, a share of a GPU on one GPU."""
    slots = 0
    for node in nodes:
        if node["Alive"]:
            there = node["Resources"]
            by_gpu: float = math.inf
            if gpus:
                total = int(there.get("GPU", 0))
                by_gpu = total // int(gpus) if gpus >= 1 else total * int(1 / gpus)
            slots += int(min(by_gpu, there.get("CPU", 0) // cpus))
    return slots


class Nodes(Callback):
    """Keeps the number of slots right as nodes join and leave; a trial whose node left hasn't failed for that.

    Raises:
        InputError: no worker comes up. The trials under way have failed for nothing, but only these.
    """

    def __init__(self, manifest: Manifest, searcher: StudySearcher, console: Console) -> None:
        self._cpus, self._gpus = manifest.cpus_per_trial, manifest.gpus_per_trial
        self._searcher, self._console = searcher, console
        self._counted_s = time.monotonic()
        self._deaths = 0  # of workers since the last epoch
        self._lost_workers: list[tuple[float, str, int]] = []  # when (s), on which node, at which trial

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if time.monotonic() - self._counted_s < EVERY_S:
            return
        self._counted_s = time.monotonic()
        nodes = ray.nodes()
        slots = count_slots(nodes, self._cpus, self._gpus)
        if slots != self._searcher.slots:
            self._console.print(f"the cluster has room for {slots} trials at once now, {self._searcher.slots} before")
            self._searcher.slots = slots
        self._pardon({node["NodeID"] for node in nodes if node["Alive"]})

    def _pardon(self, alive: set[str]) -> None:
        """Take back the failures of trials whose worker went with its node, which Ray says later than the failure."""
        for lost in list(self._lost_workers):
            at_s, node, number = lost
            if node not in alive:
                self._searcher.pardon(number)
            if node not in alive or time.monotonic() - at_s > NODE_DEATH_S:
                self._lost_workers.remove(lost)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self._deaths = 0

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._deaths += 1
        if self._deaths >= DEATHS_IN_A_ROW + 3 * self._searcher.slots:
            said = next((error for each in reversed(trials) if (error := each.get_error())), "nothing")
            last_line = str(said).strip().splitlines()[-1]
            raise InputError(f"{self._deaths} workers died in a row without an epoch; one of them said: {last_line}")
        if "node" in trial.last_result:
            self._lost_workers.append((time.monotonic(), trial.last_result["node"], trial.config["number"]))
