"""Whatever watches, records or transforms torch's operators sees ours, and the right values."""

import contextlib
import threading
import warnings

import pytest
import torch
from torch._C._profiler import _ExperimentalConfig
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tvm_flash import AttentionSpec, attention, capture, scaled_dot_product_attention
from tvm_flash.frontend import ops
from tvm_flash.frontend.observers import is_plain_call
from tvm_flash.reference import attention_reference

B, S, H, D = 2, 20, 2, 16
NAME = "tvm_flash.attention_forward.default"


def inputs(seed=0, length=S):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, length, H, D, generator=generator) for _ in range(3)]


def causal(q, k, v):
    return attention(q, k, v, causal=True)


def assert_exact(got, q, k, v, **variant):
    want, _ = attention_reference(q, k, v, upcast=torch.float64, **variant)
    torch.testing.assert_close(got.double(), want.double(), atol=2e-6, rtol=1e-5)


def jit_traced(function, example):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(function, example)


RECORDERS = {
    "torch.jit.trace": jit_traced,
    "make_fx": lambda f, x: make_fx(f)(*x),
    "make_fx before dispatch": lambda f, x: make_fx(f, pre_dispatch=True)(*x),
    "make_fx of fake tensors": lambda f, x: make_fx(f, tracing_mode="fake")(*x),
    "make_fx of symbols": lambda f, x: make_fx(f, tracing_mode="symbolic")(*x),
    "export": lambda f, x: exported(f, x, strict=False),
    "strict export": lambda f, x: exported(f, x, strict=True),
}


def exported(function, example, strict):
    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            return function(q, k, v)

    return torch.export.export(Layer(), tuple(example), strict=strict).module()


@pytest.mark.parametrize("wants_gradients", [False, True], ids=["plain", "with gradients"])
@pytest.mark.parametrize("name", RECORDERS)
def test_what_was_recorded_computes_the_values_of_other_inputs(name, wants_gradients):
    example = [x.requires_grad_(wants_gradients) for x in inputs()]
    recorded, other = RECORDERS[name](causal, example), inputs(seed=1)
    assert_exact(recorded(*other), *other, causal=True)


BIAS = torch.linspace(-1, 1, H)


def masked(q, k, v):
    mask = q[:, :, 0, :1] > k[:, :, 0, 0].unsqueeze(1)  # (B, S, S), of what is traced
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    return scaled_dot_product_attention(*heads_first, mask.unsqueeze(1)).transpose(1, 2)


TRACED = {
    "causal": causal,
    "alibi": lambda q, k, v: attention(q, k, v, alibi_slopes=q.new_ones(H) * 0.25),
    "score_mod": lambda q, k, v: attention(q, k, v, score_mod=lambda s, b, h, i, j: s * BIAS[h]),
    "a mask of traced tensors": masked,
    "captured traced tensor": lambda q, k, v: attention(
        q, k, v, score_mod=SLOPES.with_tables(k.mean((0, 1, 3)))
    ),
}
SLOPES = capture(lambda score, b, h, q_idx, k_idx: score + BIAS[h] * (q_idx - k_idx))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", TRACED)
def test_a_jit_trace_is_right_for_other_values_and_lengths(name):
    traced = jit_traced(TRACED[name], inputs())
    for other in (inputs(seed=1), inputs(seed=2, length=S + 9)):
        torch.testing.assert_close(traced(*other), TRACED[name](*other), atol=0, rtol=0)


def test_a_jit_trace_warns_of_nothing_and_differentiates():
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = jit_traced(causal, inputs())
    leaves, twins = ([x.requires_grad_() for x in inputs(seed=1)] for _ in range(2))
    traced(*leaves).sin().sum().backward()
    causal(*twins).sin().sum().backward()
    for leaf, twin in zip(leaves, twins, strict=True):
        assert torch.equal(leaf.grad, twin.grad)


class SeenFunctions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


class SeenOperators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [SeenFunctions, SeenOperators])
def test_modes_see_the_operator(mode):
    q, k, v = inputs()
    with mode() as seen:
        out = causal(q, k, v)
    assert NAME in seen.names
    assert_exact(out, q, k, v, causal=True)


