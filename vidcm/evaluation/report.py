"""Results read back, and as markdown. Needs neither torch nor numpy."""

import json
from pathlib import Path

from vidcm.errors import UsageError
from vidcm.evaluation.markdown import commit_of, grid


def read_results(path: Path) -> dict:
    """The results of `vidcm evaluate`. Raises UsageError when the file does not hold any."""
    try:
        results = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there are no results at {path}; make them with --output") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}); give a file made with --output") from None
    if not isinstance(results, dict) or not {"protocol", "model", "rows"} <= results.keys():
        raise UsageError(f"{path} holds no results; give a file made with --output")
    return results


def table(results: dict) -> str:
    """Markdown: the rows' numbers, then adherence by attribute, then how they were measured."""
    rows = {name: row["heldout"] for name, row in results["rows"].items() if "heldout" in row}
    if not rows:
        raise UsageError("these results have no finished row yet")
    hands = {n: r["hand_prompts"] for n, r in results["rows"].items() if "hand_prompts" in r}
    head = [
        "",
        "evaluations",
        "adherence",
        "PSNR, dB",
        "SSIM",
        "Fréchet",
        "motion",
        "diversity",
        "s/clip",
    ]
    lines = []
    for name, row in rows.items():
        fits, f = row["adherence"], row["fidelity"]
        made = row["evaluations"]
        lines.append(
            [
                name,
                "-" if made is None else f"{made:g}",
                f"{_percent(fits['score'])} ({_percent(fits['low'])}-{_percent(fits['high'])})",
                f"{f['psnr']:.1f}",
                f"{f['ssim']:.3f}",
                f"{row['frechet']['distance']:.2f}",
                _ratio(row["motion"]["ratio"]),
                _ratio(row["diversity"]["ratio"]),
                f"{row['seconds']['per_clip']:.2f}",
            ]
        )
    text = [grid(head, lines)]
    names = list(dict.fromkeys(a for row in rows.values() for a in row["adherence"]["attributes"]))
    by_attribute = [
        [name, *(_percent(row["adherence"]["attributes"].get(a, {}).get("score")) for a in names)]
        for name, row in rows.items()
    ]
    text.append(grid(["adherence, %", *(a.replace("_", " ") for a in names)], by_attribute))
    if hands:
        lines = [
            [
                name,
                _percent(h["hand"]["score"]),
                _percent(h["template"]["score"]),
                f"{100 * h['loss']:.1f}",
            ]
            for name, h in hands.items()
        ]
        text.append(
            grid(["prompts by hand", "adherence, %", "as captions, %", "loss, points"], lines)
        )
    return "\n\n".join([*text, _method(results)]) + "\n"


def _method(results: dict) -> str:
    protocol = results["protocol"]
    first = next(row["heldout"] for row in results["rows"].values() if "heldout" in row)
    made_on = first["environment"]
    commit = commit_of(made_on)
    return (
        f"{protocol['count']} held-out combinations, seed {protocol['seed']}, full captions; "
        f"guessing would score {_percent(first['adherence']['chance'])} %. Model "
        f"{results['model']['name']}, commit {commit}; {made_on['cpu']}, "
        f"{made_on['threads']} threads, torch {made_on['torch']}."
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
