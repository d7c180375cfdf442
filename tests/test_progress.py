"""What a search shows: the panel at every size of terminal, plain lines elsewhere, and the record in status.json."""

import io
import json
import math
import re
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from driver import EPOCHS, SPACE, Failure, Lab, new_study, searcher_of, smooth
from rich.cells import cell_len
from rich.console import Console

import tune.progress
from model.command import Stopped
from model.config import InputError
from tune import confirm, export
from tune.announce import summarise
from tune.lines import BLOCKS, duration, inert, spark
from tune.panel import View
from tune.progress import Progress
from tune.run import Manifest, Run, create
from tune.searcher import StudySearcher
from tune.snapshot import FILE, Row, Snapshot, parse
from tune.trials import State

HOSTILE = "[red]x[/red]\x1b[2J\r\n\u202e\x07" + "ü名" * 100
Value = Callable[[dict[str, Any], int], float]


def snapshot(**given: Any) -> Snapshot:
    """A search in the middle of its work, numbers with many digits."""
    params = {"lr_scale": 0.123456, "warmup_frac": 0.2345, "bn_bias_lr_mult": 31.75, "cutout_px": 12}
    row = Row(trial=1234, epoch=24, epochs=24, acc=0.94321, params=params)
    values: dict[str, Any] = {
        "run": "cifar",
        "state": "running",
        "pid": 1234567,
        "host": "node17",
        "written_s": 1.7e9,
        "extent": "10000 trials",
        "most_trials": 10_000,
        "counts": {"done": 1111, "running": 64, "paused": 128, "stopped": 2222, "failed": 33},
        "bases": 1,
        "base_epochs": 24,
        "spent_epochs": 54321.0,
        "budget_epochs": 98765.0,
        "budget_given": False,
        "eta_s": 12345.0,
        "eta_basis": "from the last 256 epochs trained by 64 slots",
        "busy": 64,
        "slots": 64,
        "curve": [[24.0, 0.91], [4321.0, 0.93], [23456.0, 0.94321]],
        "best": [replace(row, trial=number) for number in (1234, 0, 3321, 871, 5)],
        "waiting": [replace(row, trial=number, epoch=8, acc=0.81) for number in (3555, 3556, 3557)],
        "under_way": [replace(row, trial=number, epoch=7, acc=0.71) for number in range(3600, 3616)],
        "stopped_epochs": 35552.0,
        "paused_epochs": 2048.0,
        "started_epochs": 85392.0,
        "val_images": 5000,
    }
    return Snapshot(**(values | given))


