"""A comparison's numbers as markdown and as a plot of quality against evaluations."""

import json
from pathlib import Path

from vidcm.errors import UsageError, VidcmError
from vidcm.markdown import grid


def read_comparison(path: Path) -> dict:
    """Raises UsageError when the file holds no results of `vidcm compare`."""
    try:
        results = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    if not isinstance(results, dict) or not {"budget", "count", "rows"} <= results.keys():
        raise UsageError(f"{path} holds no comparison; make one with vidcm compare --config")
    return results


def table(results: dict) -> str:
    """One line per row and number of evaluations, and how they were made."""
    head = [
        "method", "evaluations", "adherence, %", "PSNR, dB", "Fréchet", "motion", "diversity",
        "s/iteration", "peak MB",
    ]  # fmt: skip
    lines = []
    for name, row in results["rows"].items():
        made = row["training"]
        cost = ["-", "-"]
        if made:
            cost = [f"{made['seconds_per_step']:.2f}", f"{made['peak_mb']:.0f}"]
        for count, line in row["evaluations"].items():
            lines.append(
                [
                    name,
                    count,
                    f"{100 * line['adherence']['score']:.1f}",
                    f"{line['fidelity']['psnr']:.1f}",
                    f"{line['frechet']['distance']:.2f}",
                    _number(line["motion"]["ratio"]),
                    _number(line["diversity"]["ratio"]),
                    *cost,
                ]
            )
            cost = ["", ""]
    made_on = results["environment"]
    method = (
        f"{results['budget']:g} s of training a row from the same teacher, {results['count']} "
        f"held-out combinations, guidance {results['guidance']:g}; {made_on['cpu']}, "
        f"{made_on['threads']} threads, torch {made_on['torch']}. An evaluation of the teacher is a "
        "guided one: two of the network's."
    )
    return grid(head, lines) + "\n\n" + method + "\n"


def plot(results: dict, path: Path) -> None:
    """Adherence and Fréchet distance against evaluations, a line per row."""
    try:
        import matplotlib
    except ImportError:
        raise VidcmError("--plot needs matplotlib; pip install 'vidcm[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    shown = (("adherence, %", "adherence", "score", 100), ("Fréchet", "frechet", "distance", 1))
    for axis, (label, metric, key, scale) in zip(axes, shown, strict=True):
        for name, row in results["rows"].items():
            counts = [int(n) for n in row["evaluations"]]
            values = [scale * line[metric][key] for line in row["evaluations"].values()]
            dashed = "--" if row["training"] is None else "-"
            axis.plot(counts, values, dashed, marker="o", markersize=4, label=name)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("evaluations")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
