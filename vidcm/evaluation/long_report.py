"""Tables of long clips and long edits in markdown. Needs neither torch nor numpy."""

from collections.abc import Mapping
from typing import Any

from vidcm.evaluation.markdown import grid, method, number


def long_table(results: Mapping[str, Any]) -> str:
    """Markdown of results of kind "long": constant prompts, then prompts that change."""
    protocol, rows = results["protocol"], list(results["rows"].values())
    everything = {"all, first, %": ("first", "score"), "all, last, %": ("last", "score")}
    action = {"action before, %": ("first", "action"), "action after, %": ("last", "action")}
    constant, changing = ([r for r in rows if r["then"] is then] for then in (False, True))
    parts = [_long_grid(constant, everything)]
    if changing:
        frame = 1 + changing[0]["windows"] // 2 * (protocol["frames"] - 1)
        parts += [
            f"Another action from frame {frame} on:",
            _long_grid(changing, action | everything),
        ]
    note = f"for drift, prompts that leave {' and '.join(protocol['open'])} open"
    return "\n\n".join([*parts, method(results, note)]) + "\n"


def _long_grid(rows: list[dict], shares: dict[str, tuple[str, str]]) -> str:
    lines = []
    for row in rows:
        steps = row["num_inference_steps"]
        name = f"{row['method']}, {steps} step{'s' * (steps > 1)}" if steps else row["method"]
        lines.append(
            [
                name,
                str(row["frames"]),
                *(number(row[part][key], 1, 100) for part, key in shares.values()),
                *(number(row[key], 2) for key in ("drift", "seam", "motion")),
                number(row["seconds_per_frame"] if steps else None, 1, 1000),
            ]
        )
    return grid(["", "frames", *shares, "drift", "seam", "motion", "ms a frame"], lines)


def long_edit_table(results: Mapping[str, Any]) -> str:
    """Markdown of results of kind "long-edits"."""
    protocol, methods = results["protocol"], ("windows", "pieces")
    head = ["", *(f"PSNR, {m}" for m in methods), *(f"step, {m}" for m in methods)]
    lines = [
        [
            name,
            *(number(row[m]["psnr"], 1) for m in methods),
            *(number(row[m]["step"], 2) for m in methods),
        ]
        for name, row in results["rows"].items()
    ]
    piece, steps = protocol["piece"], protocol["steps"]
    note = (
        f"{steps} step{'s' * (steps > 1)}, clips of {protocol['frames']} frames, pieces of {piece}. "
        f"True clips have {piece} frames, so all but the first repeat every {piece - 1}, in a "
        f"shorter cycle every {piece - 2}"
    )
    return f"{grid(head, lines)}\n\n{method(results, note)}\n"
