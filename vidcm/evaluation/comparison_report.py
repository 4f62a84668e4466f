"""A comparison's numbers as markdown and as a plot of quality against evaluations."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from vidcm.errors import UsageError, VidcmError
from vidcm.evaluation.markdown import grid

VERSION = 2
# What is shown: heading, where a line has it, scale, digits.
METRICS = (
    ("adherence, %", ("adherence", "score"), 100, 1),
    ("PSNR, dB", ("fidelity", "psnr"), 1, 1),
    ("SSIM", ("fidelity", "ssim"), 1, 3),
    ("Fréchet", ("frechet", "distance"), 1, 2),
    ("motion", ("motion", "ratio"), 1, 2),
    ("diversity", ("diversity", "ratio"), 1, 2),
)
COSTS = ("iterations x clips", "s/iteration", "peak MB")


def read_comparison(path: Path) -> dict:
    """Raises UsageError when the file holds no results of `vidcm compare`."""
    try:
        results = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    if not isinstance(results, dict) or not {"budget", "count", "rows"} <= results.keys():
        raise UsageError(f"{path} holds no comparison; make one with vidcm compare --config")
    if results.get("version") != VERSION:
        raise UsageError(
            f"{path} is of version {results.get('version')!r}, not {VERSION}; compare anew"
        )
    return results


def table(results: dict) -> str:
    """One line per method and number of evaluations, a mean and a deviation where it was trained
    with several seeds, and how they were made. What failed is said below."""
    head = ["method", "evaluations", "guidance", *(title for title, *_ in METRICS), *COSTS]
    lines = []
    for name, rows in _methods(results).items():
        costs = _costs([row["training"] for row in rows if row["training"]])
        for count in rows[0]["evaluations"]:
            found = [row["evaluations"][count] for row in rows if count in row["evaluations"]]
            shown = [_shown(_values(found, at, scale), digits) for _, at, scale, digits in METRICS]
            lines.append([name, count, f"{rows[0]['guidance']:g}", *shown, *costs])
            costs = ["" for _ in COSTS]
    failed = [
        f"- {key}: {row['failed']}" for key, row in results["rows"].items() if "failed" in row
    ]
    said = ["Failed:\n\n" + "\n".join(failed)] if failed else []
    return "\n\n".join([grid(head, lines), *said, _method(results)]) + "\n"


def _methods(results: dict) -> dict[str, list[dict]]:
    """The rows that did not fail by their method's name, one for each seed."""
    methods: dict[str, list[dict]] = {}
    for row in results["rows"].values():
        if "failed" not in row:
            methods.setdefault(row["row"], []).append(row)
    return methods


def _values(lines: Sequence[dict], at: tuple[str, str], scale: float) -> list[float]:
    found = [line[at[0]][at[1]] for line in lines]
    return [scale * value for value in found if value is not None]


def _costs(made: Sequence[dict]) -> list[str]:
    if not made:
        return ["-" for _ in COSTS]
    steps = statistics.mean(m["steps"] for m in made)
    peaks = [m["peak_mb"] for m in made if m["peak_mb"] is not None]
    return [
        f"{steps:.0f} x {made[0]['batch_size']}",
        _shown([m["seconds_per_step"] for m in made], 2),
        _shown(peaks, 0),
    ]


def _shown(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _method(results: dict) -> str:
    made_on = results["environment"]
    where = made_on["cpu"] if made_on["device"] == "cpu" else made_on["device"]
    seeds = any(len(rows) > 1 for rows in _methods(results).values())
    return (
        f"{results['budget']:g} s of training a row from the same teacher, {results['count']} "
        f"held-out combinations; {where}, {made_on['threads']} threads, torch {made_on['torch']}. "
        "An evaluation of the teacher is a guided one: two of the network's."
        + (" After ±: the deviation over seeds of the training." if seeds else "")
    )


def plot(results: dict, path: Path) -> None:
    """Every metric against evaluations, a line per method, the teacher's dashed."""
    try:
        import matplotlib
    except ImportError:
        raise VidcmError("--plot needs matplotlib; pip install -e '.[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(14, 7), layout="constrained")
    colors = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for axis, (label, at, scale, _) in zip(axes.flat, METRICS, strict=True):
        for place, (name, rows) in enumerate(_methods(results).items()):
            points = []
            for count in rows[0]["evaluations"]:
                lines = [row["evaluations"][count] for row in rows if count in row["evaluations"]]
                if values := _values(lines, at, scale):
                    points.append((int(count), statistics.mean(values)))
            dashed = "--" if rows[0]["training"] is None else "-"
            counts, means = [n for n, _ in points], [mean for _, mean in points]
            style = {"color": colors[place % 20], "marker": "o", "markersize": 4}
            axis.plot(counts, means, dashed, label=name, **style)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("evaluations")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    handles, names = axes.flat[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