PROFILERS = {
    "torch.profiler": torch.profiler.profile,
    "autograd": torch.autograd.profiler.profile,
    "autograd without kineto": lambda: torch.autograd.profiler.profile(use_kineto=False),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", PROFILERS)
def test_profilers_show_both_operators_by_name(name):
    q, k, v = inputs()
    with PROFILERS[name]() as profile:
        causal(q.requires_grad_(), k, v).sum().backward()
    shown = {event.key for event in profile.key_averages()}
    assert {"tvm_flash::attention_forward", "tvm_flash::attention_backward"} <= shown
    assert "attention_forwardBackward" in shown  # the node of autograd


def test_a_profiler_of_all_threads_sees_calls_in_other_threads():
    config = _ExperimentalConfig(profile_all_threads=True)
    with torch.profiler.profile(experimental_config=config) as profile:
        thread = threading.Thread(target=causal, args=inputs())
        thread.start()
        thread.join()
    assert "tvm_flash::attention_forward" in {event.name for event in profile.events()}


WATCHED = []


class Watching(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        WATCHED.append(str(function))
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_subclass_sees_the_operator_and_gets_its_kind_back():
    q, k, v = inputs()
    out = causal(q.as_subclass(Watching), k, v)
    assert type(out) is Watching and NAME in WATCHED
    assert_exact(out.as_subclass(torch.Tensor), q, k, v, causal=True)


def escaped(x):
    kept = []
    torch.func.grad(lambda y: (kept.append(y), y.sum())[1])(x)
    return kept[0]


def functional(x):
    return torch._to_functional_tensor(x)


STAND_INS = {
    "negated": (torch._neg_view, lambda x: -x),
    "zero": (lambda x: torch._efficientzerotensor(x.shape), torch.zeros_like),
    "functional wrapper": (functional, torch.clone),
    "escaped from torch.func": (escaped, torch.clone),
    "parameter": (lambda x: torch.nn.Parameter(x, requires_grad=False), torch.clone),
}


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("name", STAND_INS)
def test_tensors_that_are_not_simply_memory(name, position):
    stand_in, meaning = STAND_INS[name]
    given, meant = inputs(), inputs()
    given[position], meant[position] = stand_in(given[position]), meaning(meant[position])
    if name == "functional wrapper":
        given = [x if torch._is_functional_tensor(x) else functional(x) for x in given]
    out = causal(*given)
    out = torch._from_functional_tensor(out) if torch._is_functional_tensor(out) else out
    assert_exact(out, *meant, causal=True)


def test_functionalize_keeps_the_operator():
    q, k, v = inputs()
    assert_exact(torch.func.functionalize(causal)(q, k, v), q, k, v, causal=True)


UNDISTURBED = {
    "nothing": contextlib.nullcontext,
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "saved-tensor hooks": lambda: torch.autograd.graph.saved_tensors_hooks(id, id),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "autocast elsewhere": lambda: torch.autocast("cuda", enabled=False),
}


@pytest.mark.parametrize("name", UNDISTURBED)
def test_who_needs_no_operator_leaves_the_short_way_open(name, monkeypatch):
    """Parameters take it as tensors do."""

    def dispatched(*args):
        raise AssertionError("went through the dispatcher")

    q, k, v = inputs()
    weight = torch.nn.Parameter(k, requires_grad=False)
    monkeypatch.setattr(ops, "_forward_operator", dispatched)
    with UNDISTURBED[name]():
        out = causal(q, weight, v)
    assert_exact(out, q, k, v, causal=True)


WATCHERS = {
    "dispatch mode": SeenOperators,
    "function mode": SeenFunctions,
    "fake tensors": FakeTensorMode,
    "default device": lambda: torch.device("cpu"),
    "forward-mode level": forward_ad.dual_level,
    "profiler": torch.profiler.profile,
}


@pytest.mark.parametrize("name", WATCHERS)
def test_the_short_way_is_closed_while_somebody_watches(name):
    q, k, v = inputs()
    assert is_plain_call(q, k, v, [])
    with WATCHERS[name]():
        assert not is_plain_call(q, k, v, [])
    assert is_plain_call(q, k, v, [])


def in_a_script(q, k, v, spec: str):
    return torch.ops.tvm_flash.attention_forward(q, k, v, [], spec, 0.25)[0]


def test_torchscript_calls_the_operator():
    q, k, v = inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(in_a_script)
    text = ops.spec_json(AttentionSpec(dtype="float32", head_dim=D, causal=True))
    assert_exact(scripted(q, k, v, text), q, k, v, causal=True)
