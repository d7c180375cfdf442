"""`python -m tune.claims [RUN...]`: which claims of the source the runs bear out, as one table.

A search whose best configs were confirmed claims something as well: that what it found beats its base. Such runs stand
at the table's end, with the confirmation's own verdict.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any
from xml.etree.ElementTree import Element

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.command import run_command
from model.config import InputError
from model.files import write_whole
from search_spaces.experiment import SCALES, Estimate
from tune.commands import python
from tune.lines import inert
from tune.page import Content, Page, facts, table, tag
from tune.report_data import RunData, read
from tune.report_words import machine
from tune.results import RunResults, experiment_of, experiments

NOT_RUN = "not run"
STYLES = {
    **{"reproduced": "green", "contradicted": "red", "undecided": "yellow", NOT_RUN: "dim", "not testable": "dim"},
    # of confirmations
    **{"better": "green", "no worse": "green", "tie": "yellow", "no better": "yellow", "worse": "red"},
}


@dataclass(frozen=True)
class Options:
    """Hold the claims of all experiments against the runs that tested them."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """run folders of experiments or of confirmed searches (default: all below --runs-dir)"""
    runs_dir: Path = Path("runs")
    """where run folders are looked for"""
    json: Path | None = None
    """write the table there, too"""
    html: Path | None = None
    """write it as an HTML page"""
    markdown: Path | None = None
    """write it as Markdown"""
    figures: Path | None = None
    """write the figures of the runs there, as SVG and PNG, each under its experiment's name"""


@dataclass(frozen=True)
class Verdict:
    """A row of the table: a claim, and what a run shows of it."""

    id: str
    sentence: str
    published: str
    experiment: str
    """or the search space"""
    kind: str
    """one of STYLES"""
    text: str
    """what was found, with the numbers"""
    estimate: Estimate | None
    data: RunData | None
    """None: no run has tested it"""


def main(options: Options) -> None:
    runs = [_read(Path(run)) for run in options.runs] or _found(options.runs_dir)
    verdicts = collect(runs)
    console = Console(highlight=False)
    show_claims(verdicts, console)
    console.print(f"run one: {python()} -m tune.search --space EXPERIMENT --scale small --data PATH")
    for path, form in [(options.json, _as_json), (options.html, _as_html), (options.markdown, _as_markdown)]:
        if path is not None:
            try:
                write_whole(path, form(verdicts))
            except OSError as error:
                raise InputError(f"{path} can't be written: {error.strerror}") from error
    if options.figures:
        from tune.figures import experiment_pictures, save  # plotly takes a while to load

        # the largest run of each
        judged = {v.experiment: v.data for v in verdicts if v.data and experiment_of(v.data)}
        pictures = [
            (picture.name.replace("experiment", name), picture)
            for name, data in judged.items()
            for picture in experiment_pictures(data)
        ]
        console.print(f"{options.figures}: {save(pictures, options.figures)} figures, each as SVG and PNG")


def collect(runs: list[RunData]) -> list[Verdict]:
    """Every claim with the run that tells most of it: of the largest scale, then the one with the most trials. Those of
    the series, C01 to C40, come first; confirmed searches come last."""
    size = {name: number for number, name in enumerate(SCALES)}
    verdicts = []
    for name, experiment in experiments().items():
        own = [data for data in runs if data.run.manifest.space_name == name and experiment_of(data)]
        own.sort(key=lambda data: (size[data.run.manifest.scale or "tiny"], len(data.full)))
        results = [(RunResults(data, experiment), data) for data in own]
        for claim in experiment.claims:
            findings = [(claim.judged(found), data) for found, data in results]
            tested = [each for each in findings if each[0].kind != "not testable"] or findings
            finding, data = tested[-1] if tested else (None, None)
            kind, text = (finding.kind, finding.text) if finding else (NOT_RUN, f"experiment {name}")
            estimate = finding.estimate if finding else None
            verdicts.append(Verdict(claim.id, claim.sentence, claim.published, name, kind, text, estimate, data))
    verdicts.sort(key=lambda verdict: (not verdict.id.startswith("C"), verdict.id))
    return verdicts + [_confirmed(data) for data in runs if is_confirmed(data)]


def is_confirmed(data: RunData) -> bool:
    return bool((data.confirm or {}).get("verdict"))


