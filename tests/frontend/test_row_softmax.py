"""softmax and logsumexp over the last axis, beside torch's in float64."""

import pytest
import torch

from tvm_flash import logsumexp, softmax
from tvm_flash.verify.rule import allowed_error, largest_error

OURS = {"softmax": softmax, "logsumexp": logsumexp}


def given(dtype, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 4).to(dtype)


def with_gradient(function, x, dtype=None):
    x = x.detach().to(dtype or x.dtype).requires_grad_()
    out = function(x, dim=-1)
    upstream = given(torch.float64, *out.shape, seed=1).to(out.dtype)
    return {"out": out.detach(), "dq": torch.autograd.grad(out, x, upstream)[0]}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(1,), (3, 255), (2, 0, 7), (2, 3, 1000)], ids=str)
def test_results_and_gradients_keep_the_error_rule(name, dtype, shape):
    x = given(getattr(torch, dtype), *shape)
    found = with_gradient(OURS[name], x)
    exact, plain = (with_gradient(getattr(torch, name), x, kind) for kind in (torch.float64, None))
    for result, got in found.items():
        kind = "lse" if (name, result) == ("logsumexp", "out") else result
        allowed = allowed_error(kind, dtype, exact[result], plain[result])
        assert largest_error(got, exact[result]) <= allowed


def test_views_are_read_as_they_are():
    x = given(torch.float32, 40, 6, 20)
    column = x[0, 0, :9].reshape(1, 9).t()  # contiguous with a stride of 9: it has one column
    for view in (x.transpose(0, 1), x[:, ::2, 3:], x.transpose(1, 2), column):
        torch.testing.assert_close(softmax(view), torch.softmax(view, -1))


def test_rows_without_a_share_and_extreme_ones():
    inf = float("inf")
    x = torch.tensor([[-inf, -inf], [0.0, -inf], [3e38, -3e38], [-3e38, -3e38]]).requires_grad_()
    out, lse = softmax(x), logsumexp(x)
    want = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(lse, torch.tensor([-inf, 0.0, 3e38, -3e38]))
    (dx,) = torch.autograd.grad(lse[:3].sum(), x)
    torch.testing.assert_close(dx[:3], want[:3])
    assert softmax(torch.tensor([0.0, float("nan")])).isnan().all()
    assert softmax(torch.tensor([0.0, inf])).isnan().any()


def test_torch_compile():
    x = given(torch.float32, 5, 30).requires_grad_()

    def loss(x):
        return (softmax(x) * logsumexp(x)[:, None]).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    got, want = (torch.autograd.grad(f(x), x)[0] for f in (compiled, loss))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("x", "dim", "message"),
    [
        (torch.zeros(3, 4), 0, "dim=0 of 2 must be the last"),
        (torch.zeros(3, 0), -1, "must have columns"),
        (torch.zeros(3, dtype=torch.int64), -1, "int64"),
        ([1.0], -1, "list"),
        (torch.eye(3).to_sparse(), -1, "to_dense"),
    ],
    ids=str,
)
def test_bad_input(x, dim, message):
    with pytest.raises((TypeError, ValueError), match=message):
        softmax(x, dim)