def drawn(view: View, width: int, height: int = 100, encoding: str = "utf-8") -> list[str]:
    """The lines of the panel in a terminal of this size."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(width=width, height=height, force_terminal=True, color_system=None, markup=False, file=file)
    console.print(view)
    file.seek(0)
    return file.read().splitlines()


def numbers(lines: list[str]) -> set[str]:
    return {number for line in lines for number in re.findall(r"[\d.,]*\d%?", line)}


@pytest.mark.parametrize("width", [40, 47, 60, 80, 100, 130])
@pytest.mark.parametrize("height", [6, 10, 16, 24, 50])
def test_the_panel_fits_and_no_number_is_cut(width: int, height: int) -> None:
    known = {*numbers(drawn(View(snapshot()), 130)), "1", "2", "3"}  # params that are left out are counted
    lines = drawn(View(snapshot()), width, height)
    assert len(lines) < height and {cell_len(line) for line in lines} == {width}
    assert numbers(lines) <= known
    assert "1111 done" in "\n".join(lines)
    assert not any("…" in line for line in lines)


def test_a_wide_panel_shows_all_there_is() -> None:
    text = "\n".join(drawn(View(snapshot()), 130))
    for said in [
        "cifar: running",
        *("1111 done", "64 running", "128 paused", "2222 stopped", "33 failed", "of 10000 trials"),
        "2263.4 of about 4115.2 full trainings of 24 epochs",
        "3 h 25 min, from the last 256 epochs trained by 64 slots",
        "64 of 64 busy",
        "94.32% (trial 1234, n = 1 seed), over epochs trained 24 to 54321",
        "37600 of the 85392 epochs of all started trials (44%); 2048 of them at waiting trials, which may go on",
        "val acc of one seed on 5,000 held-out images, standard error 0.33 points",
    ]:
        assert said in text
    for cells in [
        ("1234", "24/24", "94.32%", "0.1235", "0.2345", "31.75", "12"),
        ("0 (base)", "24/24", "94.32%"),
        ("3555", "8/24", "81.00%"),
        ("3600", "7/24", "71.00%"),
    ]:
        assert re.search(r" +".join(map(re.escape, cells)), text)
    assert text.index(" 871  ") < text.index("not ranked") < text.index(" 3555  ")


def test_what_is_not_known_yet_is_said() -> None:
    new = snapshot(
        counts={}, curve=[], best=[], waiting=[], under_way=[], spent_epochs=0.0, stopped_epochs=0.0, paused_epochs=0.0
    )
    new = replace(new, started_epochs=0.0, eta_s=None, eta_basis="waits for the workers to start", most_trials=None)
    for width in (40, 130):
        text = " ".join("\n".join(drawn(View(new), width)).replace("│", " ").split())
        assert "none started of 10000 trials" in text and "ETA waits for the workers to start" in text
        assert "no full-length trial yet" in text and "saved" not in text


def test_trials_of_a_search_that_is_no_longer_at_work_are_not_called_running() -> None:
    text = "\n".join(drawn(View(snapshot(), state="killed"), 130))
    assert "cifar: killed" in text and "64 cut off" in text
    assert "running" not in text and "under way" not in text and "ETA" not in text and "busy" not in text


@pytest.mark.parametrize("width", [40, 80, 130])
def test_texts_of_others_are_inert(width: int) -> None:
    bad = snapshot(run=HOSTILE, extent=HOSTILE, eta_basis=HOSTILE, host=HOSTILE, counts={HOSTILE: 3, "done": 1})
    bad = replace(bad, best=[replace(bad.best[0], params={HOSTILE: HOSTILE, "width": 10**300})])
    lines = drawn(View(bad, said=[inert(HOSTILE)], note=inert(HOSTILE), more=[inert(HOSTILE)] * 2), width)
    text = "\n".join(lines)
    assert "[red]x[/red]?[2J????" in text
    assert not set("\x1b\r\x07\u202e") & set(text)
    assert {cell_len(line) for line in lines} == {width}


def test_a_terminal_without_unicode_gets_ascii() -> None:
    lines = drawn(View(snapshot()), 80, encoding="ascii")
    assert "".join(lines).isascii() and any("# 1111 done" in line for line in lines)


def test_in_a_pipe_the_lines_have_no_frame() -> None:
    file = io.StringIO()
    Console(width=80, markup=False, file=file).print(View(snapshot(), note="as of now"))
    first, *lines, last = file.getvalue().splitlines()
    assert first == "cifar: running" and last == "as of now"
    assert lines[0].startswith("trials ") and not any(each in file.getvalue() for each in "│╭─╯")


def test_absurd_numbers_and_tiny_terminals_do_no_harm() -> None:
    odd = {"counts": {"done": -5, "failed": 10**30}, "most_trials": 0, "base_epochs": 0, "budget_epochs": -1.0}
    odd |= {"curve": [[5.0, 7e300], [1.0, -3.0]], "eta_s": -1e300, "val_images": 0, "started_epochs": -1.0}
    for width in (1, 12, 20, 30, 200):
        assert drawn(View(snapshot(**odd)), width, 3)


def test_the_sparkline_is_the_incumbent_over_the_epochs_trained() -> None:
    assert spark([[10, 0.5], [15, 0.75], [20, 1.0]], 20, 4, BLOCKS).plain == "▁▅▅█"
    assert spark([[10, 0.9]], 40, 3, BLOCKS).plain == "▅▅▅"


def test_durations() -> None:
    seconds = [-1, 5, 59.6, 600, 3599, 3725, 90_000, 1e300]
    assert [duration(s) for s in seconds[:4]] == ["0 s", "5 s", "1 min 00 s", "10 min"]
    assert [duration(s) for s in seconds[4:]] == ["59 min", "1 h 02 min", "1 d 1 h", "115740 d 17 h"]


def test_the_record_survives_json() -> None:
    assert parse(snapshot_json()) == snapshot()


def snapshot_json(**changed: Any) -> str:
    return json.dumps(asdict(snapshot()) | changed)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        (snapshot_json()[:200], "delimiter|Expecting|Unterminated"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "missing or of another type"),
        (snapshot_json(version=2), "version 2"),
        (snapshot_json(pid="12"), "pid is missing"),
        (snapshot_json(best=[{}]), "trial is missing"),
        (snapshot_json(curve=[[1.0]]), "pairs"),
        (snapshot_json(state="asleep"), "state"),
        (snapshot_json().replace("98765.0", "NaN"), "NaN"),
        (snapshot_json(spent_epochs=10**400), "too large"),
        (snapshot_json(params=3, best=[{"trial": 1}]), "missing"),
    ],
)
def test_a_damaged_record_is_told_from_a_whole_one(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(text)


def new_run(folder: Path, **given: Any) -> Run:
    """A run folder of the tests' own space, 12 trials."""
    rest: dict[str, Any] = {name: None for name in Manifest.__dataclass_fields__ if name != "version"}
    rest |= {
        "space_name": "own",
        "space": SPACE.to_dict(),
        "data": "noise",
        "dataset": "noise",
        "fingerprint": "0" * 12,
    }
    rest |= {"counts": {"train": 900, "val": 100}, "trials": 12, "seed": 0, "sampler": "random", "scheduler": "asha"}
    rest |= {"cpus_per_trial": 1.0, "gpus_per_trial": 0.0, "threads": 1, "created": "today", "versions": {}}
    rest |= {"grace_epochs": 1, "reduction_factor": 3, "objective": "accuracy", "ranks": 1}
    rest |= {"machine": {}, "legs": []}
    return create(folder, "first", Manifest(**(rest | given)))


