"""Searches over several Ray nodes, some of which don't see the run folder: nodes that leave and join; open doors."""

import ipaddress
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import psutil
import pytest
import ray
from moto.server import ThreadedMotoServer
from optuna.trial import TrialState
from ray.cluster_utils import Cluster
from rich.console import Console
from test_search import SMALL, epochs_of, epochs_or_none, start, wait_for
from test_storage import store  # noqa: F401

from model.config import InputError
from tune.cluster import EVERY_S, LONGEST_PARENT, Nodes, _folder, _home_takes_a_token, check_address
from tune.run import Resources, Run
from tune.storage import Storage

EPOCHS = 45
# of a node: our code doesn't lie there, and nothing of what tune.search sets for the Ray that it starts itself
NOT_THERE = ("PYTHONPATH", *(name for name in os.environ if name.startswith(("RAY_", "TUNE_"))))


def can_hide_folders() -> bool:
    return (
        bool(shutil.which("unshare")) and not subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode
    )


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head node of one CPU."""
    for name in NOT_THERE:
        monkeypatch.delenv(name, raising=False)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def foreign_node(cluster: Cluster, hidden: Path, reaches_store: bool) -> subprocess.Popen[bytes]:
    """A node of one CPU for which the folder `hidden` is empty."""
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    mount = f'mount -t tmpfs none {hidden} && exec "$@"'
    return subprocess.Popen(
        ["unshare", "-m", "sh", "-c", mount, "sh", *ray, f"--address={cluster.address}"],
        env={name: value for name, value in os.environ.items() if reaches_store or not name.startswith("AWS_")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill(node: subprocess.Popen[bytes]) -> None:
    for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
        process.kill()
    node.wait()


def is_foreign(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
    except FileNotFoundError:
        return False


def foreign_trials(run: Path) -> list[int]:
    """Trials under way on a foreign node, a few epochs in."""
    return [
        number
        for number, epochs in (epochs_or_none(run) if run.exists() else {}).items()
        if 3 <= len(epochs) < EPOCHS - 20 and is_foreign(epochs[-1]["pid"])
    ]


@pytest.mark.slow
@pytest.mark.skipif(not can_hide_folders(), reason="needs mount namespaces")
@pytest.mark.parametrize("reached", [False, True])
def test_a_node_that_does_not_see_the_run_folder_dies_and_another_joins(
    store: ThreadedMotoServer,  # noqa: F811
    cluster: Cluster,
    tmp_path: Path,
    reached: bool,
) -> None:
    """`reached`: whether the node that joins has the address and the credentials of the store."""
    run = tmp_path / "runs" / "nodes"
    run.parent.mkdir()
    uri = "s3://bucket/nodes"
    node = foreign_node(cluster, run.parent, reached)
    args = (*SMALL, "--trials", 3, "--epochs", EPOCHS, "--scheduler", "none", "--name", "nodes")
    search = start(tmp_path, *args, "--address", cluster.address, "--storage", "s3://bucket")
    try:
        wait_for(lambda: search.poll() is not None or foreign_trials(run), timeout_s=200)
        assert search.poll() is None, search.communicate()[0]
        number = foreign_trials(run)[0]
        lost = epochs_of(run)[number][-1]["pid"]
        name = f"trials/{number}/checkpoint.pt"
        assert (run / name).exists() != reached
        assert not reached or name in Storage(uri).files()
        kill(node)
        before = epochs_of(run)
        wait_for(lambda: sum(node["Alive"] for node in cluster.global_state.node_table()) == 1)
        time.sleep(2 * EVERY_S)
        node = foreign_node(cluster, run.parent, reached)
        out, _ = search.communicate(timeout=400)
    finally:
        kill(node)
        if search.poll() is None:
            os.killpg(search.pid, signal.SIGKILL)
    assert search.returncode == 0, out
    after = epochs_of(run)
    for other, epochs in after.items():
        assert [metrics["epoch"] for metrics in epochs] == list(range(1, EPOCHS + 1))
        assert epochs[: len(before.get(other, []))] == before.get(other, [])
    assert [trial.state for trial in Run(run).study().trials] == [TrialState.COMPLETE] * 3
    assert after[number][len(before[number])]["train_s"] > before[number][-1]["train_s"]  # it went on, not anew
    assert len({metrics["pid"] for metrics in after[number]}) == 2 and lost != after[number][-1]["pid"]
    assert "room for 1 trials at once now, 2 before" in out and "room for 2 trials at once now, 1 before" in out
    assert not list(run.glob("trials/*/checkpoint.pt"))
    assert not [name for name in Storage(uri).files() if name.endswith("checkpoint.pt")]


@pytest.mark.slow
def test_a_search_listens_on_loopback_only(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "doors"
    search = start(tmp_path, *SMALL, "--trials", 2, "--epochs", 200, "--scheduler", "none", "--name", "doors")
    try:
        wait_for(lambda: run.exists() and epochs_or_none(run))
        me = psutil.Process(search.pid)
        sockets = [
            (process.name(), connection.laddr)
            for process in [me, *me.children(recursive=True)]
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
    finally:
        os.killpg(search.pid, signal.SIGKILL)
        search.communicate()
    assert len(sockets) >= 5  # the search, Ray's servers, the workers
    for name, address in sockets:
        host = ipaddress.ip_address(address.ip)
        assert (getattr(host, "ipv4_mapped", None) or host).is_loopback, (name, address)


def test_a_search_ends_where_no_worker_comes_up() -> None:
    """Two slots: the sixteenth death in a row ends it, and an epoch in between starts the count anew."""
    said = "Traceback ...\nModuleNotFoundError: No module named 'x'\n"
    trial: Any = SimpleNamespace(last_result={}, config={"number": 0}, get_error=lambda: said)
    manifest: Any = SimpleNamespace(resources=Resources(1, 0, 1, None))
    nodes = Nodes(manifest, SimpleNamespace(slots=2), Console(quiet=True))  # type: ignore[arg-type]
    for _ in range(15):
        nodes.on_trial_error(0, [trial], trial)
    nodes.on_trial_result(0, [], trial, {})
    for _ in range(15):
        nodes.on_trial_error(0, [trial], trial)
    with pytest.raises(InputError, match=r"16 workers died in a row without an epoch; .* No module named 'x'$"):
        nodes.on_trial_error(0, [trial], trial)


def test_no_cluster_at_the_address_is_said_in_one_line(tmp_path: Path) -> None:
    search = start(tmp_path, *SMALL, "--address", "127.0.0.1:1", "--name", "nobody")
    out, _ = search.communicate(timeout=120)
    assert search.returncode == 2 and "no Ray cluster" in out and len(out.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


class Head:
    """Answers as the head of a Ray cluster does, to whoever shows its token."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if self._token and ("authorization", f"Bearer {self._token}") not in call.invocation_metadata:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def listening(token: str | None) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Head(token)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.mark.parametrize(
    ("wanted", "shown", "mode"),
    [(None, None, "disabled"), (None, "mine", "disabled"), ("mine", "mine", "token"), ("mine", "other", None)],
)
def test_a_cluster_is_shown_a_token_if_it_wants_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str | None, shown: str | None, mode: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "none yet")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray._raylet, "Config", SimpleNamespace(initialize=lambda config: None))
    if shown:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(f"{shown}\n")
    with listening(wanted) as address:
        if mode is None:
            with pytest.raises(InputError, match="wants a token, and not this one is set: RAY_AUTH_TOKEN"):
                check_address(address)
        else:
            check_address(address)
            assert os.environ["RAY_AUTH_MODE"] == mode


def test_an_address_at_which_nobody_answers() -> None:
    with listening(None) as address:
        pass
    with pytest.raises(InputError, match=f"--address {address}: no Ray cluster answers there"):
        check_address(address)


def test_a_temporary_folder_with_a_long_path_is_not_used_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 90)))
    with _folder() as folder:
        assert folder.is_dir() and len(os.fsencode(folder)) <= LONGEST_PARENT + len("/ray-12345678")
    assert not folder.exists()
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: (_ for _ in ()).throw(PermissionError()))
    with pytest.raises(InputError, match=r"Ray needs a folder that can be written.*: set TMPDIR to one"), _folder():
        pass


def test_a_home_takes_ray_s_token_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for home, takes in [(tmp_path, True), (tmp_path / "not made", True), (Path("/proc"), False)]:
        monkeypatch.setenv("HOME", str(home))
        assert _home_takes_a_token() == takes
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert not _home_takes_a_token()
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user that the system doesn't know
    assert not _home_takes_a_token()
