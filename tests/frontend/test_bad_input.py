"""Wrong arguments meet a message that names the value and the limit, before any kernel runs."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import tvm_flash
from tvm_flash import AttentionSpec, UnsupportedSpec, attention, flash_attn_func
from tvm_flash.runtime.kernels import resolve


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch):
    """A check that comes too late would look for a kernel."""

    def refuse(*args):
        raise AssertionError("a kernel was looked for")

    monkeypatch.setattr("tvm_flash.frontend.ops.resolve", refuse)


def tensor(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(*shape, dtype=dtype, device=device)


Q = tensor(2, 6, 4, 32)
K = tensor(2, 8, 2, 32)


def same(dim):
    return (tensor(1, 4, 1, dim),) * 3


THREE_HEADS = tensor(2, 8, 3, 32)


@pytest.mark.parametrize(
    ("q", "k", "v", "error", "parts"),
    [
        (Q.double(), K.double(), K.double(), TypeError, ["float64", "float32", "bfloat16"]),
        (Q.int(), K.int(), K.int(), TypeError, ["int32"]),
        (Q, K.bfloat16(), K, TypeError, ["k.dtype", "bfloat16", "float32"]),
        (Q, K, K.half(), TypeError, ["v.dtype", "float16"]),
        (Q[0], K, K, ValueError, ["(6, 4, 32)", "4"]),
        (Q, K[0], K, ValueError, ["(8, 2, 32)", "4"]),
        ([1.0], K, K, TypeError, ["list"]),
        (Q, THREE_HEADS, THREE_HEADS, ValueError, ["num_heads=4", "num_kv_heads=3"]),
        (Q, K, tensor(2, 9, 2, 32), ValueError, ["8", "9"]),
        (Q, K, tensor(2, 8, 4, 32), ValueError, ["2", "4", "heads"]),
        (Q, tensor(2, 8, 2, 16), K, ValueError, ["32", "16"]),
        (Q, tensor(3, 8, 2, 32), tensor(3, 8, 2, 32), ValueError, ["batch", "2", "3"]),
        (*same(7), ValueError, ["7", "8", "512"]),
        (*same(513), ValueError, ["513", "512"]),
        (Q.to_sparse(), K, K, TypeError, ["q of layout torch.sparse_coo", ".to_dense()"]),
        (Q, K, K.to_sparse(), TypeError, ["v of layout torch.sparse_coo", ".to_dense()"]),
    ],
)  # fmt: skip
def test_tensors(q, k, v, error, parts):
    with pytest.raises(error) as raised:
        flash_attn_func(q, k, v)
    assert [part for part in parts if part not in str(raised.value)] == []


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((1, 2**31, 1, 32), [f"seqlen={2**31}", f"limit {2**29}"]),
        ((2**31, 1, 1, 32), [f"batch={2**31}", f"limit {2**31 - 1}"]),
        ((1, 1, 2**31, 32), [f"num_heads={2**31}", f"limit {2**31 - 1}"]),
        ((2**22, 2**29, 2**4, 64), [f"{2**63} bytes", f"limit {2**63 - 1}"]),
    ],
    ids=["length", "batch", "heads", "bytes"],
)
def test_sizes_that_overflow(shape, parts, device):
    huge = torch.empty(1, 1, 1, 1, device=device).expand(shape)
    with pytest.raises(ValueError) as raised:
        flash_attn_func(huge, huge, huge)
    assert [part for part in parts if part not in str(raised.value)] == []


def test_tensors_of_a_device_without_kernels():
    with FakeTensorMode():
        q, cpu = torch.empty(1, 4, 1, 32, device="xpu"), torch.empty(1, 4, 1, 32)
    with pytest.raises(NotImplementedError, match=r"q\.device=xpu:0.*call q\.cpu\(\)"):
        flash_attn_func(q, q, q)
    with pytest.raises(ValueError, match=r"v\.device=xpu:0 differs from q\.device=cpu"):
        flash_attn_func(cpu, cpu, q)


def test_tensors_of_two_devices():
    with FakeTensorMode():
        q, k = torch.empty(1, 4, 1, 32, device="cuda"), torch.empty(1, 4, 1, 32)
    with pytest.raises(ValueError, match=r"k\.device=cpu differs from q\.device=cuda:0"):
        flash_attn_func(q, k, k)


def test_a_gpu_too_old():
    spec = AttentionSpec(head_dim=64, dtype="float16")
    with pytest.raises(UnsupportedSpec, match=r"7\.0: kernels need 7\.5"):
        resolve(spec, "forward", "cuda", (7, 0))
    with pytest.raises(UnsupportedSpec, match=r"sm_75: no bfloat16 .* sm_80"):
        resolve(AttentionSpec(head_dim=64, dtype="bfloat16"), "forward", "cuda", (7, 5))


def test_slopes_elsewhere():
    with pytest.raises(ValueError, match="alibi_slopes is on meta, q on cpu"):
        attention(Q, K, K, alibi_slopes=torch.zeros(4, device="meta"))


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"softmax_scale": float("nan")}, ValueError, ["softmax_scale=nan", "finite"]),
        ({"softmax_scale": 3.5e38}, ValueError, ["softmax_scale=3.5e+38", "float32"]),
        ({"softcap": -1.0}, ValueError, ["softcap", "-1.0"]),
        ({"window_size": (1, 2, 3)}, TypeError, ["window_size", "(left, right)"]),
        ({"window_size": (2**40, 0)}, ValueError, ["window_size", str(2**40)]),
        ({"layout": "sbhd"}, ValueError, ["sbhd", "bshd", "bhsd"]),
        ({"alignment": "middle"}, ValueError, ["middle", "bottom_right", "top_left"]),
        ({"alibi_slopes": torch.zeros(3)}, ValueError, ["(3,)", "4"]),
        ({"alibi_slopes": torch.zeros(4).double()}, TypeError, ["float64", "float32"]),
        ({"score_mod": 3}, TypeError, ["int"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_arguments(arguments, error, parts):
    with pytest.raises(error) as raised:
        attention(Q, K, K, **arguments)
    assert [part for part in parts if part not in str(raised.value)] == []


def test_control_flow_on_a_symbol_names_the_line():
    def mod(score, b, h, q_idx, k_idx):
        return score if q_idx > k_idx else -score

    with pytest.raises(TypeError, match=r"test_bad_input\.py:\d+.*torch\.where"):
        attention(Q, K, K, score_mod=mod)


def test_an_operation_that_kernels_lack_is_named():
    with pytest.raises(UnsupportedSpec, match="lgamma"):
        attention(Q, K, K, score_mod=lambda s, b, h, q, k: torch.lgamma(s))


HEADS_FIRST = [x.transpose(1, 2) for x in (Q, K, K)]


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"dropout_p": 1.0}, ValueError, ["dropout_p=1.0", "[0, 1)"]),
        ({"enable_gqa": False}, ValueError, ["4 heads", "enable_gqa=True"]),
        ({"attn_mask": torch.ones(6, 7)}, ValueError, ["(6, 7)", "(2, 4, 6, 8)"]),
        ({"attn_mask": torch.ones(1, 1, 1, 6, 8)}, ValueError, ["broadcast"]),
        ({"attn_mask": torch.ones(6, 8).int()}, TypeError, ["torch.int32", "torch.bool"]),
        ({"attn_mask": 3}, TypeError, ["int"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_arguments_of_sdpa(arguments, error, parts):
    with pytest.raises(error) as raised:
        tvm_flash.scaled_dot_product_attention(*HEADS_FIRST, **{"enable_gqa": True, **arguments})
    assert [part for part in parts if part not in str(raised.value)] == []


def test_ranks_of_sdpa():
    q, k, v = HEADS_FIRST
    with pytest.raises(ValueError, match="key of rank 1"):
        tvm_flash.scaled_dot_product_attention(q, k[0, 0, 0], v)
    with pytest.raises(ValueError, match=r"\(3,\), \(2,\)\] of query, key and value"):
        tvm_flash.scaled_dot_product_attention(q, torch.cat((k, k[:1])), v, enable_gqa=True)
    with pytest.raises(ValueError, match="num_heads=4 of q must be a multiple of num_kv_heads=3"):
        tvm_flash.scaled_dot_product_attention(q, v.repeat(1, 2, 1, 1)[:, :3], v, enable_gqa=True)
    with pytest.raises(TypeError, match="value must be a tensor, not list"):
        tvm_flash.scaled_dot_product_attention(q, k, [])


def test_captured_functions():
    captured = tvm_flash.capture(lambda s, b, h, q, k: s + Q[0, q, h, 0])
    with pytest.raises(TypeError, match="capture them together"):
        attention(Q, K, K, score_mod=captured, mask_mod=lambda b, h, q, k: q > k)
    with pytest.raises(ValueError, match=r"ranks \[1\] must have the captured ranks \[2\]"):
        captured.with_tables(torch.zeros(4))


def test_packed_shapes():
    with pytest.raises(ValueError, match=r"\(2, 6, 4, 32\)"):
        tvm_flash.flash_attn_qkvpacked_func(Q)
    with pytest.raises(ValueError, match=r"\(2, 8, 2, 32\)"):
        tvm_flash.flash_attn_kvpacked_func(Q, K)


DOORS = {
    "attention": lambda x: attention(Q, x, K),
    "heads first": lambda x: attention(Q, x, K, layout="bhsd"),
    "flash": lambda x: flash_attn_func(Q, K, x),
    "kvpacked": lambda x: tvm_flash.flash_attn_kvpacked_func(Q, x),
    "sdpa": lambda x: tvm_flash.scaled_dot_product_attention(*HEADS_FIRST[:2], x),
    "attn_mask": lambda x: tvm_flash.scaled_dot_product_attention(
        *HEADS_FIRST, attn_mask=x, enable_gqa=True
    ),
    "alibi_slopes": lambda x: attention(Q, K, K, alibi_slopes=x),
}
NAMED = {
    "attention": "k", "heads first": "k", "flash": "v", "kvpacked": "kv", "sdpa": "value",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.parametrize("door", DOORS)
def test_nested_tensors_are_named_with_what_to_pass_instead(door, layout):
    nested = torch.nested.nested_tensor([Q[0], Q[1, :3]], layout=layout)
    message = rf"^{NAMED.get(door, door)} is a nested tensor, .*pad it .*mask_mod"
    with pytest.raises(TypeError, match=message):
        DOORS[door](nested)


@pytest.mark.parametrize("door", DOORS)
def test_sparse_tensors_are_named_with_what_to_pass_instead(door):
    message = rf"^{NAMED.get(door, door)} of layout torch\.sparse_coo .*\.to_dense\(\)"
    with pytest.raises(TypeError, match=message):
        DOORS[door](Q.to_sparse())


def test_sparse_tensors_of_an_operator():
    with pytest.raises(TypeError, match=r"k of layout torch\.sparse_coo"):
        torch.ops.tvm_flash.attention_forward(Q, K.to_sparse(), K, [], "{}", 1.0)


def test_captured_tensors_are_dense():
    table = torch.ones(4, 4).to_sparse()
    with pytest.raises(
        TypeError, match=r"captured tensor \(.*py:\d+\) of layout torch\.sparse_coo"
    ):
        attention(Q, K, K, score_mod=lambda s, b, h, q, k: s + table[h, h])
    captured = tvm_flash.capture(lambda s, b, h, q, k: s + Q[0, q, h, 0])
    with pytest.raises(TypeError, match=r"captured tensor 0 of layout torch\.sparse_coo"):
        captured.with_tables(Q[0, :, :, 0].to_sparse())
