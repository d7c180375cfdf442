"""`python -m tune.claims [RUN...]`: which claims of the source the runs bear out, as one table."""

import json
from dataclasses import asdict, dataclass
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
from search_spaces.experiment import SCALES, Claim, Finding
from tune.commands import python
from tune.lines import inert
from tune.page import Content, Page, facts, table, tag
from tune.report_data import RunData, read
from tune.report_words import machine
from tune.results import RunResults, experiment_of, experiments

NOT_RUN = "not run"
STYLES = {"reproduced": "green", "contradicted": "red", "undecided": "yellow", NOT_RUN: "dim", "not testable": "dim"}


@dataclass(frozen=True)
class Options:
    """Hold the claims of all experiments against the runs that tested them."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """run folders of experiments (default: all below --runs-dir)"""
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
    """A claim, and what a run shows of it."""

    claim: Claim
    experiment: str
    finding: Finding | None
    """None: no run has tested it"""
    data: RunData | None

    @property
    def kind(self) -> str:
        return self.finding.kind if self.finding else NOT_RUN

    @property
    def said(self) -> str:
        if self.finding and self.data:
            return self.finding.text
        return f"experiment {self.experiment}"


def main(options: Options) -> None:
    runs = [_read(Path(run)) for run in options.runs] or _found(options.runs_dir)
    verdicts = collect(runs)
    console = Console(highlight=False)
    show_claims(verdicts, console)
    console.print(f"run one: {python()} -m tune.search --space EXPERIMENT --scale small --data PATH")
    for path, form in [(options.json, _as_json), (options.html, _as_html), (options.markdown, _as_markdown)]:
        if path is not None:
            try:
                path.write_text(form(verdicts), encoding="utf-8")
            except OSError as error:
                raise InputError(f"{path} can't be written: {error.strerror}") from error
    if options.figures:
        from tune.figures import experiment_pictures, save  # plotly takes a while to load

        judged = {verdict.experiment: verdict.data for verdict in verdicts if verdict.data}  # the largest run of each
        pictures = [
            (picture.name.replace("experiment", name), picture)
            for name, data in judged.items()
            for picture in experiment_pictures(data)
        ]
        console.print(f"{options.figures}: {save(pictures, options.figures)} figures, each as SVG and PNG")


def collect(runs: list[RunData]) -> list[Verdict]:
    """Every claim with the run that tells most of it: of the largest scale, then the one with the most trials. Those of
    the series, C01 to C40, come first."""
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
            verdicts.append(Verdict(claim, name, finding, data))
    return sorted(verdicts, key=lambda verdict: (not verdict.claim.id.startswith("C"), verdict.claim.id))


def _read(path: Path) -> RunData:
    data = read(path)
    if experiment_of(data) is None:
        raise InputError(f"{path} is no run of an experiment as the project has it: tune.spaces lists them")
    return data


def _found(runs_dir: Path) -> list[RunData]:
    found = []
    for manifest in sorted(runs_dir.glob("*/run.json")):
        try:
            found.append(read(manifest.parent))
        except InputError:
            continue  # what is damaged is named when it is asked for
    return [data for data in found if experiment_of(data)]


def show_claims(verdicts: list[Verdict], console: Console) -> None:
    """Print a table of them, and how many came out how."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("claim", "verdict", "what the source says", "what was found here"):
        shown.add_column(column, overflow="fold")
    for verdict in verdicts:
        claim, kind = verdict.claim, verdict.kind
        source = f"{claim.sentence} ({claim.published})"
        found = verdict.said + (f" [{_where(verdict.data)}]" if verdict.data else "")
        shown.add_row(claim.id, Text(kind, STYLES[kind]), Text(source), Text(inert(found, 600)))
    console.print(shown)
    counts = {kind: sum(verdict.kind == kind for verdict in verdicts) for kind in STYLES}
    console.print(", ".join(f"{count} {kind}" for kind, count in counts.items() if count))


def _where(data: RunData | None) -> str:
    """On what it was found."""
    if data is None:
        return ""
    manifest, base = data.run.manifest, data.run.space.base
    images = f"{manifest.counts['train']:,} and {manifest.counts['val']:,} images"
    return f"{data.run.name}: {manifest.dataset}, {images}, width {base.width}, {machine(manifest.machine)}"


def _as_json(verdicts: list[Verdict]) -> str:
    return json.dumps([_row(verdict) for verdict in verdicts], indent=2) + "\n"


def _row(verdict: Verdict) -> dict[str, Any]:
    claim, data = verdict.claim, verdict.data
    known: dict[str, Any] = {"id": claim.id, "sentence": claim.sentence, "published": claim.published}
    known |= {"experiment": verdict.experiment, "kind": verdict.kind, "text": verdict.said, "estimate": None}
    if verdict.finding and verdict.finding.estimate:
        known["estimate"] = asdict(verdict.finding.estimate)
    if data:
        manifest = data.run.manifest
        known |= {"run": data.run.name, "scale": manifest.scale, "dataset": manifest.dataset}
        known |= {"fingerprint": manifest.fingerprint, "counts": manifest.counts, "width": data.run.space.base.width}
        known |= {"machine": manifest.machine}
    return known


def claims_table(verdicts: list[Verdict]) -> Element:
    """For a page."""
    rows: list[list[Content]] = [
        [v.claim.id, v.kind, v.claim.sentence, v.claim.published, v.said, _where(v.data)] for v in verdicts
    ]
    columns = ["claim", "verdict", "what the source says", "published", "found here", "on what"]
    caption = "Claims of the source; intervals hold at 95%, however often one looks."
    return table(caption, columns, rows, text_columns=len(columns))


def _as_markdown(verdicts: list[Verdict]) -> str:
    columns = ("claim", "what the source says", "published", "verdict", "found here", "n", "on what")
    lines = [columns, ["---"] * len(columns)]
    for v in verdicts:
        n = str(v.finding.estimate.n) if v.finding and v.finding.estimate else ""
        lines.append([v.claim.id, v.claim.sentence, v.claim.published, v.kind, v.said, n, _where(v.data)])
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _as_html(verdicts: list[Verdict]) -> str:
    page = Page("Claims of the source, judged", wide=True)
    page.add(claims_table(verdicts))
    counts = {kind: sum(v.kind == kind for v in verdicts) for kind in STYLES}
    page.add(facts([(kind, str(count)) for kind, count in counts.items() if count]))
    page.add(tag("p", "Seeds are common to the cells of an experiment.", class_="soft"))
    return page.html()


if __name__ == "__main__":
    run_command(main, Options, prog="python -m tune.claims")
