# %% [markdown]
# # From formula to machine code
#
# A variant of attention is a plain function of one score. This page takes one and follows it
# through every stage: program, definition, recurrence, schedule, LLVM, machine code of a CPU, and
# for a GPU CUDA, PTX and SASS. Nobody wrote a kernel for it.

# %%
import matplotlib.pyplot as plt
import torch

from tvm_flash import AttentionSpec, attention
from tvm_flash.cli.show import Stage, stage_text
from tvm_flash.score.trace import trace_score_mod

# %% [markdown]
# ## The formula
#
# A softcap whose cap each head has of its own, x = c[h] tanh(s / c[h]): scores of a head can not
# leave (-c, c), so that no key gets all of its attention.

# %%
cap = torch.tensor([1.0, 4.0, 64.0])


def head_cap(score, b, h, q_idx, k_idx):
    return cap[h] * torch.tanh(score / cap[h])


# %% [markdown]
# With the rows of a unit matrix as values, the output of the kernel is its weights:

# %%
torch.manual_seed(0)
q, k = (2 * torch.randn(1, 64, 3, 64) for _ in range(2))
unit = torch.eye(64)[None, :, None].expand(1, 64, 3, 64)
weights = attention(q, k, unit, causal=True, score_mod=head_cap)

figure, places = plt.subplots(1, 3, num="Weights of three heads by their caps", figsize=(9, 3.3))
for h, axes in enumerate(places):
    axes.imshow(weights[0, :, h].sqrt(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[], title=f"cap {cap[h]:g}")
figure.tight_layout()
plt.show()


# %% [markdown]
# Right? The same in float64, every array written out, and torch's own float32 beside it. Kernels
# may be twice as far off as torch is; gradients are derived, and are held to three times.


# %%
def written_out(q, k, v):
    """Attention (B, S, H, D) in the dtype of q, by torch, all weights at once."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT * 64**-0.5
    capped = head_cap(scores, 0, torch.arange(3)[:, None, None], 0, 0)
    hidden = torch.ones(64, 64).triu(1).bool()
    return (capped.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def results(function, dtype):
    """Output, and gradients of its product with fixed random numbers."""
    inputs = [x.to(dtype).requires_grad_() for x in (q, k, values)]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream.to(dtype))]


values, upstream = (torch.randn(1, 64, 3, 64) for _ in range(2))
ours = results(lambda *x: attention(*x, causal=True, score_mod=head_cap), torch.float32)
torchs, exact = results(written_out, torch.float32), results(written_out, torch.float64)
for name, mine, theirs, right in zip(("out", "dq", "dk", "dv"), ours, torchs, exact, strict=True):
    error, allowed = ((x - right).abs().max().item() for x in (mine, theirs))
    rounding = 2**-24 * right.abs().max().item()
    assert error <= (2 if name == "out" else 3) * allowed + rounding, name
print("out, dq, dk and dv are as near to float64 as torch is")

# %% [markdown]
# ## 1. A program
#
# The function is called once with symbols, which record what happens to them. The captured tensor
# becomes a table: its numbers are read when a kernel runs, and may change without a compiler.

# %%
program, tables = trace_score_mod(head_cap)
print(program)

# %% [markdown]
# ## 2. A definition
#
# The program takes its place in the definition of attention, in TensorIR: loops over named blocks,
# in no order, every array in full. Of its eleven blocks, the one of the formula:

# %%
spec = AttentionSpec(dtype="float32", head_dim=64, causal=True, score_mod=program)
stages = {}


def stage(name, target="x86-64-v4", direction="forward", of=spec):
    """The text of a stage, whose length is kept for the picture at the end."""
    text = stage_text(of, Stage(name), direction, target)
    stages[name] = len(text.splitlines())
    return text.splitlines()


def part(lines, word, before=0, after=0):
    """The lines around the first one with ``word``, less their common indent, long ones cut."""
    place = next(n for n, line in enumerate(lines) if word in line)
    taken = lines[place - before : place + after + 1]
    indent = min(len(line) - len(line.lstrip()) for line in taken)
    return "\n".join(line[indent:][:150] + " ..." * (len(line) > indent + 150) for line in taken)


print(part(stage("definition"), '"score_mod"', 1, 4))

# %% [markdown]
# The backward's definition has the derivative, found by the rules of calculus and not by anybody:

# %%
backward = stage_text(spec, Stage.definition, "backward", "x86-64-v4").splitlines()
print(part(backward, 'T.sblock("ds")', 1, 4))

# %% [markdown]
# ## 3. A recurrence
#
# From the definition follows how a row can go through its keys in one pass: what it remembers, how
# that is repaired when the maximum grows, how two parts are merged. This is FlashAttention's online
# softmax, derived.

# %%
print("\n".join(stage("recurrence")))

# %% [markdown]
# ## 4. A schedule
#
# Now there is an order: blocks of queries on threads, tiles of keys in the cache, products in
# registers. For a CPU with AVX-512 the formula stands where four rows of a tile of scores have just
# been made, on vectors of 16, and tanh has become a polynomial (the line goes on):

# %%
scheduled = stage("scheduled")
print(part(scheduled, "X[vj, vi] = table0", 14))

# %% [markdown]
# ## 5. Machine code of a CPU
#
# LLVM makes whole vectors of it: no call and no branch for each score. The end of tanh, for 16
# scores at once: e = exp(-2 abs(x)) by a polynomial, then (1 - e) / (1 + e).

# %%
llvm, assembly = stage("llvm"), stage("asm")
print(f"{len(llvm)} lines of LLVM IR, {len(assembly)} of assembly")
vectors = [line for line in assembly if "%zmm" in line]
division = next(n for n, line in enumerate(vectors) if "vdivps" in line)  # score / cap
print(part(vectors[division + 1 :], "vdivps", 12).expandtabs(4))

# %% [markdown]
# ## 6. A GPU's kernel
#
# The same definition for an NVIDIA A100 (sm_80), in bfloat16, whose scores lie in fragments of
# tensor cores. CUDA C++ of the formula, for the first score that a thread holds: here tanh is made
# of exp2, or of a polynomial near 0.

# %%
half = AttentionSpec(dtype="bfloat16", head_dim=64, causal=True, score_mod=program)
cuda = stage("cuda", "cuda:sm_80", of=half)
print(part(cuda, "= (table0_ptr[", 1))

# %% tags=["compiler"]
ptx, sass = stage("ptx", "cuda:sm_80", of=half), stage("sass", "cuda:sm_80", of=half)
print(part(ptx, "mma.sync", 0, 2).expandtabs(4), "\n")
print("\n".join(sass[1:9]))
print(part(sass, "HMMA", 3, 8))

# %% [markdown]
# ## What the formula costs
#
# Instructions of the main loop, 64 keys for 32 queries of a warp, without and with the formula, all
# branches counted. Products and memory are the same; the formula is paid beside them. Counted, not
# timed: no GPU has run it yet.

# %% tags=["compiler"]
KINDS = {
    "tensor cores": ("HMMA",),
    "special functions": ("MUFU",),
    "floats": ("F",),
    "shared memory": ("LDS", "STS"),
    "global memory": ("LDG", "STG"),
}


def kinds(listing):
    """Instructions of the main loop, by kind."""
    words = [line.split() for line in listing if line.startswith((">", "|"))]
    names = [row[4] if row[3].startswith("@") else row[3] for row in words]
    of = [next((k for k, starts in KINDS.items() if n.startswith(starts)), "rest") for n in names]
    return {kind: of.count(kind) for kind in (*KINDS, "rest")}


plain = stage_text(
    AttentionSpec(dtype="bfloat16", head_dim=64, causal=True), Stage.sass, "forward", "cuda:sm_80"
)
counts = {"plain": kinds(plain.splitlines()), "with the formula": kinds(sass)}
for name, count in counts.items():
    print(f"{name:17}", ", ".join(f"{kind} {n}" for kind, n in count.items()))

figure, (left, right) = plt.subplots(1, 2, num="Stages and instructions", figsize=(9, 3.4))
left.barh(list(stages), list(stages.values()), color="#56B4E9")
left.set(xscale="log", xlabel="lines of text")
left.invert_yaxis()
begun = {name: 0 for name in counts}
for kind in (*KINDS, "rest"):
    now = [count[kind] for count in counts.values()]
    right.bar(list(counts), now, bottom=list(begun.values()), label=kind)
    begun = {name: begun[name] + n for name, n in zip(counts, now, strict=True)}
right.set(ylabel="instructions of the loop", xlim=(-0.5, 3.2))
right.legend(fontsize=8, loc="upper right")
figure.tight_layout()
plt.show()

# %% [markdown]
# Each stage of any problem is printed by `tvm-flash show SPEC --stage STAGE`; the folders that make
# them stand in the same order ([layout](../docs/layout.md)). More variants, with what they cost on
# a CPU: [variants](../docs/variants.md).
