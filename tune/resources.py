"""What a trial gets of the machines that a search runs on: CPUs, GPUs, ranks; and how many trials run at once.

They belong to a leg of a run, from a start to a stop. Where a run goes on, on a smaller or a larger machine, they are
chosen anew."""

import math
import shutil
import socket

import ray
import torch

from model.config import InputError
from model.machine import startable_threads, usable_cores
from tune.run import Resources

THREADS, THREADS_OF_WORKER = 200, 40  # at most, of Ray's own processes and of a worker: 163 and 24 measured on 2 cores
RAY_UNITS = 10_000  # Ray counts shares of a resource in units of 1e-4


def choose(
    cpus: float | None,
    gpus: float | None,
    ranks: int | None,
    slots: int | None,
    *,
    joins: bool,
    before: Resources | None = None,
    had_gpus: bool = False,
) -> Resources:
    """What was asked for, where it was; else as it was `before` unless that doesn't fit or leaves a device idle; else
    this machine's GPUs, or cores, shared out.

    Args:
        joins: the trials run on a cluster, which may have more than this machine.
        had_gpus: whether the machine had GPUs on which the run was before, so that none for a trial was a choice.

    Raises:
        InputError: a number makes no sense, or this machine has less.
    """
    for name, value in [("slots", slots), ("ranks-per-trial", ranks)]:
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: it must be 1 or more")
    cpus_here, gpus_here = _here()
    given_cpus, given_gpus = cpus, gpus
    slots = slots or (before.slots if before else None)
    if gpus is None:
        gpus = _share_of_gpus(gpus_here, slots)
        if before and (joins or before.gpus <= gpus_here) and (before.gpus or had_gpus or not gpus_here):
            gpus = before.gpus
    if not (gpus >= 0 and math.isfinite(gpus)) or (gpus > 1 and gpus != int(gpus)):
        raise InputError(f"--gpus-per-trial {gpus}: it must be 0, a share of one GPU up to 1, or a whole number")
    at_once = min(_on_gpus(gpus_here, gpus) or 1, slots or math.inf) if gpus else slots or cpus_here
    if cpus is None:
        share = cpus_here / at_once
        cpus = float(math.floor(share)) if share >= 1 else math.floor(share * RAY_UNITS) / RAY_UNITS
        if before and (joins or before.cpus * (at_once if gpus or slots else 1) <= cpus_here):
            cpus = before.cpus
    if not (cpus > 0 and math.isfinite(cpus)):
        raise InputError(f"--cpus-per-trial {cpus}: it must be above 0")
    if not joins:
        for name, each, there, given in [("gpus", gpus, gpus_here, given_gpus), ("cpus", cpus, cpus_here, given_cpus)]:
            if each > there:
                raise InputError(
                    f"--{name}-per-trial {each:g}: this machine has {there} for this process; lower it, or join a "
                    f"cluster"
                )
            if given is not None and slots and _at_once(there, each) < slots:
                raise InputError(
                    f"--slots {slots} with --{name}-per-trial {each:g}: this machine has {there} for this process; "
                    f"lower one of them, or leave --{name}-per-trial out"
                )
    resources = Resources(cpus, gpus, _ranks(ranks, before, cpus, gpus), slots)
    if not joins:
        _check_ray_can_start(
            count_slots([{"Alive": True, "Resources": {"CPU": cpus_here, "GPU": gpus_here}}], resources)
        )
    return resources


def _check_ray_can_start(slots: int) -> None:
    """Ray breaks down in many ways, and may hang, where it can't start its processes and their threads."""
    if not shutil.which("bash"):
        raise InputError("Ray starts its workers with bash, and there is none on the PATH: install it")
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), 5).close()
    except OSError as error:
        raise InputError(
            f"Ray's processes talk over 127.0.0.1, which can't be used here ({error}): bring the loopback device up"
        ) from error
    needed, left = THREADS + THREADS_OF_WORKER * slots, startable_threads()
    if left < needed:
        raise InputError(
            f"Ray takes about {needed} processes and threads for this search, and this user or container may start "
            f"{left:g} more: raise the limit (ulimit -u, the container's pids), or run fewer trials at once (--slots)"
        )


def _here() -> tuple[int, int]:
    """CPUs and GPUs: of the cluster that was joined already, else those of this machine that this process may use."""
    if ray.is_initialized():
        cluster = ray.cluster_resources()
        return int(cluster.get("CPU", 1)), int(cluster.get("GPU", 0))
    return usable_cores(), torch.cuda.device_count()


def _share_of_gpus(gpus_here: int, slots: int | None) -> float:
    """One for each trial, or a share where there are more slots than GPUs."""
    if not gpus_here:
        return 0.0
    return math.floor(RAY_UNITS / math.ceil((slots or 1) / gpus_here)) / RAY_UNITS


def _on_gpus(there: int, gpus: float) -> int:
    """How many trials so many GPUs have room for: a share of one lies on one."""
    return there // int(gpus) if gpus >= 1 else there * int(1 / gpus)


def _at_once(there: int, each: float) -> float:
    return math.floor(there / each + 1e-9) if each else math.inf


def _ranks(given: int | None, before: Resources | None, cpus: float, gpus: float) -> int:
    """Processes of a trial: one per GPU, or as many as asked for on its CPU cores."""
    ranks = given if given is not None else before.ranks if before else max(1, int(gpus))
    if ranks > 1 and gpus and ranks != gpus:
        raise InputError(
            f"--ranks-per-trial {ranks}: a trial has {gpus:g} GPUs; give one rank to each, or leave the option out"
        )
    if ranks > 1 and ranks > cpus:
        raise InputError(
            f"--ranks-per-trial {ranks}: a trial has {cpus:g} CPUs; raise --cpus-per-trial to {ranks} or more"
        )
    return ranks


def count_slots(nodes: list[dict[str, object]], resources: Resources) -> int:
    """How many trials run at once on these Ray nodes: a trial stays on one node, a share of a GPU on one GPU."""
    slots: float = 0
    for node in nodes:
        if node["Alive"]:
            there = node["Resources"]
            assert isinstance(there, dict)
            by_gpu = _on_gpus(int(there.get("GPU", 0)), resources.gpus) if resources.gpus else math.inf
            slots += min(by_gpu, _at_once(there.get("CPU", 0), resources.cpus))
    return int(min(slots, resources.slots or math.inf))
