"""confirm.json, where tune.confirm says what it has found, as the other commands read it."""

from pathlib import Path
from typing import Any

from model.files import read_json, typed_dict

FILE = Path("confirm", "confirm.json")
"""in the run folder"""
CONTENT = {
    **{"rows": list[dict[str, Any]], "verdict": dict[str, Any] | None, "counts": dict[str, int]},
    **{"machine": dict[str, Any], "versions": dict[str, str], "threads": int},
    **{"target_acc": float | None, "practical_acc": float, "chance_acc": float},
}
ROW = {
    **{"trial": int, "n": int, "mean_acc": float, "sd_acc": float | None, "ci95_acc": list[float] | None},
    **{"accs": list[float], "seeds": list[int], "target": dict[str, Any] | None, "to_base": dict[str, Any] | None},
    **{"median_train_s": float | None, "worst_train_s": float | None, "flops": float | None, "peak_mib": float | None},
    **{"epochs": int, "params": dict[str, Any], "search_val_acc": float | None},
}
PARTS: dict[str, dict[str, Any]] = {
    "verdict": {"kind": str, "text": str, "trial": int, "recommended": int | None},
    "machine": {"cpu": str | None, "cores": int | None, "gpus": list[str]},
    "to_base": {"n": int, "mean": float, "ci95": list[float] | None, "kind": str},
    "target": {"k": int, "n": int, "ci95": list[float] | None},
}
"""of the content or of a row; a part has all of it"""
NEEDED = ("trial", "n", "mean_acc")
"""of a row; an earlier version may not have written the others"""


def read_confirm(folder: Path) -> dict[str, Any] | None:
    """What confirm.json in a run folder holds, with the types above where it is there; None where there is no file.

    Raises:
        OSError: it can't be read.
        ValueError: it is damaged.
    """
    if not (folder / FILE).is_file():
        return None
    content = typed_dict(CONTENT, read_json(folder / FILE), needed=("rows",))
    rows = [typed_dict(ROW, row, NEEDED) for row in content["rows"]]
    for whole in (content, *rows):
        parts = [typed_dict(kinds, whole[name], kinds) for name, kinds in PARTS.items() if whole.get(name) is not None]
        for name, interval in [(name, part.get(name)) for part in (whole, *parts) for name in ("ci95", "ci95_acc")]:
            if interval is not None and len(interval) != 2:
                raise ValueError(f"{name} is no interval")
    return content | {"rows": rows}
