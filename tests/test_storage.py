"""Runs kept in an object store: a real S3 server on this machine, searches that are killed and go on elsewhere."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import boto3
import pytest
from moto.moto_api._internal.models import moto_api_backend
from moto.server import ThreadedMotoServer
from rich.console import Console
from test_search import SMALL, epochs_of, epochs_or_none, start, wait_for

from model.config import InputError
from tune.mirror import JOURNAL, Mirror, fetch
from tune.plan import Options, new_run
from tune.run import Run
from tune.storage import Storage

QUIET = Console(quiet=True)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedMotoServer]:
    """An S3 server with the bucket `bucket`, to which the environment points."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    moto_api_backend.reset()  # else it has what the test before put there
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "visitor",
        "AWS_SECRET_ACCESS_KEY": "hush-hush",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield server
    server.stop()


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "lock"
    }


def in_store(uri: str) -> dict[str, bytes | None]:
    storage = Storage(uri)
    return {name: storage.read(name) for name in storage.files()}


@pytest.mark.slow
def test_a_killed_search_goes_on_from_the_store_on_another_machine(store: ThreadedMotoServer, tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    uri = "s3://bucket/prefix/far"
    args = (*SMALL, "--trials", 3, "--epochs", 6, "--storage", "s3://bucket/prefix", "--name", "far")
    search = start(here, *args)
    wait_for(lambda: [name for name in Storage(uri).files() if name.endswith("metrics.jsonl")])
    wait_for(lambda: sum(map(len, epochs_or_none(here / "runs" / "far").values())) > 4)
    os.killpg(search.pid, signal.SIGKILL)
    search.communicate()
    stored = {
        name: content.decode() for name, content in in_store(uri).items() if content and name.endswith("metrics.jsonl")
    }
    assert "hush-hush" not in (here / "runs" / "far" / "run.json").read_text()

    resumed = start(elsewhere, "--resume", uri)
    out, _ = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, out
    assert "fetched s3://bucket/prefix/far to runs/far" in out and f"storage: {uri} holds all of the run" in out
    run = elsewhere / "runs" / "far"
    for name, content in stored.items():  # what had arrived is kept to the letter
        whole = content[: content.rfind("\n") + 1]
        assert (run / name).read_text().startswith(whole)
    for epochs in epochs_of(run).values():
        assert [metrics["epoch"] for metrics in epochs] == list(range(1, len(epochs) + 1))
    assert len(epochs_of(run)) == 3 and all(trial.state.is_finished() for trial in Run(run).study().trials)
    assert in_store(uri) == files_below(run)

    stale = start(here, "--resume", "runs/far")  # the first machine comes back: it must not undo the other's work
    out, _ = stale.communicate(timeout=60)
    assert stale.returncode == 2 and "where the run went on" in out and "Traceback" not in out
    assert in_store(uri) == files_below(run)


@pytest.mark.slow
def test_a_store_that_fails_does_not_end_the_search(store: ThreadedMotoServer, tmp_path: Path) -> None:
    search = start(
        tmp_path, *SMALL, "--trials", 2, "--epochs", 8, "--storage", "s3://bucket", "--name", "away", "--seed", 1
    )
    wait_for(lambda: "run.json" in Storage("s3://bucket/away").files())
    store.stop()
    out, _ = search.communicate(timeout=240)
    assert search.returncode == 0, out
    run = Path(tmp_path / "runs" / "away")
    assert [trial.state.is_finished() for trial in Run(run).study().trials] == [True, True]
    base, second = map(len, epochs_of(run).values())
    assert base == 8 and second in (4, 8)  # it may have stayed at its rung
    assert out.count("it goes on without and tries again") == 1
    assert "lacks the latest of the run" in out and "Traceback" not in out


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://no-such-bucket/x", "can't be used"),
        ("s3://me:hush-hush@bucket/x", "must hold no credentials"),
        ("s3://bucket/x?access_key=me&secret_key=hush-hush", "must hold no credentials"),
        ("bucket/x", "is no URI"),
        ("nosuch://bucket", "Unrecognized filesystem"),
        ("s3://", "names no bucket"),
    ],
)
def test_a_bad_storage_is_refused_and_nothing_is_written(
    store: ThreadedMotoServer, tmp_path: Path, uri: str, said: str
) -> None:
    options = Options(space="lr_regimes", data="digits", width=2, storage=uri, runs_dir=tmp_path / "runs")
    with pytest.raises(InputError, match=said) as refusal:
        new_run(options, QUIET)
    assert "hush-hush" not in str(refusal.value) and not (tmp_path / "runs").exists()


