"""tune.report: one page that says what a run found, whatever state the run is in."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks.big_run import make
from model.config import InputError
from tune import insights, report, report_words
from tune.report_data import DONE, STOPPED, RunData, Seen, read

SECTIONS = [
    *("Verdict", "Warnings", "The best", "Confirmation", "What mattered", "Response of each parameter"),
    *("How the search went", "What stopping early was worth", "Accuracy against cost", "Slots and learning curves"),
    "How to reproduce it",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 60 trials, a good dozen of full length."""
    return make(tmp_path_factory.mktemp("made"), 60).path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "big"))


class Parsed(HTMLParser):
    """The elements of a page with their attributes, the text that a reader sees, and the figures."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._inside = "", ""
        self.figures: dict[str, Any] = {}
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data
        elif self._inside == "script" and self.elements[-1][1].get("id") == "figures":
            assert "<" not in data  # nothing in it can end the element
            self.figures = json.loads(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def reported(*runs: Path, **options: Any) -> Parsed:
    report.main(report.Options(runs=tuple(map(str, runs)), **options))
    return Parsed(options.get("out") or runs[0] / "report.html")


def confirm(run: Path, **changes: Any) -> dict[str, Any]:
    """Write a confirm.json in which the search's best beats the base."""
    best = read(run).ranking()[0].number
    row: dict[str, Any] = {"n": 4, "sd_acc": 0.002, "ci95_acc": [0.91, 0.95], "accs": [0.928, 0.93, 0.931, 0.931]}
    row |= {"median_train_s": 12.5, "search_val_acc": 0.94, "diverged": 0, "params": {}, "flops": 1e12}
    difference = {"n": 4, "mean": 0.0123, "ci95": [0.004, 0.02], "form": "paired", "kind": "better", "more_seeds": None}
    content: dict[str, Any] = {
        **{"version": 1, "counts": {"train": 50_000, "test": 10_000}, "classes": list("abcdefghij")},
        **{"practical_acc": 0.001, "machine": {"cpu": "a CPU", "cores": 2, "gpus": []}},
        "rows": [
            {**row, "trial": best, "mean_acc": 0.93, "to_base": difference},
            {**row, "trial": 0, "mean_acc": 0.9177, "to_base": None},
        ],
        "verdict": {"kind": "better", "trial": best, "recommended": best, "text": "Trial X is better. Take it."},
        **changes,
    }
    (run / "confirm").mkdir(exist_ok=True)
    (run / "confirm" / "confirm.json").write_text(json.dumps(content))
    return content


def test_a_run_that_is_not_confirmed(run: Path) -> None:
    page = reported(run)
    positions = [page.text.index(section, page.text.index("Nothing is confirmed") - 200) for section in SECTIONS[:1]]
    assert positions and f"python -m tune.confirm {run}" in page.text
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", (run / "report.html").read_text())
    assert headings == SECTIONS
    full = len(read(run).full)
    assert f"60 started: {full} of full length" in page.text
    assert "test acc" not in page.text.split("How to reproduce")[0].split("The best")[-1].split("Confirmation")[0]


def test_one_file_that_loads_nothing_and_is_accessible(run: Path) -> None:
    confirm(run)
    page = reported(run)
    assert (run / "report.html").stat().st_size < 5e6
    assert not [a for tag in ("link", "img", "iframe") for a in page.all(tag)]
    assert not [script for script in page.all("script") if "src" in script]
    assert all((a["href"] or "").startswith("#") for a in page.all("a"))
    assert "default-src 'none'" in str(page.all("meta"))
    plots = [div for div in page.all("div") if div.get("class") == "plot"]
    assert {plot["id"] for plot in plots} == page.figures.keys() and len(plots) == len(page.all("figcaption")) >= 12
    assert all(plot["role"] == "img" and plot["aria-labelledby"] for plot in plots)
    assert all(th.get("scope") in ("col", "row") for th in page.all("th")) and page.all("th")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) and {(a["href"] or "")[1:] for a in page.all("a")} <= set(ids)


