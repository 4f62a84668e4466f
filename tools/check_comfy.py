"""Compare an export of `vidcm export --to comfy` or `--to lora` with what a real ComfyUI computes.

`python tools/check_comfy.py --comfyui DIR --export DIR`, where DIR is a ComfyUI whose requirements
are installed. It runs on the CPU without a server. Without --comfyui it says so and does nothing.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4  # of the largest number


def main() -> int:
    parser = argparse.ArgumentParser(description=f"{__doc__}".partition("\n")[0])
    parser.add_argument("--comfyui", type=Path, help="folder of a ComfyUI")
    parser.add_argument("--export", type=Path, required=True, help="folder of the export")
    args = parser.parse_args()
    if args.comfyui is None:
        print("skipped: give --comfyui, the folder of a ComfyUI, to compare with it")
        return 0
    if not (args.comfyui / "comfy" / "sd.py").is_file():
        print(f"error: {args.comfyui} is no ComfyUI (no comfy/sd.py)", file=sys.stderr)
        return 2
    from vidcm.errors import VidcmError
    from vidcm.exports import reference as references
    from vidcm.exports.base import read_manifest
    from vidcm.families.base import library_class

    try:
        manifest = read_manifest(args.export)
        reference = references.load(args.export)
        checks = {"comfy": check_file, "lora": check_lora}
        if manifest["target"] not in checks:
            print(f"error: ComfyUI reads no export to {manifest['target']}", file=sys.stderr)
            return 2
        others = [name for name in reference if name.startswith("control.")]
        if manifest["family"] != "wan" or others:
            print(
                f"skipped: {manifest['family']} that reads {'more than ' if others else ''}text is "
                "compared with diffusers' reader alone (vidcm export --verify)"
            )
            return 0
        library_class("WanPipeline")  # before ComfyUI's modules, which have common names
        sys.path.insert(0, str(args.comfyui.resolve()))
        import comfy.cli_args  # pyright: ignore[reportMissingImports]

        comfy.cli_args.args.cpu = True
        found = checks[manifest["target"]](args.export, manifest, reference)
    except VidcmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for name, value in found.items():
        print(f"{name}: {value:.1e}")
    return int(not all(value <= TOLERANCE for value in found.values()))


def check_file(folder: Path, manifest: dict[str, Any], reference: dict) -> dict[str, float]:
    """Network, times and repeatability of a file in ComfyUI, as shares of the largest number."""
    import comfy.sample  # pyright: ignore[reportMissingImports]
    import comfy.samplers  # pyright: ignore[reportMissingImports]
    import torch

    from vidcm.exports.reference import difference

    sampling = manifest["comfy"]
    workflow = json.loads((folder / "workflow.json").read_text("utf-8"))
    assert workflow["shift"]["inputs"]["shift"] == sampling["shift"]
    model = load(folder / manifest["weights"])
    found = {"network": difference(outputs(model, reference), reference["outputs"])}
    shifted = shift(model, sampling["shift"])
    sigmas = comfy.samplers.calculate_sigmas(
        shifted.get_model_object("model_sampling"), sampling["scheduler"], sampling["steps"]
    )
    found["times"] = float((sigmas[:-1] - torch.tensor(manifest["timesteps"])).abs().max())
    text = [[reference["tokens"], {}]]
    first, second = (
        comfy.sample.sample(
            shifted,
            reference["noise"],
            sampling["steps"],
            sampling["guidance"],
            sampling["sampler"],
            sampling["scheduler"],
            text,
            text,
            torch.zeros_like(reference["noise"]),
            seed=3,
            disable_pbar=True,
        )
        for _ in range(2)
    )
    return found | {"same seed": difference(second, first)}


def check_lora(folder: Path, manifest: dict[str, Any], reference: dict) -> dict[str, float]:
    """The effect of a low-rank update on its base in ComfyUI, at two scales."""
    import comfy.sd  # pyright: ignore[reportMissingImports]
    import comfy.utils  # pyright: ignore[reportMissingImports]

    from vidcm.exports.lora import NAME, SCALES, base_effects
    from vidcm.exports.reference import difference
    from vidcm.families.component import component, read_config
    from vidcm.families.original import original_names
    from vidcm.store import save_tensors

    base, expected = Path(manifest["base"]), base_effects(folder, manifest, reference)
    network = component(base, str(read_config(base)["_class_name"]))
    weights = network.state_dict()
    names = original_names(expected.family, weights)
    update = comfy.utils.load_torch_file(str(folder / NAME), safe_load=True)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as part:
        file = Path(part, "base.safetensors")
        save_tensors({names[k]: v for k, v in weights.items()}, file)
        for scale in SCALES:
            model, _ = comfy.sd.load_lora_for_models(load(file), None, update, scale, 0)
            effect = outputs(model, reference) - expected.plain
            found[f"effect at scale {scale:g}"] = difference(effect, expected.effects[scale])
    return found


def load(file: Path) -> Any:
    """A network in ComfyUI, in float32."""
    import comfy.sd  # pyright: ignore[reportMissingImports]
    import torch

    return comfy.sd.load_diffusion_model(str(file), model_options={"dtype": torch.float32})


def shift(model: Any, by: float) -> Any:
    """What the node ModelSamplingSD3 gives."""
    import comfy_extras.nodes_model_advanced as nodes  # pyright: ignore[reportMissingImports]

    return nodes.ModelSamplingSD3().patch(model, by)[0]


def outputs(model: Any, reference: dict) -> Any:
    """What the network gives for the inputs of a reference."""
    import comfy.model_management  # pyright: ignore[reportMissingImports]
    import torch

    from vidcm.exports.reference import TIMES

    comfy.model_management.load_models_gpu([model], force_full_load=True)
    network = model.model.diffusion_model
    with torch.no_grad():
        found = [
            network(reference["noise"], torch.tensor([t]), context=reference["tokens"])
            for t in TIMES
        ]
    return torch.cat(found)


if __name__ == "__main__":
    sys.exit(main())
