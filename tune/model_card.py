"""The model card of an exported net: Hugging Face's front matter in YAML, then Markdown for people.

Names come from data and runs of others. In the front matter they are quoted as JSON strings, which YAML reads as
they are; in the text they stand in code, where nothing has a meaning.
"""

import json
import re
from typing import Any

from model.command import printable
from model.weights import Record
from tune.lines import duration, percent
from tune.run import Run

CARD = """\
---
license: "mit"
library_name: "resnet9-tune"
pipeline_tag: "image-classification"
tags: ["image-classification", "resnet", "safetensors"]
datasets: [{quoted_dataset}]
metrics: ["accuracy"]
model-index:
  - name: {quoted_name}
    results:
      - task: {{type: "image-classification", name: "Image Classification"}}
        dataset: {{type: {quoted_dataset}, name: {quoted_dataset}, split: "test"}}
        metrics:
{metrics}
---

# {kind} for {dataset}

An image classifier for {classes}, and images of 32x32 pixels. Its config is trial {trial} of the hyperparameter search
{run}: {config}.

## Accuracy

| | test accuracy | n |
|---|---|---|
{scores}

The file is the net of the first fresh seed, not of the best one: it was not chosen for its accuracy. {search_score}

{verdict}

## Data

Trained on {trained}training images of {dataset}, fingerprint {fingerprint}, scored on {scored}test images. The search
never saw the test set: it scored on {val:,} training images that it held out.

## Cost of one training

{cost}. Machine: {machine}. Versions: {versions}.

## Use

With the package resnet9-tune:

```sh
python -m model.predict {name}.safetensors picture.png
```

```python
from pathlib import Path
from model.predict import probabilities, read_images
from model.weights import load_weights
net, record = load_weights(Path("{name}.safetensors"))
print(dict(zip(record.classes, probabilities(net, record, read_images([Path("picture.png")]))[0].tolist())))
```

The header of the file holds config, class names, and the mean and SD by which images are normalised. The JSON file
beside this one holds the config with its whole provenance: run, space {space}, trial {trial}, params {params}.

## Limits

- It knows its classes only, and names one of them for any picture. Its shares are softmax outputs, not calibrated.
- {candidates} configs were compared on this test set, which flatters the mean of the first a little.
- Accuracies are of these test images, times and memory of this machine.

## Licence

MIT, as the code that made it. The images it was trained on have terms of their own.
"""


def model_card(name: str, run: Run, confirm: dict[str, Any], row: dict[str, Any], record: Record) -> str:
    """The card of NAME.safetensors.

    Args:
        confirm: all of confirm.json.
        row: of the trial in it; the file is the net of its first fresh seed.
        record: of the file.
    """
    counts, verdict = confirm.get("counts") or {}, (confirm.get("verdict") or {}).get("text")
    classes = ", ".join(map(_code, record.classes[:20])) + (", ..." if len(record.classes) > 20 else "")
    val_acc = row.get("search_val_acc")
    return CARD.format(
        name=name,
        quoted_name=_quoted(f"{run.name}-{name}"),
        quoted_dataset=_quoted(record.dataset),
        metrics="\n".join(_metrics(row)),
        kind=_kind(record.config.net),
        dataset=_code(record.dataset),
        classes=f"{len(record.classes)} classes ({classes})",
        trial=int(row["trial"]),
        run=_code(run.name),
        config=_code(record.config.describe()),
        scores="\n".join(_scores(confirm, row)),
        search_score=f"The search's own score, {percent(val_acc)}, is of other images and one seed, and partly luck."
        if val_acc is not None
        else "",
        verdict=f"Verdict of the confirmation: {_plain(verdict)}" if verdict else "",
        trained=f"{record.config.trained_images(counts['train']):,} " if "train" in counts else "",
        scored=f"{counts['test']:,} " if "test" in counts else "",
        fingerprint=_code(record.fingerprint),
        val=run.manifest.counts["val"],
        cost=", ".join(_cost(row)),
        machine=_code(_machine(confirm)),
        versions=_code(", ".join(f"{what} {version}" for what, version in (confirm.get("versions") or {}).items())),
        space=_code(run.manifest.space_name),
        params=_code(", ".join(f"{param}={value}" for param, value in (row.get("params") or {}).items())),
        candidates=len(confirm["rows"]),
    )


def _kind(net: str) -> str:
    if net.startswith("resnet"):
        return net.replace("resnet", "ResNet-")
    return "The DAWN net" if net == "dawn" else f"The backbone {_code(net)}"


def _metrics(row: dict[str, Any]) -> list[str]:
    """Of the front matter: what this file scores, and what its config does on average."""
    found = {f"mean of n = {row['n']} fresh seeds of the config": row["mean_acc"]}
    if row.get("accs"):
        found = {"this file": row["accs"][0], **found}
    return [f'          - {{type: "accuracy", value: {acc:.6f}, name: "test, {what}"}}' for what, acc in found.items()]


def _scores(confirm: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """Rows of the table."""
    notes = [f"SD {100 * row['sd_acc']:.2f}"] if row.get("sd_acc") is not None else []
    if row.get("ci95_acc"):
        low, high = row["ci95_acc"]
        notes.append(f"95% interval {percent(low)} to {percent(high)}")
    spread = f" ({', '.join(notes)})" if notes else ""
    lines = [f"| the config: mean over fresh seeds | {percent(row['mean_acc'])}{spread} | {row['n']} |"]
    if row.get("accs"):
        seed = f" (seed {row['seeds'][0]})" if row.get("seeds") else ""
        lines.insert(0, f"| this file{seed} | {percent(row['accs'][0])} | 1 |")
    target = row.get("target")
    if target and confirm.get("target_acc"):
        low, high = target.get("ci95") or (0.0, 1.0)
        share = f"{target['k']} of {target['n']} (95% interval of the share {percent(low)} to {percent(high)})"
        lines.append(f"| trainings that reach {100 * confirm['target_acc']:g}% | {share} | {target['n']} |")
    return lines


def _cost(row: dict[str, Any]) -> list[str]:
    """Of one training: what is on record of it."""
    facts = [f"{row['epochs']} epochs"] if row.get("epochs") else []
    if row.get("flops"):
        facts.append(f"{row['flops']:.3g} floating-point operations")
    if row.get("median_train_s") is not None:
        worst = f", worst {duration(row['worst_train_s'])}" if row.get("worst_train_s") is not None else ""
        facts.append(f"{duration(row['median_train_s'])} alone on the machine (median, n = {row['n']}{worst})")
    if row.get("peak_mib"):
        facts.append(f"{row['peak_mib']:.0f} MiB at the peak")
    return facts


def _machine(confirm: dict[str, Any]) -> str:
    machine = confirm.get("machine") or {}
    gpus = machine.get("gpus") or []
    return f"{len(gpus)} x {gpus[0]}" if gpus else f"{confirm.get('threads')} threads of {machine.get('cpu')}"


def _quoted(text: str) -> str:
    return json.dumps(printable(text), ensure_ascii=False)


def _code(text: str) -> str:
    """`text` as code in Markdown: between more backticks than it has in a row."""
    line = printable(text)
    fence = "`" * (1 + max((len(ticks) for ticks in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line or not line.strip() else f"{fence}{line}{fence}"


def _plain(text: str) -> str:
    """A sentence in Markdown, with nothing in it that means something there."""
    return re.sub(r"([\\`*_\[\]<>#|~&:@])", r"\\\1", printable(" ".join(text.split())))
