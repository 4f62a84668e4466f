"""Names of a network's tensors in the layout that its authors published.

ComfyUI and most LoRA files use it; diffusers renames the tensors.
"""

import re
from collections.abc import Iterable

from vidcm.errors import UsageError
from vidcm.families.base import Family

# Patterns of diffusers' names and what they become, one after the other.
WAN = (
    (r"^(vace_blocks\.\d+)\.proj_in\.", r"\1.before_proj."),
    (r"^(vace_blocks\.\d+)\.proj_out\.", r"\1.after_proj."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
    (r"\.scale_shift_table$", ".modulation"),
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^condition_embedder\.image_embedder\.norm1\.", "img_emb.proj.0."),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj\.", "img_emb.proj.1."),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2\.", "img_emb.proj.3."),
    (r"^condition_embedder\.image_embedder\.norm2\.", "img_emb.proj.4."),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.add_([kv])_proj\.", r".\1_img."),
    (r"\.norm_added_k\.", ".norm_k_img."),
    (r"^((?:vace_)?blocks\.\d+)\.norm2\.", r"\1.norm_three."),  # diffusers counts them otherwise
    (r"^((?:vace_)?blocks\.\d+)\.norm3\.", r"\1.norm2."),
    (r"\.norm_three\.", ".norm3."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
)
LTX = (
    (r"^proj_in\.", "patchify_proj."),
    (r"^time_embed\.", "adaln_single."),
    (r"\.norm_([qk])\.", r".\1_norm."),
)
RULES = {"wan": WAN, "wan_vace": WAN, "ltx": LTX}


def original_names(family: Family, names: Iterable[str]) -> dict[str, str]:
    """The published name of each of diffusers' names.

    Raises:
        UsageError: vidcm has no map for the family.
    """
    if family.name not in RULES:
        raise UsageError(
            f"vidcm has no map from diffusers' names of {family.name} to those of its authors "
            f"(only for {', '.join(RULES)})"
        )
    return {name: _renamed(name, RULES[family.name]) for name in names}


def _renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
