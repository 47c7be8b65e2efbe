"""The steps from a user's function to an answer, in order: the layers that imports may go down."""

from typing import NamedTuple

from tvm_flash.bench.table import Table, words


class Layer(NamedTuple):
    """A step: modules or folders of tvm_flash that may import each other and those above."""

    step: str
    names: tuple[str, ...]
    result: str


LAYERS = (
    Layer(
        "for every step",
        ("errors", "machine", "json_fields", "import_lock", "workers"),
        "errors, what this machine is, fields of foreign files, imports that forks wait for, "
        "processes for what may crash or hang",
    ),
    Layer(
        "a function becomes a program",
        ("score",),
        "`ScoreProgram`: a score_mod or mask_mod as straight-line code; causal, window, softcap, "
        "ALiBi are such functions too",
    ),
    Layer(
        "the problem",
        ("problem",),
        "`AttentionSpec`: frozen, validated; its name keys files, symbols and caches. The "
        "arguments of its kernels, one table. Length buckets: a spec's kernels, each for some "
        "lengths. Presets: the specs of a library",
    ),
    Layer("the oracle", ("reference",), "the same attention on torch tensors, in any precision"),
    Layer("the list", ("cases",), "the cases that tests, builds and benchmarks walk"),
    Layer(
        "what is on disk",
        ("artifact",),
        "a built library and its manifest, read and checked ([artifacts.md](artifacts.md))",
    ),
    Layer(
        "what",
        ("definition",),
        "TensorIR: scores, softmax, output and gradients, one named block an array; `derive/`: the "
        "recurrence over keys that is read of those blocks, with proofs",
    ),
    Layer(
        "how",
        ("schedules",),
        "the scheduled function for a target and a config: `cpu/` by s_tir.Schedule, `cuda/` as "
        "TIRx warp programs; configs from `tuning_logs/`",
    ),
    Layer(
        "machine code",
        ("codegen",),
        "object, library and manifest, ahead of time or at first use; `codegen/sass/` reads GPU "
        "code back, and judges spills",
    ),
    Layer("load", ("runtime",), "a callable kernel on torch's threads"),
    Layer(
        "proof without a GPU",
        ("ptx_interpreter", "verify"),
        "PTX executed by numpy with checks and counts; programs and whole libraries run on it, and "
        "the error rule, on a GPU too",
    ),
    Layer(
        "PyTorch",
        ("frontend", "bert_padding", "feature_maps", "flash_attn_interface", "masks"),
        "operators with autograd, and the functions users call",
    ),
    Layer(
        "other libraries' doors",
        ("integrations",),
        "a file or more for each, imported when it is asked for: torch's own attention, "
        "transformers, xFormers and JAX on these kernels",
    ),
    Layer(
        "many processes",
        ("distributed",),
        "a sequence, heads or a batch that ranks share, over the operators of packed sequences; "
        "what DTensor is told ([distributed.md](distributed.md))",
    ),
    Layer(
        "measure",
        ("bench",),
        "times, memory, floors and targets beside SDPA; on GPUs the error rule too",
    ),
    Layer(
        "search",
        ("tune",),
        "strategies propose configs, hardware evaluates them, records remain; `analytical/` and "
        "`simulation/` (an SM from machine code) predict where nothing is measured",
    ),
    Layer(
        "study",
        ("study",),
        "bytes through device memory of three algorithms, counted and from theory; strategies "
        "compared on measured tables",
    ),
    Layer(
        "command line",
        ("cli", "__main__"),
        "`tvm-flash demo`, `build`, `tune`, `verify`, `bench`, `study`, `show`, `cache`, `doctor`",
    ),
)

# Packages at the top of the repository.
TOP = ("schedules", "codegen", "tuning_logs")


def as_table(root) -> str:
    """The layers as a Markdown table; ``root`` is the repository, for what is a folder in it."""
    rows = [
        (layer.step, ", ".join(f"`{_place(name, root)}`" for name in layer.names), layer.result)
        for layer in LAYERS
    ]
    return "\n".join(Table("", words("step", "where", "what comes out"), rows).markdown())


def _place(name: str, root) -> str:
    parent = "" if name in TOP else "tvm_flash/"
    return f"{parent}{name}/" if (root / parent / name).is_dir() else f"{parent}{name}.py"
