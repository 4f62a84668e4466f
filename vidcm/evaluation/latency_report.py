"""Tables of latency measurements and comparisons of two. Needs neither torch nor numpy."""

import json
from pathlib import Path

from vidcm.errors import UsageError
from vidcm.evaluation.markdown import grid, measured_on
from vidcm.evaluation.results import read_json

KEYS = {"recipe", "recipe_hash", "repeats", "environment", "rows", "ratios"}
SCHEMA = 1  # of the JSON that is written and read here
COMPARED = ("text", "denoise", "decode", "write", "latent_to_pixels", "end_to_end")
RELATIVE, ABSOLUTE = 0.08, 0.005  # a change counts beyond both: share of the older time, seconds


def read_latency(path: Path) -> dict:
    """A file of `vidcm benchmark --output`. Raises UsageError when it holds something else."""
    results = read_json(path, "a file made with --output")
    version = results.get("schema_version") if isinstance(results, dict) else None
    if not isinstance(version, int) or not KEYS <= results.keys():
        raise UsageError(f"{path} holds no benchmark; give a file made with --output")
    if version != SCHEMA:
        raise UsageError(f"{path} has schema version {version}, expected {SCHEMA}: measure again")
    return results


def compare_latency(old: dict, new: dict) -> tuple[str, bool]:
    """Medians of two measurements side by side.

    Returns:
        Markdown, and whether any time is slower beyond both `RELATIVE` and `ABSOLUTE`.

    Raises:
        UsageError: they measured different things, or on different kinds of device.
    """
    recipes = old["recipe"], new["recipe"]
    kinds = [r["device"] for r in recipes]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"got measurements on {kinds[0]} and on {kinds[1]}, expected one kind of device"
        )
    if old["recipe_hash"] != new["recipe_hash"]:
        other = "; ".join(_differences(*recipes))
        raise UsageError(
            f"got measurements of different things ({other}); repeat one like the other"
        )
    lines, slower = [], False
    for name, before in old["rows"].items():
        after = new["rows"][name]
        pairs = {k: (before["seconds"][k], after["seconds"][k]) for k in COMPARED}
        if "cold" in before and "cold" in after:
            pairs["cold start"] = before["cold"]["wall"], after["cold"]["wall"]
        for label, (a, b) in pairs.items():
            change = b["p50"] - a["p50"]
            share = change / a["p50"]
            counts = abs(share) > RELATIVE and abs(change) > ABSOLUTE
            slower |= counts and change > 0
            verdict = ("slower" if change > 0 else "faster") if counts else ""
            stage = label.replace("_", " ")
            lines.append([name, stage, _time(a["p50"]), _time(b["p50"]), f"{share:+.1%}", verdict])
    changes = grid(["row", "median of", "old", "new", "change", ""], lines)
    notes = [f"Changes count beyond {RELATIVE:.0%} and {_time(ABSOLUTE)}."]
    here, there = old["environment"], new["environment"]
    facts = ("cpu", "device", "threads", "torch", "commit", "dirty", "driver", "sha256")
    if other := _differences(*({k: e.get(k) for k in facts} for e in (here, there))):
        notes.append(f"The environments differ: {'; '.join(other)}.")
    hashes = [[row["clips_sha256"] for row in x["rows"].values()] for x in (old, new)]
    notes.append("The clips are " + ("the same." if hashes[0] == hashes[1] else "not the same."))
    return "\n\n".join([changes, " ".join(notes)]), slower


def _differences(a: dict, b: dict) -> list[str]:
    def short(value: object) -> str:
        text = json.dumps(value)
        return text if len(text) <= 40 else text[:37] + "..."

    keys = [k for k in a | b if a.get(k) != b.get(k)]
    return [f"{k}: {short(a.get(k))} and {short(b.get(k))}" for k in keys]


def latency_table(results: dict) -> str:
    """Medians by stage in markdown, and how they were measured."""
    stages = ("text", "denoise", "decode", "write", "end_to_end")
    head = ["", "evaluations", *(s.replace("_", " ") for s in stages)]
    head += ["p95", "x real time", "GFLOP/s", "denoise speed-up"]
    cold = any("cold" in row for row in results["rows"].values())
    lines = []
    for name, row in results["rows"].items():
        ratio = results["ratios"].get(name)
        lines.append(
            [
                name,
                f"{row['evaluations']:g}",
                *(_time(row["seconds"][s]["p50"]) for s in stages),
                _time(row["seconds"]["end_to_end"]["p95"]),
                _three(row["realtime_factor"]),
                _three(row["gflops_per_second"]),
                "{denoise:.1f} ({low:.1f}-{high:.1f})".format(**ratio) if ratio else "-",
                *([_time(row["cold"]["wall"]["p50"])] if cold else []),
            ]
        )
    return grid([*head, *(["cold start"] if cold else [])], lines) + f"\n\n{_method(results)}\n"


def _method(results: dict) -> str:
    recipe, environment = results["recipe"], results["environment"]
    clip = recipe["clip"]
    row = next(iter(results["rows"].values()))
    text = (
        f"Medians of {results['repeats']} turns through all rows after {recipe['warmup']} to warm "
        f"up; {recipe['batch']} x {clip['num_frames']} frames of {clip['width']}x{clip['height']} "
        f"a call, {row['tokens']} tokens, {row['dtype']}, attention "
        f"{' and '.join(row['attention'])}. End to end is prompt to written mp4, models loaded. "
    )
    for ratio in list(results["ratios"].values())[:1]:
        text += f"The speed-up is over {ratio['of']}, with its range within single turns. "
    if "cold" in row:
        times = len(row["cold"]["wall"]["samples"])
        text += f"A cold start is a new process to its mp4, the median of {times}. "
    return text + (
        f"Model {Path(environment['checkpoint']).name}, measured with {measured_on(environment)}, "
        f"load {environment['load_average'][0][0]:.1f} on {environment['cores']} cores at the "
        "start."
    )


def _time(seconds: float) -> str:
    return f"{_three(seconds)} s" if seconds >= 0.9995 else f"{_three(seconds * 1000)} ms"


def _three(value: float) -> str:
    """Three significant digits, or all digits before the point."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"