class Watched(Lab):
    """Tells Progress what Ray would tell it, on one process that takes a second for an epoch."""

    def __init__(self, progress: Progress, value_of: Value = smooth) -> None:
        super().__init__(value_of)
        self.progress = progress
        self.lines: list[str] = []

    def _ray(self, number: int) -> Any:
        return SimpleNamespace(config={"number": number})

    def watch(self, searcher: StudySearcher) -> "Watched":
        lab, progress = self, self.progress

        class Proxy:
            """The searcher, with progress looking on."""

            trials = searcher.trials

            def __init__(self) -> None:
                self.numbers: dict[str, int] = {}

            def suggest(self, trial_id: str) -> Any:
                found = searcher.suggest(trial_id)
                if isinstance(found, dict):
                    self.numbers[trial_id] = found["number"]
                    progress.on_trial_start(0, [], lab._ray(found["number"]))
                return found

            def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
                searcher.on_trial_result(trial_id, result)
                self._show(trial_id, result)

            def on_trial_complete(self, trial_id: str, result: dict[str, Any]) -> None:
                searcher.on_trial_complete(trial_id, result)
                self._show(trial_id, result)
                progress.on_trial_complete(0, [], lab._ray(self.numbers[trial_id]))

            def _show(self, trial_id: str, result: dict[str, Any]) -> None:
                timed = {"began_s": 0.0, "ended_s": 1.0, "host": "here", "pid": 1}
                report = {"new_epochs": [epoch | timed for epoch in result["new_epochs"]]}
                progress.on_trial_result(0, [], lab._ray(self.numbers[trial_id]), report)
                progress.on_step_end(0, [])

        self.run(Proxy())  # type: ignore[arg-type]
        return self


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Progress' clock, which stands still until it is set."""
    time = SimpleNamespace(now_s=1000.0)
    stand_in = SimpleNamespace(monotonic=lambda: time.now_s, time=lambda: 1.7e9 + time.now_s)
    monkeypatch.setattr(tune.progress, "time", stand_in)
    return time


def plain_console() -> Console:
    return Console(file=io.StringIO(), width=200, soft_wrap=True, markup=False, highlight=False)


