"""The steering tables in markdown. Needs neither torch nor numpy."""

from collections.abc import Mapping
from typing import Any

from vidcm.evaluation.markdown import grid, method, number


def steering_table(results: Mapping[str, Any]) -> str:
    """Markdown of results of kind "steering": guidance, then negative prompts."""
    protocol, rows = results["protocol"], results["rows"]
    by_role = {role: row["guidance"]["scales"] for role, row in rows.items()}
    scales, lines = list(by_role["student"]), []
    for title, key, factor, digits in (
        ("adherence, %", "adherence", 100, 1),
        ("moved, grey levels", "moved", 1, 2),
        ("cosine with the teacher's movement", "cosine", 1, 2),
    ):
        for role, by_scale in by_role.items():
            values = [by_scale[scale].get(key) for scale in scales]
            if any(value is not None for value in values):
                lines.append([f"{role}: {title}", *(number(v, digits, factor) for v in values)])
    kept = [
        [role, *(number(row["negative"][kind], 0, 100) for kind in ("named", "another"))]
        for role, row in rows.items()
        if "negative" in row
    ]
    head = [f"clips that keep their {protocol['open']}, %", "it is named", "another is named"]
    steps = [
        f"{count} step{'s' * (count > 1)} of the {role}"
        for role, count in protocol["steps"].items()
    ]
    note = (
        f"{', '.join(steps)}; negative prompts at guidance {protocol['negative_scale']:g}, with "
        f"prompts that leave the {protocol['open']} open"
    )
    return (
        "\n\n".join([grid(["guidance", *scales], lines), grid(head, kept), method(results, note)])
        + "\n"
    )
