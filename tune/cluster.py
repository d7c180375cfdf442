"""The Ray nodes a search runs on: this machine alone, or a cluster whose nodes may come and go."""

import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import ray
import torch
from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.console import Console

import model
import search_spaces
import tune
from model.command import STOP_SIGNALS
from model.config import InputError
from model.machine import usable_cores
from tune.resources import count_slots
from tune.run import Manifest
from tune.searcher import StudySearcher

EVERY_S = 2.0  # between two looks at the cluster
ANSWER_S = 5.0  # that the head of a cluster has to answer
NODE_DEATH_S = 60.0  # until Ray is sure that a node is dead
LONGEST_PARENT = 30  # bytes: of the 103 to 107 of a socket's name Ray takes 73 below its parent folder
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}  # of ray.init
DEATHS_IN_A_ROW = 10  # and three per slot: so many workers that die without an epoch between them have one cause


def check_address(address: str) -> None:
    """Check that a Ray cluster answers at HOST:PORT, which Ray takes minutes to find out, and show it a token if it
    wants one. Ray itself shows none to an address that is given; and where one is shown that isn't wanted, workers
    can't answer. Other forms of address are left to Ray.

    Raises:
        InputError: nothing answers, or it wants another token.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return
    answer = _ask(address, None)
    if answer in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        raise InputError(
            f"--address {address}: no Ray cluster answers there; `ray status` on its head tells its address"
        )
    wants_token = answer == grpc.StatusCode.UNAUTHENTICATED
    if wants_token and _ask(address, _token()) == answer:
        raise InputError(
            f"--address {address}: the Ray cluster there wants a token, and {'not this one' if _token() else 'none'} "
            f"is set: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token must be as on its head"
        )
    os.environ["RAY_AUTH_MODE"] = "token" if wants_token else "disabled"
    if ray_config := getattr(ray._raylet, "Config", None):  # versions without it know no tokens
        ray_config.initialize("")  # Ray has read the environment when it was imported


def _ask(address: str, token: str | None) -> grpc.StatusCode:
    """What the head of a cluster answers to a request that every version knows, with this token or without."""
    with grpc.insecure_channel(address) as channel:
        try:
            request = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
            request(b"", timeout=ANSWER_S, metadata=[("authorization", f"Bearer {token}")] if token else [])
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def _token() -> str | None:
    """The token that Ray would take from the environment or a file."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    file = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    with suppress(OSError, UnicodeError):
        return Path(file).read_text(encoding="ascii").strip()
    return None


@contextmanager
def started_ray(manifest: Manifest, address: str | None, console: Console) -> Iterator[int]:
    """Ray on this machine, or the cluster at `address`, until the end of the block; says how many trials run at once.

    Raises:
        InputError: Ray can't be started here, there is no such cluster, or no node has room for a trial.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(_folder()) if address is None else None
        stack.callback(ray.shutdown)
        if not ray.is_initialized():
            console.print("starting Ray ...")
            for name in ("ray.tune.execution.tune_controller", "ray.tune.tune"):
                logging.getLogger(name).setLevel(logging.CRITICAL)  # `Progress` says it shorter
            if address:
                _join(address)
            elif folder:
                _start(folder)
        slots = count_slots(ray.nodes(), manifest.resources)
        if slots == 0:
            raise InputError(
                f"no node of the cluster has the {manifest.cpus_per_trial:g} CPUs and {manifest.gpus_per_trial:g} GPUs "
                f"of a trial: lower --cpus-per-trial or --gpus-per-trial"
            )
        yield slots


def _join(address: str) -> None:
    code = {"py_modules": [package.__path__[0] for package in (model, search_spaces, tune)]}
    try:
        with _signals_held(), _stderr_closed():
            ray.init(address=address, runtime_env=code, **QUIET)  # nodes need our packages' dependencies only
    except Exception as error:  # no cluster, one of another version of Ray or Python, a token that is not its own
        raise InputError(f"--address {address}: the Ray cluster there can't be joined: {_said(error)}") from error


def _start(folder: Path) -> None:
    """A Ray of our own, which keeps what it writes in this folder."""
    if not ({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or _home_takes_a_token()):
        os.environ["RAY_AUTH_TOKEN"] = uuid.uuid4().hex
    try:
        with _signals_held():
            ray.init(
                address="local",
                num_cpus=usable_cores(),
                num_gpus=torch.cuda.device_count(),
                include_dashboard=False,
                _temp_dir=str(folder),
                # Ray checks how large /dev/shm is, but not whether it can be written
                _plasma_directory=None if os.access("/dev/shm", os.W_OK) else str(folder),
                **QUIET,
            )
    except Exception as error:
        raise InputError(f"Ray can't start on this machine: {_said(error)}") from error


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """What Ray's C++ code writes to stderr is dropped: a line a second while it can't join."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _home_takes_a_token() -> bool:
    """Whether Ray can keep its token where it does by default. A container's user often has no home."""
    file = Path(os.path.expanduser("~/.ray/auth_token"))
    if not file.is_absolute():  # a user that the system doesn't know
        return False
    if file.exists():
        return os.access(file, os.R_OK)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)  # which Ray would do
        return os.access(file.parent, os.W_OK)
    return False


@contextmanager
def _signals_held() -> Iterator[None]:
    """STOP_SIGNALS wait until the end of the block. Processes that start in it never get any: who stops a search often
    signals all of its processes (timeout, SLURM, systemd, a closed terminal), and without Ray's own this one would end
    at once, in the middle of anything."""
    handlers = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    held = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        for each, handler in handlers.items():  # Ray puts its own in their place, one of which prints a stack
            signal.signal(each, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


@contextmanager
def _folder() -> Iterator[Path]:
    """A new folder for Ray's sockets and logs, its path short enough for a socket's name; removed at the end.

    Raises:
        InputError: no such folder can be written.
    """
    tried = list(dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]))
    for parent in tried:
        if len(os.fsencode(parent)) <= LONGEST_PARENT:
            with suppress(OSError):
                folder = Path(tempfile.mkdtemp(prefix="ray-", dir=parent))
                break
    else:
        raise InputError(
            f"Ray needs a folder that can be written, with a path of at most {LONGEST_PARENT} bytes, for its sockets; "
            f"tried {', '.join(tried)}: set TMPDIR to one"
        )
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:400]}"


class Nodes(Callback):
    """Keeps the number of slots right as nodes join and leave; a trial whose node left hasn't failed for that.

    Raises:
        InputError: no worker comes up. The trials under way have failed for nothing, but only these.
    """

    def __init__(self, manifest: Manifest, searcher: StudySearcher, console: Console) -> None:
        self._resources = manifest.resources
        self._searcher, self._console = searcher, console
        self._counted_s = time.monotonic()
        self._deaths = 0  # of workers since the last epoch
        self._lost_workers: list[tuple[float, str, int]] = []  # when (s), on which node, at which trial

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if time.monotonic() - self._counted_s < EVERY_S:
            return
        self._counted_s = time.monotonic()
        nodes = ray.nodes()
        slots = count_slots(nodes, self._resources)
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