def said_by(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_outside_a_terminal_each_leg_that_ends_is_a_line(tmp_path: Path) -> None:
    run, console = new_run(tmp_path), plain_console()

    def risky(params: dict[str, Any], epoch: int) -> float:
        if params["lr_scale"] > 6:
            raise Failure("[bold]CUDA\x1b[0m error")
        return smooth(params, epoch)

    searcher = searcher_of(new_study(), sampler="random", slots=2)
    with Progress(run, searcher, console) as progress:
        progress.begin()
        lab = Watched(progress, risky).watch(searcher)
    lines = said_by(console)
    assert len(lines) == len(lab.suggestions)
    assert lines[-1].startswith("trial ") and "12 trials | best val acc" in lines[-1]
    states = searcher.trials.count(State.DONE), searcher.trials.count(State.FAILED)
    assert all(states) and sum(" done (epoch 9, val acc" in line for line in lines) == states[0]
    assert sum("failed: [bold]CUDA?[0m error (no epochs)" in line for line in lines) == states[1]
    assert "\x1b" not in "".join(lines)


def test_a_long_silence_outside_a_terminal_is_broken(tmp_path: Path, clock: SimpleNamespace) -> None:
    console = plain_console()
    with Progress(new_run(tmp_path), searcher_of(new_study(), slots=3), console) as progress:
        progress.begin()
        progress.on_trial_start(0, [], SimpleNamespace(config={"number": 0}))  # type: ignore[arg-type]
        progress._searcher.suggest("0")
        for _ in range(150):
            clock.now_s += 1
            progress.on_step_end(0, [])
    assert (
        said_by(console)
        == [
            "1 of 3 slots busy | 1 running of 12 trials | no full-length trial yet | "
            "ETA waits for the first epoch of each slot"
        ]
        * 2
    )


def test_the_eta_is_what_the_last_epochs_took(tmp_path: Path, clock: SimpleNamespace) -> None:
    """One epoch a second is reported, so what is left takes as many seconds as it has epochs."""
    searcher = searcher_of(new_study(), sampler="random", slots=1, most_trials=None, budget=60.0)
    seen: list[Snapshot] = []
    with Progress(new_run(tmp_path, trials=None, budget=60.0), searcher, plain_console()) as progress:
        assert read(progress).eta_basis == "waits for the workers to start"
        progress.begin()
        on_result = progress.on_trial_result

        def a_second_later(*args: Any) -> None:
            clock.now_s += 1
            on_result(*args)
            seen.append(progress._take("running"))

        progress.on_trial_result = a_second_later  # type: ignore[method-assign]
        Watched(progress).watch(searcher)
    for each in seen[:-1]:
        if each.eta_s is not None:
            assert each.eta_s == pytest.approx(each.budget_epochs - each.spent_epochs)
    assert seen[0].eta_basis == "from the last 1 epoch trained by 1 slot"
    assert seen[40].eta_basis == "from the last 32 epochs trained by 1 slot"


def read(progress: Progress) -> Snapshot:
    return parse((progress._run.path / FILE).read_bytes())


def test_the_time_budget_ends_the_eta(tmp_path: Path, clock: SimpleNamespace) -> None:
    searcher = searcher_of(new_study(), slots=1)
    with Progress(new_run(tmp_path), searcher, plain_console(), time_budget_s=5.0) as progress:
        progress.begin()
        clock.now_s += 2
        searcher.suggest("0")
        epoch = {"epoch": 1, "acc": 0.5, "diverged": False, "began_s": 0.0, "ended_s": 2.0, "host": "here", "pid": 1}
        report = {"new_epochs": [epoch], "failed": None}
        searcher.on_trial_result("0", report)
        progress.on_trial_result(0, [], SimpleNamespace(config={"number": 0}), report)  # type: ignore[arg-type]
        shown = progress._take("running")
        assert (shown.eta_s, shown.eta_basis) == (3.0, "the rest of --time-budget-s")
        clock.now_s += 4
    assert read(progress).state == "stopped"


def test_the_record_is_written_every_other_second_and_at_the_end(tmp_path: Path, clock: SimpleNamespace) -> None:
    with Progress(new_run(tmp_path), searcher_of(new_study()), plain_console()) as progress:
        assert read(progress).state == "starting"
        progress.begin()
        written = set()
        for _ in range(100):
            clock.now_s += 0.1
            progress.on_step_end(0, [])
            written.add(read(progress).written_s)
        assert len(written) in (5, 6)


@pytest.mark.parametrize(
    ("ending", "trials", "state"),
    [
        (KeyboardInterrupt(), 12, "interrupted"),
        (Stopped(signal.SIGTERM), 12, "stopped"),
        (OSError("full"), 12, "failed"),
        (None, 0, "finished"),
        (None, 12, "stopped"),  # finished is what is over
    ],
)
def test_how_it_ended_is_on_record(tmp_path: Path, ending: BaseException | None, trials: int, state: str) -> None:
    progress = Progress(new_run(tmp_path), searcher_of(new_study(), most_trials=trials), plain_console())
    try:
        with progress:
            if ending:
                raise ending
    except (KeyboardInterrupt, OSError):
        pass
    assert read(progress).state == state


def test_savings_and_incumbent_are_those_of_the_trials_also_after_a_resume(tmp_path: Path) -> None:
    run, study = new_run(tmp_path), new_study()
    searcher = searcher_of(study, sampler="random", slots=2)
    with Progress(run, searcher, plain_console()) as progress:
        lab = Watched(progress).watch(searcher)
    shown = read(progress)
    lengths = {number: len(epochs) for number, epochs in lab.history.items()}
    assert shown.spent_epochs == sum(lengths.values())
    assert shown.stopped_epochs == sum(EPOCHS - length for length in lengths.values()) > 0
    assert (shown.paused_epochs, shown.started_epochs) == (0, EPOCHS * 12)
    assert sum(shown.counts.values()) == 12

    full = {number: epochs[-1]["acc"] for number, epochs in lab.history.items() if len(epochs) == EPOCHS}
    assert [row.trial for row in shown.best] == sorted(full, key=lambda number: (-full[number], number))[:5]
    accs = [acc for _, acc in shown.curve]
    assert accs == sorted(accs) and accs[0] == full[0] and accs[-1] == max(full.values())

    again = searcher_of(study, sampler="random", slots=2, metrics=lab.metrics)
    with Progress(run, again, plain_console()) as progress:
        pass
    assert replace(read(progress), written_s=0.0, eta_s=None, eta_basis="") == replace(
        shown, written_s=0.0, eta_s=None, eta_basis=""
    )


def test_paused_trials_may_still_go_on(tmp_path: Path) -> None:
    searcher = searcher_of(new_study(), sampler="random", slots=1)
    Lab().run(searcher, kill_at=4, epochs_before_kill=0)
    with Progress(new_run(tmp_path), searcher, plain_console()) as progress:
        shown = read(progress)
    assert shown.paused_epochs == 2 * (EPOCHS - 1) and shown.stopped_epochs == 0
    assert {(row.epoch, row.epochs) for row in shown.waiting} == {(1, EPOCHS)}
    assert [row.acc for row in shown.waiting] == sorted((row.acc for row in shown.waiting), reverse=True)


def test_a_record_that_cant_be_written_does_not_end_the_search(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    (run.path / f"{FILE}.tmp").mkdir()  # in the way
    with Progress(run, searcher_of(new_study()), plain_console()) as progress:
        progress.begin()
    assert not (run.path / FILE).exists()


@pytest.mark.parametrize("width", [40, 80])
def test_the_end_leads_on_and_cuts_no_number(tmp_path: Path, width: int) -> None:
    run = new_run(tmp_path)
    searcher = searcher_of(run.study(), sampler="random")
    Lab().run(searcher)
    console = Console(file=io.StringIO(), width=width, soft_wrap=True, markup=False, highlight=False)
    summarise(run, console)
    text = "\n".join(said_by(console))
    best = run.ranking()[0]
    assert f"{100 * best.value:.2f}%" in text and f"{best.params['lr_scale']:.4g}" in text  # type: ignore[operator]
    modules = re.findall(r"-m ([\w.]+) ", text)
    assert modules == ["tune.confirm", "tune.report", "tune.export", "tensorboard.main"]


def the_end_of(run: Run, value_of: Value, **given: Any) -> str:
    """What is said of a search whose trials reach these accuracies."""
    Lab(value_of).run(searcher_of(run.study(), run.space, sampler="random", most_trials=12), **given)
    console = Console(file=io.StringIO(), width=200, soft_wrap=True, markup=False, highlight=False)
    summarise(run, console)
    return "\n".join(said_by(console))


def test_where_all_trials_diverged_the_end_says_to_lower_the_rate(tmp_path: Path) -> None:
    text = the_end_of(new_run(tmp_path), lambda params, epoch: math.nan)
    assert "no trial ran to its end: 12 of 12 diverged" in text
    assert "--set peak_lr=0.1 (the base has 0.4)" in text and "reaches to lower rates" in text
    assert "--resume" not in text  # all would diverge again
    for command in (confirm, export):
        with pytest.raises(InputError, match=r"nothing to \w+: no trial ran to its end: 12 of 12 diverged; lower the"):
            command.main(command.Options(str(tmp_path / "first")))  # type: ignore[attr-defined]


def test_where_trials_failed_the_end_counts_the_reasons(tmp_path: Path) -> None:
    numbers = iter(range(12))

    def value_of(params: dict[str, Any], epoch: int) -> float:
        if next(numbers) < 3:
            raise Failure(f"RuntimeError: no such kernel {HOSTILE}")
        return math.nan

    text = the_end_of(new_run(tmp_path), value_of)
    assert re.search(r"9 of 12 diverged, 3 of 12 failed \(RuntimeError: no such kernel \[red\]x", text)
    assert "--resume" not in text and "\x1b" not in text


def test_where_no_trial_has_ended_yet_the_end_says_how_to_go_on(tmp_path: Path) -> None:
    text = the_end_of(new_run(tmp_path), smooth, kill_at=1)
    assert "no trial ran to its end" in text and "--resume" in text and "diverged" not in text
    text = the_end_of(new_run(tmp_path / "another"), lambda params, epoch: math.nan, kill_at=2)
    assert "1 of 2 diverged" in text and "--set peak_lr" in text and "--resume" in text
