"""Configs are strict: what does not belong is refused by name, and every shipped one builds."""

import dataclasses
import math
from pathlib import Path

import pytest
import yaml

import vidcm
from vidcm import config
from vidcm.config import LoraConfig, OptimizerConfig, TrainConfig, load, to_dict
from vidcm.errors import UsageError
from vidcm.files import on_hub
from vidcm.registry import build, options_of
from vidcm.schema import from_dict
from vidcm.yaml_file import parse_yaml

REPO = Path(vidcm.__file__).parents[1]
OTHER = ("comparison", "recipe", "kubernetes")  # files of other commands
SHIPPED = sorted(p for p in (REPO / "configs").rglob("*.yaml") if p.stem not in OTHER)
LEAST = """
model: {name: causal_vae, channels: 7}
objective: {name: autoencoding}
data: {name: lpc, art: art.tar}
output: runs/x
steps: 11
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(LEAST)
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what ships -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(REPO / "configs")))
def test_every_shipped_config_loads_and_its_parts_exist(path):
    found = load(path)
    if not on_hub(found.model.get("base", "")):  # tests/families train those with tiny models
        model = build("model", found.model)
        assert sum(p.numel() for p in model.parameters()) > 1000
    # What needs a teacher or data is not made here, but its options are named right.
    teacher = (
        {"teacher": None} if "teacher" in options_of("objective", found.objective["name"]) else {}
    )
    build("objective", found.objective, **teacher)
    assert set(found.data) - {"name"} <= set(options_of("data", found.data["name"]))
    assert found.batch_size % found.gradient_accumulation_steps == 0


def test_there_are_configs():
    assert SHIPPED


# --- reading --------------------------------------------------------------------------------------


def test_defaults_and_round_trip(file):
    found = load(file)
    assert found.steps == 11 and found.optimizer.betas == (0.9, 0.99) and found.teacher is None
    assert (
        from_dict(TrainConfig, yaml.safe_load(yaml.safe_dump(to_plain(to_dict(found)))), "x")
        == found
    )


def to_plain(value):
    """Tuples as the lists that YAML and JSON make of them."""
    if isinstance(value, dict):
        return {k: to_plain(v) for k, v in value.items()}
    return [to_plain(v) for v in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-4", 1e-4), ("1E+3", 1000.0), ("1.", 1.0), (".5e1", 5.0), ("-2e3", -2000.0),
        ("3", 3), ("-3", -3), ("0.1", 0.1), (".inf", math.inf),
        ("e5", "e5"), ("1e", "1e"), ("v1.2", "v1.2"), ("1-2", "1-2"), ("'1e-4'", "1e-4"), ("-", None),
    ],
)  # fmt: skip
def test_numbers_are_numbers(text, value):
    """Cases: K09."""
    if text == "-":
        assert parse_yaml(text, "x") == [None]
        return
    found = parse_yaml(text, "x")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "overrides, name, value",
    [
        (["optimizer.lr=1e-4"], "optimizer.lr", 1e-4),
        (["optimizer.betas=[0.8, 0.95]"], "optimizer.betas", (0.8, 0.95)),
        (["steps=2e3"], "steps", 2000),
        (["preview_prompts=[an orc, 'a, b']"], "preview_prompts", ["an orc", "a, b"]),
        (
            ["model.widths=[3, 5, 7]"],
            "model",
            {"name": "causal_vae", "channels": 7, "widths": [3, 5, 7]},
        ),
        (["data={name: folder, path: a=b}"], "data", {"name": "folder", "path": "a=b"}),
        (["output=a=b"], "output", "a=b"),
        (["teacher=runs/t", "teacher=null"], "teacher", None),
        (["teacher=runs/t", "lora={}"], "start", "runs/t"),
        (["teacher=runs/t", "lora={}", "init=runs/i"], "start", "runs/i"),
        (["teacher=runs/t", "lora.rank=3"], "lora", LoraConfig(rank=3)),
        (["teacher=runs/t"], "start", None),
        (["activation_checkpointing=true"], "activation_checkpointing", True),
        (["compile=yes"], "compile", True),
        (["compile=off"], "compile", False),
        (["steps=3", "steps=5"], "steps", 5),
    ],
)
def test_overrides(file, overrides, name, value):
    """Cases: K09."""
    found = load(file, overrides)
    for part in name.split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, message",
    [
        ("stesp=3", "unknown key 'stesp'; did you mean 'steps'"),
        ("optimizer.leraning=3", "optimizer: unknown key 'leraning'"),
        ("optimizer.lr.x=3", "optimizer: lr: {'x': 3} is not float"),
        ("model.name.x=3", "cannot set model.name.x: name is not a group of keys"),
        ("steps", "cannot read the override 'steps'; write key=value"),
        ("=3", "cannot read the override '=3'"),
        ("steps=many", "steps: 'many' is not int"),
        ("steps=1.5", "steps: 1.5 is not int"),
        ("steps=true", "steps: True is not int"),
        ("steps=", "steps: None is not int"),
        ("steps=0", "steps is 0; it must be at least 1"),
        ("output=3", "output: 3 is not str"),
        ("model=dit", "model: 'dit' is not dict"),
        ("preview_prompts=[1]", "preview_prompts: 1 is not str"),
        ("preview_prompts=[no]", "preview_prompts: False is not str"),
        ("preview_prompts=one", "preview_prompts: 'one' is not list"),
        ("optimizer=3", "optimizer: 3 is not OptimizerConfig"),
        ("optimizer.betas=[0.9]", "betas: .0.9. is not tuple"),
        ("optimizer.lr=0", "optimizer.lr is 0.0; it must be above 0"),
        ("optimizer.lr=.nan", "optimizer: lr: nan is not a finite number"),
        ("optimizer.lr=1e999", "optimizer: lr: inf is not a finite number"),
        ("optimizer.lr=fast", "optimizer: lr: 'fast' is not float"),
        ("optimizer.max_grad_norm=0", "optimizer.max_grad_norm is 0.0; it must be above 0"),
        ("ema_decay=1", r"ema_decay is 1.0; it must be in \[0, 1\)"),
        ("precision=fp16", "precision is 'fp16'; use fp32, bf16 or auto"),
        ("zero=4", "zero is 4;.*0, 1, 2 and 3"),
        ("lora=3", "lora: 3 is not LoraConfig"),
        ("lora={ranks: 3}", "lora: unknown key 'ranks'; did you mean 'rank'"),
        ("lora={rank: 0}", "lora.rank is 0; it must be at least 1"),
        ("lora={alpha: 0}", "lora.alpha is 0; it must be at least 1"),
        ("lora={targets: []}", "lora.targets is empty; leave it out"),
        ("lora={}", r"set init \(or teacher\) to its folder"),
        ("compile=1", "compile: 1 is not bool"),
        ("sample_every=0", "sample_every is 0; it must be at least 1"),
        ("num_workers=-1", "num_workers is -1; it must be at least 0"),
        ("seed=-1", "seed is -1; it must be at least 0"),
        ("model={a: 1, a: 2}", "override model.*: the key 'a' stands twice"),
        ("seed=9223372036854775808", r"seed is 9223372036854775808; it must be below 2\^63"),
        ("output=''", "output is empty; name the folder"),
        (
            "optimizer.betas=[0.9, 1.0]",
            r"optimizer.betas are \[0.9, 1.0\]; both must be in \[0, 1\)",
        ),
        ("optimizer.betas=[-0.1, 0.9]", "optimizer.betas are"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay is -1.0; it must be 0 or above"),
        ("optimizer.warmup_steps=-1", "optimizer.warmup_steps is -1; it must be 0 or above"),
        ("optimizer.final_lr_ratio=2", r"optimizer.final_lr_ratio is 2.0; it must be in \[0, 1\]"),
        ("objective.mean=.nan", "objective.mean: nan is not a finite number"),
        ("data.x={y: [1, .inf]}", "data.x.y.1: inf is not a finite number"),
        ("steps=!!float", "override steps=!!float: a value does not fit its tag"),
        ("steps=!!bool maybe", "a value does not fit its tag"),
        ("steps=!!timestamp x", "a value does not fit its tag"),
        ("steps=!!set [a]", "a value does not fit its tag"),
    ],
)
def test_bad_overrides_are_named(file, override, message):
    """Cases: K01, K02, K09."""
    import re

    assert re.search(message, refused(file, override))


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "holds NoneType; expected keys and values"),
        ("- 1\n- 2", "holds list; expected keys and values"),
        ("steps: 3", "the key 'model' is missing"),
        ("steps: 3\nsteps: 4", ":2:1: the key 'steps' stands twice"),
        ("model: {name: a, x: {b: 1, b: 2}}", "the key 'b' stands twice"),
        ("a: &a [1]\nb: *a", ":2:4: aliases are not allowed"),
        ("a: &a {x: *a}", "aliases are not allowed"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: [1, 2", ":1:9: expected ',' or ']'"),
        ("a:\n\t- b", "cannot start any token"),
        ("? [1, 2]\n: 3", "a key must be a word"),
        ("1: 2", "unknown key 1"),
        ("? {a: 1}\n: 3", "a key must be a word"),
        ("steps: 2024-13-45", "month must be in 1..12"),
        ("a: \x00", "special characters are not allowed"),
        ("[" * 3000, "nested too deeply"),
    ],
)  # fmt: skip
def test_broken_files_are_named(tmp_path, text, message):
    """Cases: K03, K04, K05, K06, K08."""
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    found = refused(path)
    assert message in found and "broken.yaml" in found


def test_an_alias_bomb_costs_nothing(tmp_path):
    """Cases: K07."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    assert "aliases are not allowed" in refused(path)


