"""What all commands have in common, on a small one: signals, output that can't be written or encoded, ~ in paths."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import REPO

from model.command import run_command

SCRIPT = """
import signal, sys, time
from dataclasses import dataclass
from pathlib import Path
from rich.console import Console
from model.command import run_command

@dataclass(frozen=True)
class Options:
    do: str

def main(options):
    do = options.do
    if do == "print":
        for number in range(100_000):
            print(number)
    elif do == "rich":
        console = Console()
        for number in range(3_000):
            console.print(number)
    elif do == "text":
        print("± 猫 \\udce9")
        Console(markup=False).print("± 猫 \\udce9")
        print("± 猫 \\udce9", file=sys.stderr)
    elif do == "write":
        Path("/dev/full").write_text("x" * 100_000)
    elif do == "missing":
        Path("no/such/folder").write_text("")
    elif do == "bug":
        raise ValueError("a bug")
    else:
        assert do == "wait"
        try:
            print("ready", signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, flush=True)
            for _ in range(200):
                time.sleep(0.1)  # Python sees a signal that comes just before only afterwards
        finally:
            time.sleep(0.3)
            print("cleaned up")

run_command(main, Options, prog="x")
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """Start the script with its outputs in pipes, in a shell with these redirections and after these words."""

    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")

    def popen(do: str, redirected: str = "", before: str = "", **environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["sh", "-c", f'{before} exec "$@" {redirected}', "sh", sys.executable, "script.py", "--do", do],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPO), **environment},
        )

    return popen


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (signal.SIGTERM, signal.SIGTERM, 143),
        (signal.SIGHUP, signal.SIGTERM, 129),
        (signal.SIGUSR1, signal.SIGUSR1, 138),
        (signal.SIGINT, signal.SIGTERM, 130),
    ],
)
def test_a_signal_ends_a_command_after_it_has_cleaned_up(start: Start, first: int, second: int, code: int) -> None:
    """Also where one more comes meanwhile, as from a batch system that signals every process of a group."""
    with start("wait") as process:
        assert process.stdout and process.stdout.readline() == b"ready False\n"
        process.send_signal(first)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
        process.send_signal(second)
        assert process.communicate(timeout=20) == (b"cleaned up\n", b"\ninterrupted\n")
    assert process.returncode == code


def test_a_signal_that_is_ignored_stays_so(start: Start) -> None:
    with start("wait", before="trap '' HUP;") as process:  # as nohup does
        assert process.stdout and process.stdout.readline() == b"ready True\n"
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 143


@pytest.mark.parametrize("do", ["print", "rich"])
@pytest.mark.parametrize("redirected", ["", "2>&1"])
def test_output_that_nobody_reads_ends_a_command_quietly(start: Start, do: str, redirected: str) -> None:
    with start(do, redirected) as process:
        assert process.stdout and process.stderr and process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("do", ["print", "rich"])
@pytest.mark.parametrize("redirected", [">&-", ">&- 2>&- <&-"])
def test_closed_outputs_take_everything(start: Start, do: str, redirected: str) -> None:
    with start(do, redirected) as process:
        assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 0


def test_what_cant_be_encoded_becomes_a_question_mark(start: Start) -> None:
    c_locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    for environment, said in [
        ({"PYTHONIOENCODING": "ascii"}, b"? ? ?\n"),
        (c_locale, b"? ? ?\n"),
        ({"PYTHONIOENCODING": "latin-1"}, b"\xb1 ? ?\n"),
        ({"PYTHONIOENCODING": "utf-8"}, "± 猫 ?\n".encode()),
    ]:
        with start("text", **environment) as process:
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, 2 * said), err
        assert b"Traceback" not in err and b"\\udce9" in err


@pytest.mark.parametrize(
    ("do", "redirected", "facts"),
    [
        ("write", "", [b"No space left on device", b"make room, then give the same command again"]),
        ("print", "> /dev/full", [b"No space left on device", b"make room"]),
        ("missing", "", [b"no/such/folder: No such file or directory"]),
    ],
)
def test_a_file_that_cant_be_written_is_one_line(start: Start, do: str, redirected: str, facts: list[bytes]) -> None:
    with start(do, redirected) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count(b"\n")) == (2, b"", 1), err
    for fact in [b"error: ", *facts]:
        assert fact in err


def test_an_error_of_the_program_keeps_its_traceback(start: Start) -> None:
    with start("bug") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err.startswith(b"Traceback") and b"ValueError: a bug" in err


@dataclass(frozen=True)
class Paths:
    run: str
    out: Path | None = None
    bases: tuple[tuple[str, ...], ...] = ()


def test_a_tilde_in_any_path_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell leaves it as it is in `--out=~/x`."""
    monkeypatch.setenv("HOME", "/home/me")
    given = ["--run=~/runs/x", "--out=~/out", "--bases", "~/a.json", "s0", "a~b", "~nobody-of-this-name/x"]
    monkeypatch.setattr(sys, "argv", ["x", *given])
    found: list[Paths] = []
    run_command(found.append, Paths, prog="x")
    bases = (("/home/me/a.json", "s0", "a~b", "~nobody-of-this-name/x"),)
    assert found == [Paths("/home/me/runs/x", Path("/home/me/out"), bases)]


@pytest.mark.parametrize("module", ["model.train", "tune.search"])
def test_ctrl_c_while_a_command_is_loaded_leaves_no_traceback(module: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", module, "--data", "digits"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # pytest's may be another
    )
    assert process.stderr
    next(line for line in process.stderr if "torch" in line)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait() == -signal.SIGINT
    assert "Traceback" not in rest


def test_a_current_folder_that_was_removed_is_one_line(tmp_path: Path) -> None:
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    command = ["sh", "-c", script, "sh", sys.executable, "-m", "model.train"]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: the current folder was removed: change to one that is there\n"