def test_a_confirmed_run(run: Path) -> None:
    best = confirm(run)["verdict"]["trial"]
    page = reported(run)
    verdict = page.text.index("Trial X is better.")
    assert page.text.index("Verdict", verdict - 60) < verdict < page.text.index("The best", verdict)
    assert "93.00" in page.text and "91.00 to 95.00" in page.text and "+1.23 (+0.40 to +2.00)" in page.text
    assert (
        f"In the search trial {best} came first" in page.text
        and "on fresh seeds it has 93.00% (test, n = 4)" in page.text
    )
    assert "10,000 test images" in page.text and "a CPU" in page.text
    seeds = [trace for trace in page.figures["f0"]["data"] if trace.get("name") == "single seeds"]
    assert len(seeds) == 2
    assert "±0.1 points" in page.text


def test_a_confirmation_of_an_older_version(run: Path) -> None:
    (run / "confirm").mkdir()
    rows = [{"trial": 0, "n": 1, "mean_acc": 0.9}]
    (run / "confirm" / "confirm.json").write_text(json.dumps({"rows": rows}))
    assert "has the highest mean test accuracy: 90.00% (n = 1)" in reported(run).text


def test_hostile_strings_are_inert(run: Path, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;" + "é" * 5000 + "\u202e\x00"
    manifest = json.loads((run / "run.json").read_text())
    manifest |= {"dataset": evil, "space_name": evil, "machine": {"cpu": evil, "cores": 1, "gpus": []}}
    (run / "run.json").write_text(json.dumps(manifest))
    confirm(run, verdict={"text": evil, "recommended": 0}, machine={"cpu": evil, "cores": 1, "gpus": [evil]})
    other = Path(shutil.copytree(run, tmp_path / '<b onclick="x">&<i>$x$'))
    page = reported(run, other, out=tmp_path / "out.html")
    assert len(page.all("script")) == 3
    assert not {"img", "b", "i"} & {tag for tag, _ in page.elements} - {"b"}
    assert all(set(b) == {"style"} for b in page.all("b"))  # the key of the responses
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert "<img src=x onerror=alert(2)>\"'&amp;éé" in page.text
    assert "\u202e" not in page.text and "\x00" not in page.text
    names = [trace.get("name", "") for figure in page.figures.values() for trace in figure["data"]]
    assert '&lt;b onclick="x"&gt;&amp;&lt;i&gt;$x$' in names and not [name for name in names if "<" in name]


def cut_journal(run: Path) -> None:
    with (run / "journal.log").open("a") as file:
        file.write('{"op_code": 5, "worker')


def break_journal(run: Path) -> None:
    lines = (run / "journal.log").read_text().splitlines(keepends=True)
    (run / "journal.log").write_text("".join([*lines[:-9], "\x00{garbage\n", *lines[-8:]]))


def cut_metrics(run: Path) -> None:
    with (run / "trials" / "0" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 17, "acc"')


def write_confirm(run: Path, text: str) -> None:
    (run / "confirm").mkdir()
    (run / "confirm" / "confirm.json").write_text(text)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "half-written journal": (cut_journal, "the last line of journal.log is half-written"),
    "damaged journal": (break_journal, "it and the 8 lines after it are left out"),
    "no journal": (lambda run: (run / "journal.log").unlink(), "journal.log, the Optuna study, is missing"),
    "empty journal": (lambda run: (run / "journal.log").write_text(""), "journal.log holds no readable study"),
    "no metrics": (
        lambda run: (run / "trials" / "0" / "metrics.jsonl").unlink(),
        "metrics.jsonl of 1 trials is missing",
    ),
    "half-written metrics": (cut_metrics, "metrics.jsonl of 1 trials has a damaged or half-written line"),
    "damaged confirm": (lambda run: write_confirm(run, '{"rows": [{'), "confirm.json is damaged"),
    "confirm of another kind": (lambda run: write_confirm(run, '{"rows": [{"n": 1}]}'), "confirm.json is damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_missing_is_said_and_the_rest_shown(run: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    cause, said = FAULTS[fault]
    cause(run)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    page = reported(run)
    assert said in page.text and said in capsys.readouterr().out
    assert f"{len(read(run).full)} of full length" in page.text and len(page.figures) >= 10
    after = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert {file.name for file in after.keys() - before.keys()} == {"report.html"}
    assert all(after[file] == content for file, content in before.items())


def test_a_damaged_journal_loses_only_its_end(run: Path) -> None:
    break_journal(run)
    assert len(read(run).trials) == 60 and 0 < len(read(run).full) <= len(read(run).trials)


def test_without_a_journal_params_and_states_come_from_the_folders(run: Path) -> None:
    whole = read(run)
    (run / "journal.log").unlink()
    rest = read(run)
    assert not (run / "journal.log").exists()  # reading makes none
    assert [trial.number for trial in rest.ranking()] == [trial.number for trial in whole.ranking()]
    assert rest.trials[3].params == pytest.approx(whole.trials[3].params)


def test_an_empty_run(run: Path) -> None:
    shutil.rmtree(run / "trials")
    first, *_ = (run / "journal.log").read_text().splitlines(keepends=True)
    (run / "journal.log").write_text(first)
    page = reported(run)
    assert "no trial has been started yet" in page.text and "Nothing can be said yet" in page.text
    assert not page.figures


def test_a_running_search_is_not_disturbed(run: Path) -> None:
    lines = (run / "journal.log").read_text().splitlines(keepends=True)
    (run / "journal.log").write_text("".join(lines[: len(lines) // 2]))
    with read(run).run.lock():
        page = reported(run)
    assert "under way or waiting" in page.text
    assert not list(run.glob("journal.log.lock*"))


def test_no_run_folder(command: Callable[..., Any], tmp_path: Path) -> None:
    answer = command("tune.report", tmp_path)
    assert answer.returncode == 2 and answer.stderr.count("\n") == 1 and "is not a run folder" in answer.stderr


def test_several_runs_side_by_side(run: Path, made: Path, tmp_path: Path) -> None:
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**manifest, "seed": 7, "fingerprint": "1" * 12}))
    confirm(run)
    out = tmp_path / "two.html"
    page = reported(made, run, out=out)
    assert not (made / "report.html").exists()
    assert "These runs used different data: their accuracies can't be compared." in page.text
    table = page.text[page.text.index("Where their settings differ.") :][:400]
    assert "seed" in table and "7" in table and "1" * 12 in table and "grace" not in table
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", out.read_text())
    assert headings == ["Side by side", "Run 1: big", "Run 2: big"]
    assert len(page.figures["f0"]["data"]) == 2  # a history of each, on common axes


def test_figures_without_kaleido(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(InputError, match=r"--figures needs kaleido"):
        report.main(report.Options(runs=(str(run),), figures=tmp_path / "figures"))


# what is computed


def test_random_order() -> None:
    mean, low, high = insights.random_order([0.0, 0.0, 1.0, 0.0])
    assert mean == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=0.08)
    assert low[-1] == high[-1] == 1 and low[0] == 0 and (mean[1:] >= mean[:-1]).all()


def altered(run: Path, trials: list[Seen]) -> RunData:
    return RunData(read(run).run, trials, None, [])


def trial(number: int, accs: list[float], state: str = DONE, params: dict[str, Any] | None = None) -> Seen:
    """Of 16 epochs with rungs at 4 and 12; `accs` are those at the rungs and the end, as far as it came."""
    curve = [acc for acc, epochs in zip(accs, (4, 8, 4), strict=False) for _ in range(epochs)]
    ended = [100.0 * number + epoch for epoch in range(len(curve))]
    value = curve[-1] if state == DONE else None
    began = [at - 1 for at in ended]
    workers = [("host", 1)] * len(curve)
    return Seen(number, params or {}, state, 16, [4, 12], value, None, "", curve, began, ended, workers)


@pytest.mark.parametrize(("sign", "rho", "chance"), [(1, 1.0, 0.0), (-1, -1.0, 1.0)])
def test_early_ranks(run: Path, sign: int, rho: float, chance: float) -> None:
    full = [trial(i, [0.5 + sign * i / 100, 0.5 + i / 100, 0.6 + i / 100]) for i in range(20)]
    stopped = [trial(20 + i, [0.4 if sign > 0 else 0.2], STOPPED) for i in range(20)]
    data = altered(run, full + stopped)
    first = next(each for each in insights.agreements(data) if each.is_rung)
    assert (first.epoch, first.n) == (4, 20) and first.rho == pytest.approx(rho)
    (found,) = insights.stopped_chances(data)
    assert found.stopped == 20 and found.chance == chance and found.reached == 40
    assert found.ranks == ([1, 2, 3] if sign > 0 else [20, 19, 18])
    counts = insights.rung_counts(data)
    assert [(each.epoch, each.went_on, each.stopped) for each in counts] == [(4, 20, 20), (12, 20, 0)]
    said = report_words.rungs(data)
    assert ("was long enough" if sign > 0 else "was too short: ranks there say little") in said[0]


def test_few_full_trials_say_nothing(run: Path) -> None:
    data = altered(run, [trial(i, [0.5, 0.6, 0.7]) for i in range(5)])
    assert (
        insights.importances(data) == ([], 5) and not insights.agreements(data) and not insights.stopped_chances(data)
    )
    assert any("Only 5 of 5 trials ran to full length" in warning for warning in report_words.warnings(data))


def test_importance_of_what_matters(run: Path) -> None:
    rng = insights.np.random.default_rng(0)
    names = [*read(run).run.space.domains]
    trials = []
    for number in range(60):
        lr, other = rng.random(2)
        values = dict(
            zip(names, [128**lr / 8, 0.05 + 0.45 * other, 64 ** rng.random(), int(rng.integers(13))], strict=True)
        )
        trials.append(trial(number, [0.5, 0.6, 0.9 - 0.3 * (lr - 0.5) ** 2], params=values))
    found, n = insights.importances(altered(run, trials))
    assert n == 60 and found[0].name == names[0] and found[0].low > found[1].high
    assert sum(each.share for each in found) == pytest.approx(1)


def test_warnings(run: Path) -> None:
    names = [*read(run).run.space.domains]

    def params(lr: float) -> dict[str, Any]:
        return dict(zip(names, [lr, 0.25, 4.0, 5], strict=True))

    good = [trial(i, [0.5, 0.6, 0.7 + i / 100], params=params(0.125 + i / 1e4)) for i in range(12)]
    bad = [trial(20 + i, [0.1], "failed", params(10.0 + i)) for i in range(4)]
    data = altered(run, [trial(0, [0.5, 0.6, 0.95], params=params(0.125)), *good[1:], *bad])
    said = " ".join(report_words.warnings(data))
    assert f"The best value of {names[0]}, 0.125, lies at the lower end of its domain" in said
    assert f"4 of 16 trials failed or diverged, 4 of them with {names[0]} at least 10 (4 were tried there)" in said
    assert "leads the second" not in said  # by 14 points
    close = altered(
        run, [trial(0, [0.5, 0.6, 0.9], params=params(1.0)), trial(1, [0.5, 0.6, 0.901], params=params(2.0))]
    )
    assert "less than twice the standard error" in " ".join(report_words.warnings(close))


def test_warnings_of_a_confirmation(run: Path) -> None:
    content = confirm(run)
    assert not [w for w in report_words.warnings(read(run)) if "confirm" in w or "interval" in w]
    content["rows"][0]["to_base"] |= {"mean": 0.001, "ci95": [-0.01, 0.012]}
    content["rows"][0]["trial"] = content["verdict"]["recommended"] = read(run).ranking()[1].number
    confirm(run, rows=content["rows"], verdict=content["verdict"])
    said = " ".join(report_words.warnings(read(run)))
    assert "is wider than the difference itself (+0.10)" in said and "is not among the confirmed ones" in said


@pytest.fixture
def paused(run: Path) -> Iterator[RunData]:
    """Two trials one after the other, with a day between them in which nothing ran, the second on two processes."""
    first, second = trial(0, [0.5]), trial(1, [0.5])
    second.began_s, second.ended_s = ([at + 86_400 for at in each] for each in (second.began_s, second.ended_s))
    second.workers = [("host", 2)] * 2 + [("host", 3)] * 2
    yield altered(run, [first, second])


def test_pauses_are_cut_out_and_processes_follow_each_other_in_a_slot(paused: RunData) -> None:
    hours = insights.clock(paused)
    assert hours(paused.trials[0].ended_s[-1]) == pytest.approx(4 / 3600)
    assert hours(paused.trials[1].ended_s[-1]) == pytest.approx(8 / 3600)
    legs, slots = insights.legs(paused)
    assert slots == ["slot 1"] and [leg.trial for leg in legs] == [0, 1, 1]


def test_commands_to_reproduce(run: Path) -> None:
    lines, notes = report_words.reproduce(read(run))
    assert "--space lr_regimes" in lines[0] and "--trials 60" in lines[0] and "--sampler random" in lines[0]
    assert "--grace-epochs 4" in lines[0] and "--width 16" in lines[0] and "--seed" not in lines[0] and not notes
