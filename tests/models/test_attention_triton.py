"""The fused kernel of attention's derivative, run by Triton's interpreter on a CPU.

Triton reads TRITON_INTERPRET when it is imported, so one child process runs every case, as
`python test_attention_triton.py`, and prints how far each is from the formula in float64. bfloat16
is beyond the interpreter; float16 stands for it here.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vidcm

REPO = Path(vidcm.__file__).parents[1]
# queries, keys, width of queries and keys, width of values: within a tile, and ragged over several
SIZES = [(1, 1, 16, 16), (11, 7, 16, 48), (13, 131, 48, 16), (67, 71, 80, 80), (5, 3, 128, 128)]


def naive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    return scores.softmax(-1) @ v


def inputs(queries=11, keys=7, d=16, e=16, dtype=torch.float32) -> tuple[list[Tensor], ...]:
    shapes = [(2, 3, queries, d), (2, 3, keys, d), (2, 3, keys, e)]
    return tuple([torch.randn(s).to(dtype) for s in shapes] for _ in range(2))


def worst(found, expected) -> float:
    """Largest difference, relative to the values but never to less than one."""
    for got, want in zip(found, expected, strict=True):
        assert got.shape == want.shape
    errors = [
        ((got.double() - want).abs() / (1 + want.abs())).max()
        for got, want in zip(found, expected, strict=True)
    ]
    return float(torch.stack(errors).max().detach())


def error(queries, keys, d, e, masked=False, dtype=torch.float32, moving=(0, 1, 2)) -> float:
    from vidcm.models.attention_triton import attend_jvp

    primals, tangents = inputs(queries, keys, d, e, dtype)
    # the second clip sees two keys, after a whole tile and more of hidden ones where there are many
    mask = torch.arange(keys) >= torch.tensor([[0], [keys - 2]]) if masked else None
    given = [t if i in moving else None for i, t in enumerate(tangents)]
    zeros = [t if i in moving else torch.zeros_like(t) for i, t in enumerate(tangents)]
    wide = [tuple(x.double() for x in xs) for xs in (primals, zeros)]
    found = attend_jvp(*primals, *given, mask)
    assert all(x.dtype == dtype for x in found)
    return worst(found, torch.func.jvp(lambda q, k, v: naive(q, k, v, mask), *wide))


def layouts() -> float:
    """Heads as the model lays them out: views of another order, tangents of yet another."""
    from vidcm.models.attention_triton import attend_jvp

    q, k, v, tq, tk, tv = (torch.randn(2, 7, 3, 32).mT.mT.transpose(1, 2) for _ in range(6))
    k, v = torch.randn(2, 7, 2, 3, 16).permute(2, 0, 3, 1, 4).unbind(0)
    given = [x[..., :16] for x in (q, k, v)], [x[..., ::2] for x in (tq, tk, tv)]
    return worst(
        attend_jvp(*given[0], *given[1]),
        torch.func.jvp(naive, *(tuple(x.double() for x in xs) for xs in given)),
    )


def blind() -> float:
    from vidcm.models.attention_triton import attend_jvp

    mask = torch.tensor([[True] * 7, [False] * 7])
    primals, tangents = inputs()
    o, to = attend_jvp(*primals, *tangents, mask)
    assert all(x[0].abs().max() > 0 and x.isfinite().all() for x in (o, to))
    return max(float(x[1].abs().max()) for x in (o, to))


def overflow() -> float:
    from vidcm.models.attention_jvp import attend_jvp as chunked
    from vidcm.models.attention_triton import attend_jvp

    (q, k, v), tangents = inputs()
    given = [x.double() for x in (100 * q, 100 * k, v, *tangents)]
    found, expected = attend_jvp(*(x.float() for x in given)), chunked(*given)
    assert all(x.isfinite().all() for x in found)
    return worst(found[:1], expected[:1])


def common() -> float:
    """A derivative that all scores of a row share changes nothing, in few digits either."""
    from vidcm.models.attention_triton import attend_jvp

    (q, k, v), (tq, tk, tv) = ([x.half() for x in xs] for xs in inputs(keys=131))
    k[..., 0], tq[..., 0] = 1, 1000
    wide = [tuple(x.double() for x in xs) for xs in ((q, k, v), (tq, tk, tv))]
    found, expected = attend_jvp(q, k, v, tq, tk, tv), torch.func.jvp(naive, *wide)
    return worst(found, expected)


def dispatched() -> float:
    """By `attend` within a derivative, gradients of both outputs included."""
    from vidcm.models import attention

    attention._fits_kernel = lambda q, v: True
    (q, k, v), (tq, _, tv) = inputs()
    k.requires_grad_(), q.requires_grad_()
    results = []
    for f in (attention.attend, naive):
        o, to = torch.func.jvp(lambda q, v, f=f: f(q, k, v), (q, v), (tq, tv))
        results.append((o, to, *torch.autograd.grad(o.sum() + to.square().sum(), (q, k))))
    return worst(results[0], [x.double() for x in results[1]])


def refused() -> list[str]:
    from vidcm.models.attention_triton import attend_jvp

    (q, k, v), (tq, tk, tv) = inputs()
    wide = torch.randn(2, 3, 7, 144)
    wrong = [
        (q, k[:, :, :5], v, tq, None, tv),
        (q, k, v, tq[:, :, :5], tk, tv),
        (q, k, wide, tq, tk, wide),
        (q, k.half(), v, tq, tk.half(), tv),
        (*(x.double() for x in (q, k, v, tq, tk, tv)),),
        (q, k, v, tq, tk, tv, torch.ones(2, 5, dtype=torch.bool)),
    ]
    said = []
    for given in wrong:
        try:
            said.append(f"accepted: {attend_jvp(*given)[0].shape}")
        except ValueError as e:
            said.append(f"refused: {e}")
    return said


CASES: dict[str, Callable[[], Any]] = {
    f"{'x'.join(map(str, sizes))}{'-masked' * masked}": (
        lambda sizes=sizes, masked=masked: error(*sizes, masked)
    )
    for sizes in SIZES
    for masked in (False, True)
    if masked or sizes[0] < 20  # the largest once
}
CASES |= {
    f"only-{'-'.join('qkv'[i] for i in moving)}": (
        lambda moving=moving: error(11, 7, 16, 32, True, moving=moving)
    )
    for moving in ([0], [1], [2], [0, 1], [0, 2], [1, 2])
}
CASES |= {"layouts": layouts, "overflow": overflow, "dispatched": dispatched}
HALF: dict[str, Callable[[], Any]] = {
    "float16": lambda: error(37, 131, 48, 48, True, torch.float16),
    "common": common,
}


def main() -> None:
    torch.manual_seed(0)
    print(
        json.dumps(
            {n: case() for n, case in (CASES | HALF).items()}
            | {"blind": blind(), "refused": refused()}
        )
    )


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    if find_spec("triton") is None:
        pytest.skip("triton is not installed (it has wheels for Linux only)")
    paths = [str(REPO), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, env=env, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_derivative_of_the_formula(found, case):
    assert found[case] < 1e-5


@pytest.mark.parametrize("case", HALF)
def test_half_precision_errs_by_its_own_rounding(found, case):
    assert found[case] < 4e-3


def test_who_may_see_nothing_gets_nothing(found):
    assert found["blind"] == 0


def test_what_does_not_fit_is_refused(found):
    assert len(found["refused"]) == 6
    assert all(said.startswith("refused: ") for said in found["refused"])


def test_timing_without_a_gpu_is_refused_in_a_line():
    if find_spec("triton") is None:
        pytest.skip("triton is not installed (it has wheels for Linux only)")
    done = subprocess.run(
        [sys.executable, "-m", "vidcm.evaluation.attention_speed"],
        capture_output=True, text=True, cwd=REPO, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "GPU" in done.stderr


if __name__ == "__main__":
    main()
