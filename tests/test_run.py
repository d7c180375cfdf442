"""The run folder on the file systems and in the places that people have: names, locks, links, commits, machines."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO
from test_progress import new_run, snapshot

import tune.run
from model.config import InputError
from tune.lock import hold
from tune.resources import Resources
from tune.run import NameTaken, Run, create, here
from tune.snapshot import Snapshot
from tune.status import look


def test_a_run_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, manifest: Any) -> None:
        assert not (tmp_path / "first").exists()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tune.run, "_write_manifest", full)
        with pytest.raises(InputError, match=r"can't be written: No space left on device"):
            new_run(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert new_run(tmp_path).study().trials == []
    with pytest.raises(NameTaken, match="exists already"):
        new_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_of_searches_that_take_a_name_at_once_one_gets_it(tmp_path: Path) -> None:
    manifest = new_run(tmp_path).manifest
    program = (
        "import json, sys; from pathlib import Path; from tune.run import Manifest, create, NameTaken\n"
        "sys.stdin.readline()\n"
        "try: create(Path('.'), 'same', Manifest(**json.loads(sys.argv[1]))); print('mine')\n"
        "except NameTaken: print('taken')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", program, json.dumps(vars(manifest))]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) for _ in range(3)]
    with ThreadPoolExecutor() as threads:
        said = list(threads.map(lambda racer: racer.communicate("go\n")[0].strip(), racers))
    assert sorted(said) == ["mine", "taken", "taken"]
    assert Run(tmp_path / "same").study().trials == []


def test_a_folder_for_which_others_made_a_place_is_taken_if_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    assert new_run(tmp_path).path == tmp_path / "first"


def test_a_path_that_ray_cannot_write_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no UTF-8"):
        create(tmp_path / "\udcff", "first", new_run(tmp_path).manifest)


def test_no_symbolic_links_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on exFAT and on many network file systems."""

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refused)
    study = new_run(tmp_path).study()
    study.ask()
    assert len(Run(tmp_path / "first").study().trials) == 1


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_writer_goes_on_after_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hold(tmp_path):
        pass
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "warning" in err and "has no locks (No locks available)" in err


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_reader_goes_by_the_last_sign_of_life(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    (run.path / "lock").touch()
    alive: Snapshot = snapshot(written_s=time.time() - 5)
    alive.write(run.path)
    status = look(str(run.path))
    assert (status.state, status.alive) == ("running", True)
    assert "by its last sign of life 5 s ago" in status.said[0]


# --- where the code lies


def git(folder: Path, *args: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return subprocess.run(["git", *who, *args], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Somebody's repository with a commit."""
    if not shutil.which("git"):
        pytest.skip("needs git")
    (tmp_path / "theirs").mkdir()
    git(tmp_path / "theirs", "init", "-q")
    git(tmp_path / "theirs", "commit", "-q", "--allow-empty", "-m", "first")
    return tmp_path / "theirs"


def test_the_commit_is_that_of_our_code(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    assert tune.run._commit(repository) == commit
    (repository / "lib" / "python" / "site-packages").mkdir(parents=True)
    assert tune.run._commit(repository / "lib" / "python" / "site-packages") is None  # installed inside of it
    ours = here()["git_commit"]
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    assert here()["git_commit"] == ours != commit


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert here()["git_commit"] is None


# --- where the run goes on


def test_each_machine_of_a_run_is_on_record(tmp_path: Path) -> None:
    first = {"cpu": "A", "cores": 2, "gpus": []}
    second = {"cpu": "B", "cores": 8, "gpus": ["G"]}
    facts = {"versions": {}, "git_commit": None, "cpus_per_trial": 1.0, "gpus_per_trial": 0.0, "ranks": 1}
    run = create(tmp_path, "moved", replace(new_run(tmp_path).manifest, machine=first, legs=[], **facts))
    assert run.manifest.machines == [first]
    legs = [{"created": "", "machine": machine, "versions": {}, "git_commit": None} for machine in (second, first)]
    run.write_manifest(replace(run.manifest, legs=legs))
    found = Run(run.path).manifest
    assert found.machines == [first, second]
    assert found.last_leg["machine"] == first
    assert found.resources == Resources(1.0, 0.0, 1, None)


def test_data_that_moved_are_asked_for(tmp_path: Path) -> None:
    run = create(tmp_path, "moved", replace(new_run(tmp_path).manifest, data=str(tmp_path / "gone")))
    with pytest.raises(InputError, match=r"data of run moved lay in .*gone, which is not there now: give --data PATH"):
        run.dataset()
