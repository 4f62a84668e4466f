"""The quality table in markdown. Needs neither torch nor numpy."""

from vidcm.errors import UsageError
from vidcm.evaluation.markdown import grid, method, number


def quality_table(results: dict) -> str:
    """The rows' numbers, adherence by attribute, and the sentence on how they were measured.

    Args:
        results: of kind "quality".

    Raises:
        UsageError: no row is finished.
    """
    rows = {name: row["heldout"] for name, row in results["rows"].items() if "heldout" in row}
    if not rows:
        raise UsageError("these results have no finished row yet")
    chance = next(iter(rows.values()))["adherence"]["chance"]
    tables = [_numbers(rows), _by_attribute(rows), _hand_prompts(results["rows"])]
    note = f"guessing would score {number(chance, 1, 100)} %"
    return "\n\n".join([*filter(None, tables), method(results, note)]) + "\n"


def _numbers(rows: dict[str, dict]) -> str:
    head = ["", "evaluations", "adherence", "PSNR, dB", "SSIM", "Fréchet", "motion", "diversity"]
    lines = []
    for name, row in rows.items():
        score, low, high = (number(row["adherence"][k], 1, 100) for k in ("score", "low", "high"))
        numbers = [
            (row["fidelity"]["psnr"], 1),
            (row["fidelity"]["ssim"], 3),
            (row["frechet"]["distance"], 2),
            (row["motion"]["ratio"], 2),
            (row["diversity"]["ratio"], 2),
            (row["seconds"]["per_clip"], 2),
        ]
        evaluations, cells = number(row["evaluations"], 0), [number(*n) for n in numbers]
        lines.append([name, evaluations, f"{score} ({low}-{high})", *cells])
    return grid([*head, "s/clip"], lines)


def _by_attribute(rows: dict[str, dict]) -> str:
    names = list(dict.fromkeys(a for row in rows.values() for a in row["adherence"]["attributes"]))
    lines = []
    for name, row in rows.items():
        scores = [row["adherence"]["attributes"].get(a, {}).get("score") for a in names]
        lines.append([name, *(number(score, 1, 100) for score in scores)])
    return grid(["adherence, %", *(a.replace("_", " ") for a in names)], lines)


def _hand_prompts(rows: dict[str, dict]) -> str | None:
    found = {name: row["hand_prompts"] for name, row in rows.items() if "hand_prompts" in row}
    head = ["prompts by hand", "adherence, %", "as captions, %", "loss, points"]
    lines = []
    for name, row in found.items():
        values = (row["hand"]["score"], row["template"]["score"], row["loss"])
        lines.append([name, *(number(value, 1, 100) for value in values)])
    return grid(head, lines) if lines else None