def _confirmed(data: RunData) -> Verdict:
    """What the confirmation of a search says of the best of its challengers against the base."""
    assert data.confirm
    verdict, space = data.confirm["verdict"], data.run.manifest.space_name
    row = data.row(verdict["trial"]) or {}
    found, estimate = row.get("to_base"), None
    if found and found["ci95"]:
        estimate = Estimate(found["n"], found["mean"], *found["ci95"])
    sentence = "What the search found beats its base, or is as good and cheaper"
    return Verdict(space, sentence, "our own", space, verdict["kind"], verdict["text"], estimate, data)


def _read(path: Path) -> RunData:
    data = read(path)
    if experiment_of(data) is None and not is_confirmed(data):
        raise InputError(
            f"{path} is no run of an experiment as the project has it (tune.spaces lists them), nor a search that "
            "tune.confirm has confirmed"
        )
    return data


def _found(runs_dir: Path) -> list[RunData]:
    found = []
    for manifest in sorted(runs_dir.glob("*/run.json")):
        try:
            found.append(read(manifest.parent))
        except InputError:
            continue  # what is damaged is named when it is asked for
    return [data for data in found if experiment_of(data) or is_confirmed(data)]


def show_claims(verdicts: list[Verdict], console: Console) -> None:
    """Print a table of them, and how many came out how."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("claim", "verdict", "what the source says", "what was found here"):
        shown.add_column(column, overflow="fold")
    for verdict in verdicts:
        source = f"{verdict.sentence} ({verdict.published})"
        found = verdict.text + (f" [{_where(verdict.data)}]" if verdict.data else "")
        shown.add_row(verdict.id, Text(verdict.kind, STYLES[verdict.kind]), Text(source), Text(inert(found, 900)))
    console.print(shown)
    console.print(", ".join(f"{count} {kind}" for kind, count in _counts(verdicts).items()))


def _counts(verdicts: list[Verdict]) -> dict[str, int]:
    """How many came out how."""
    counts = Counter(verdict.kind for verdict in verdicts)
    return {kind: counts[kind] for kind in STYLES if counts[kind]}


def _where(data: RunData | None) -> str:
    """On what it was found."""
    if data is None:
        return ""
    counts, trained_by = _setting(data)
    images = " and ".join(f"{count:,}" for count in counts.values())
    width = data.run.space.base.width
    return f"{data.run.name}: {data.run.manifest.dataset}, {images} images, width {width}, {machine(trained_by)}"


def _setting(data: RunData) -> tuple[dict[str, int], dict[str, Any]]:
    """How many images it was trained and scored on, and the machine: of the confirmation, where there is one."""
    found = data.confirm or {}
    manifest = data.run.manifest
    return found.get("counts", manifest.counts), found.get("machine", manifest.machine)


def _as_json(verdicts: list[Verdict]) -> str:
    return json.dumps([_row(verdict) for verdict in verdicts], indent=2) + "\n"


def _row(verdict: Verdict) -> dict[str, Any]:
    data = verdict.data
    known = {field.name: getattr(verdict, field.name) for field in fields(verdict) if field.name != "data"}
    known["estimate"] = asdict(verdict.estimate) if verdict.estimate else None
    if data:
        manifest, (counts, trained_by) = data.run.manifest, _setting(data)
        known |= {"run": data.run.name, "scale": manifest.scale, "dataset": manifest.dataset}
        known |= {"fingerprint": manifest.fingerprint, "counts": counts, "width": data.run.space.base.width}
        known |= {"machine": trained_by}
    return known


def claims_table(verdicts: list[Verdict]) -> Element:
    """For a page."""
    rows: list[list[Content]] = [[v.id, v.kind, v.sentence, v.published, v.text, _where(v.data)] for v in verdicts]
    columns = ["claim", "verdict", "what the source says", "published", "found here", "on what"]
    caption = "Claims of the source; intervals hold at 95%, however often one looks."
    return table(caption, columns, rows, text_columns=len(columns))


def _as_markdown(verdicts: list[Verdict]) -> str:
    columns = ("claim", "what the source says", "published", "verdict", "found here", "n", "on what")
    lines = [columns, ["---"] * len(columns)]
    for v in verdicts:
        n = str(v.estimate.n) if v.estimate else ""
        lines.append([v.id, v.sentence, v.published, v.kind, v.text, n, _where(v.data)])
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _as_html(verdicts: list[Verdict]) -> str:
    page = Page("Claims of the source, judged", wide=True)
    page.add(claims_table(verdicts))
    page.add(facts([(kind, str(count)) for kind, count in _counts(verdicts).items()]))
    page.add(tag("p", "Seeds are common to the cells of an experiment.", class_="soft"))
    return page.html()


if __name__ == "__main__":
    run_command(main, Options, prog="python -m tune.claims")