def test_files_that_are_none(tmp_path):
    assert "no config file" in refused(tmp_path / "none.yaml")
    assert "is a folder; give the config file" in refused(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("output: caf\xe9".encode("latin-1"))
    assert "latin.yaml is not UTF-8 text" in refused(tmp_path / "latin.yaml")


# --- one file on another --------------------------------------------------------------------------


@pytest.fixture
def derived(file: Path) -> Path:
    """A config in a folder of its own that builds on another file."""
    folder = file.parent / "more"
    folder.mkdir()
    path = folder / "b.yaml"
    path.write_text(
        "base: ../a.yaml\nmodel: {widths: [3, 5, 7]}\noptimizer: {lr: 2e-3}\n"
        "objective: {name: flow_matching}\nteacher: null"
    )
    file.write_text(LEAST + "optimizer: {lr: 1e-3, betas: [0.8, 0.9]}\nteacher: x\n")
    return path


def test_a_config_builds_on_its_base(derived, tmp_path_factory, monkeypatch):
    """Whatever the working directory. Cases: K11."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    found = load(derived, ["model.channels=11"])
    assert found.model == {"name": "causal_vae", "channels": 11, "widths": [3, 5, 7]}
    assert (found.optimizer.lr, found.optimizer.betas) == (2e-3, (0.8, 0.9))
    assert found.teacher is None and found.steps == 11
    assert "base" not in to_dict(found)


def test_a_group_of_another_name_replaces_that_of_the_base(derived):
    base = derived.parent.parent / "a.yaml"
    base.write_text(base.read_text().replace("{name: autoencoding}", "{name: autoencoding, kl: 3}"))
    assert load(derived).objective == {"name": "flow_matching"}


@pytest.mark.parametrize(
    "base, message",
    [
        ("none.yaml", "there is no config file .*none.yaml; .*b.yaml names it as its base"),
        ("b.yaml", "b.yaml: its base b.yaml leads back to itself"),
        ("../a.yaml", "a.yaml: its base more/b.yaml leads back to itself"),
        ("..", "is a folder; give the config file"),
        ("[a, b]", "base is .'a', 'b'.; expected the name of a YAML file"),
    ],
)
def test_bases_that_are_none(derived, base, message):
    """Cases: K10."""
    import re

    above = derived.parent.parent / "a.yaml"
    above.write_text(above.read_text() + "base: more/b.yaml\n")
    derived.write_text(f"base: {base}\n")
    assert re.search(message, refused(derived))


def test_home_is_expanded_everywhere_and_once(file, monkeypatch):
    """Cases: K11."""
    monkeypatch.setenv("HOME", "/home/me")
    words = ["output=~/runs", "data.path=~/x", "codec=~/c", "model.widths=[~/y, a~b]"]
    found = load(file, words)
    assert (found.output, found.codec) == ("/home/me/runs", "/home/me/c")
    assert found.data["path"] == "/home/me/x" and found.model["widths"] == ["/home/me/y", "a~b"]


def test_keys_that_exclude_each_other(file):
    assert "freezes the text tower of init" in refused(file, "init=a", "init_text=b", "lora={}")
    assert refused(file, "zero=3", "compile=true").endswith("use zero=2, or compile=false")


def test_every_key_is_in_the_class():
    """`from_dict` needs nothing but the dataclass: a new key is one line there."""
    assert set(to_dict(TrainConfig({}, {}, {}, "x", 1))) == set(config.TrainConfig.__annotations__)


def test_the_documents_list_every_key():
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text("utf-8")
    for kind, prefix in ((TrainConfig, ""), (OptimizerConfig, "optimizer.")):
        for field in dataclasses.fields(kind):
            known = field.name in ("optimizer", "lora") or f"`{prefix}{field.name}" in text
            assert known, f"docs/training.md lacks {prefix}{field.name}"