def test_an_unreachable_store_is_refused_in_one_line(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    result = command("tune.search", *SMALL, "--storage", "s3://bucket/x?endpoint_override=127.0.0.1:1&scheme=http")
    assert result.returncode == 2 and "can't be used" in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    search = start(folder, *SMALL, "--trials", 3, "--epochs", 3, "--name", "run", "--storage", f"file://{folder}/store")
    out, _ = search.communicate(timeout=240)
    assert search.returncode == 0, out
    return folder


@pytest.mark.slow
def test_any_state_of_a_mirror_in_the_making_can_be_resumed(finished: Path, tmp_path: Path) -> None:
    """Cut the upload off after each file: what is there is no run yet, or one with every epoch its journal needs."""
    store = tmp_path / "store"
    full = Run(finished / "runs" / "run")

    class Cut(Exception):
        pass

    runs = 0
    for uploads in range(40):
        shutil.rmtree(store, ignore_errors=True)
        left = uploads
        mirror = Mirror(full, QUIET)
        mirror.storage = storage = Storage(f"file://{store}/run")
        write = storage.write

        def counted(name: str, content: bytes, write: Callable = write) -> None:
            nonlocal left
            if left == 0:
                raise Cut
            left -= 1
            write(name, content)

        storage.write = counted  # type: ignore[method-assign]
        with suppress(Cut):
            mirror._sync()
        if "run.json" not in storage.files():
            with pytest.raises(InputError, match="holds no run"):
                fetch(storage.uri, tmp_path / f"runs{uploads}", QUIET)
            continue
        run = Run(fetch(storage.uri, tmp_path / f"runs{uploads}", QUIET))
        assert epochs_of(run.path) == epochs_of(full.path)
        runs += 1
    assert runs


@pytest.mark.slow
def test_what_confirm_finds_goes_into_the_store(finished: Path, tmp_path: Path, command: Callable) -> None:
    copy = shutil.copytree(finished / "store" / "run", tmp_path / "store" / "run")
    done = command("tune.confirm", f"file://{copy}", "--top", 1, "--seeds", 1)
    assert done.returncode == 0, done.stderr
    here = tmp_path / "runs" / "run" / "confirm" / "confirm.json"
    assert (copy / "confirm" / "confirm.json").read_text() == here.read_text()


@pytest.mark.slow
def test_trials_that_the_journal_does_not_know_are_left_out(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished / "store" / "run", tmp_path / "store" / "run")
    shutil.copytree(copy / "trials" / "2", copy / "trials" / "3")
    with (copy / JOURNAL).open("ab") as file:
        file.write(b'{"half')
    run = Run(fetch(f"file://{copy}", tmp_path / "runs", QUIET))
    assert sorted(folder.name for folder in (run.path / "trials").iterdir()) == ["0", "1", "2"]
    assert len(run.study().trials) == 3


@pytest.mark.slow
def test_a_local_folder_is_never_overwritten(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished / "store" / "run", tmp_path / "store" / "run")
    runs = tmp_path / "runs"
    shutil.copytree(finished / "runs" / "run", runs / "run")
    with (runs / "run" / "trials" / "0" / "metrics.jsonl").open("a") as file:
        file.write("newer\n")
    before = files_below(runs)
    assert fetch(f"file://{copy}", runs, QUIET) == runs / "run" and files_below(runs) == before
    with (copy / JOURNAL).open("ab") as file:
        file.write((copy / JOURNAL).read_bytes().splitlines(keepends=True)[-1])
    with pytest.raises(InputError, match="where the run went on"):
        fetch(f"file://{copy}", runs, QUIET)
    (copy / "run.json").write_text((copy / "run.json").read_text().replace('"created": "2', '"created": "1'))
    with pytest.raises(InputError, match="is another run"):
        fetch(f"file://{copy}", runs, QUIET)
    assert files_below(runs) == before


@pytest.mark.slow
def test_confirm_and_export_take_a_run_from_the_store(
    finished: Path, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    result = command("tune.export", f"file://{finished}/store/run", "--top", 1)
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "runs" / "run" / "best").glob("1-*.json"))
