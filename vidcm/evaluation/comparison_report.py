"""A comparison's numbers as markdown and as a plot of quality against evaluations."""

import importlib.util
import statistics
from collections.abc import Sequence
from pathlib import Path

from vidcm.errors import VidcmError
from vidcm.evaluation.markdown import grid, method

VERSION = 2
# Of each column: heading, keys in a line, factor, digits.
METRICS = (
    ("adherence, %", ("adherence", "score"), 100, 1),
    ("PSNR, dB", ("fidelity", "psnr"), 1, 1),
    ("SSIM", ("fidelity", "ssim"), 1, 3),
    ("Fréchet", ("frechet", "distance"), 1, 2),
    ("motion", ("motion", "ratio"), 1, 2),
    ("diversity", ("diversity", "ratio"), 1, 2),
)
COSTS = ("iterations x clips", "s/iteration", "peak MB")


def comparison_table(results: dict) -> str:
    """One line per method and number of evaluations, and how they were measured.

    Methods trained with several seeds have a mean and a deviation. Rows that failed are listed
    below with their reasons.
    """
    head = ["method", "evaluations", "guidance", *(title for title, *_ in METRICS), *COSTS]
    lines, several = [], False
    for name, rows in _methods(results).items():
        several |= len(rows) > 1
        costs = _costs([row["training"] for row in rows if row["training"]])
        for count in rows[0]["evaluations"]:
            found = [row["evaluations"][count] for row in rows if count in row["evaluations"]]
            cells = [
                _mean_cell(_values(found, at, factor), digits) for _, at, factor, digits in METRICS
            ]
            lines.append([name, count, f"{rows[0]['guidance']:g}", *cells, *costs])
            costs = ["" for _ in COSTS]
    failed = [
        f"- {key}: {row['failed']}" for key, row in results["rows"].items() if "failed" in row
    ]
    note = (
        f"{results['protocol']['budget']:g} s of training a row from the same teacher, whose "
        "evaluations are guided ones, two of the network's"
        + ("; after ±, the deviation over training seeds" if several else "")
    )
    failures = ["Failed:\n\n" + "\n".join(failed)] if failed else []
    return "\n\n".join([grid(head, lines), *failures, method(results, note)]) + "\n"


def _methods(results: dict) -> dict[str, list[dict]]:
    """Rows that did not fail by the name of their method, one for each seed."""
    methods: dict[str, list[dict]] = {}
    for row in results["rows"].values():
        if "failed" not in row:
            methods.setdefault(row["row"], []).append(row)
    return methods


def _values(lines: Sequence[dict], at: tuple[str, str], factor: float) -> list[float]:
    found = [line[at[0]][at[1]] for line in lines]
    return [factor * value for value in found if value is not None]


def _costs(trainings: Sequence[dict]) -> list[str]:
    if not trainings:
        return ["-" for _ in COSTS]
    steps = statistics.mean(t["steps"] for t in trainings)
    peaks = [t["peak_mb"] for t in trainings if t["peak_mb"] is not None]
    return [
        f"{steps:.0f} x {trainings[0]['batch_size']}",
        _mean_cell([t["seconds_per_step"] for t in trainings], 2),
        _mean_cell(peaks, 0),
    ]


def _mean_cell(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def check_matplotlib() -> None:
    """Raises VidcmError when matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise VidcmError("--plot needs matplotlib; pip install -e '.[plot]'")


def plot_comparison(results: dict, path: Path) -> None:
    """Every metric against evaluations, a line per method, the teacher's dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(14, 7), layout="constrained")
    colors = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for axis, (label, at, factor, _) in zip(axes.flat, METRICS, strict=True):
        for place, (name, rows) in enumerate(_methods(results).items()):
            points = []
            for count in rows[0]["evaluations"]:
                lines = [row["evaluations"][count] for row in rows if count in row["evaluations"]]
                if values := _values(lines, at, factor):
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
