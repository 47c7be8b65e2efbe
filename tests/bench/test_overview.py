"""What a GPU's run shows at its end."""

from rich.console import Console

from tvm_flash.bench.overview import overview_tables
from tvm_flash.cli.show_table import drawn, fitting

TITLES = {"kernels": "checked", "lengths": "sizes", "more lengths": "sizes", "decode": "few",
          "candidates": "configs"}  # fmt: skip
PEERS = ("sdpa_cudnn", "sdpa_flash", "sdpa_efficient", "flex")


def cell(section, direction="forward", **fields):
    problem = {
        "dtype": "bfloat16", "head_dim": 128, "seqlen_q": 4096, "seqlen_k": 4096, "causal": True,
        "batch": 4, "heads": 16, "kv_heads": 16,
    }  # fmt: skip
    timed = {
        "seconds": {"tvm_flash": 1e-3}, "gflops": {"tvm_flash": 4e5}, "of_floor": 0.5,
        "ratio": {"sdpa_cudnn": 0.9, "sdpa_flash": 1.25}, "missing": {"flex": "no triton"},
        "least_bytes": 2 * 10**9,
    }  # fmt: skip
    return {
        "section": section,
        "kind": "time",
        "direction": direction,
        **problem,
        **timed,
        **fields,
    }


def rows_of(table):
    return [[getattr(text, "text", text) for text in row] for row in table.rows]


def test_lengths_are_one_table_in_order():
    cells = [
        cell("lengths", "backward"),
        cell("lengths", seqlen_q=16384, seqlen_k=16384),
        cell("more lengths", causal=False),
        cell("more lengths", head_dim=64),
        cell("more lengths", dtype="float16"),
        {**cell("lengths"), "skipped": "no kernel", "seconds": {}, "gflops": {}},
    ]
    del cells[-1]["gflops"]
    (table,) = overview_tables(cells, TITLES)
    assert [row[:2] for row in rows_of(table)] == [
        ["D=64 causal S=4096", "forward"],
        ["D=128 causal S=16384", "forward"],
        ["D=128 full S=4096", "forward"],
        ["fp16 D=128 causal S=4096", "forward"],
        ["D=128 causal S=4096", "backward"],
    ]
    assert rows_of(table)[0][2:] == ["400.0", "50%", "0.90", "1.25", "-"]
    assert [c.name for c in table.columns][-3:] == ["cudnn", "flash", "flex"]


def test_few_queries_are_told_by_bytes():
    few = cell("decode", seqlen_q=1, head_dim=128, batch=16, causal=False)
    (table,) = overview_tables([few], TITLES)
    assert table.columns[2].heading == "GB/s"
    assert rows_of(table)[0][:3] == ["D=128 S=4096 B=16", "forward", "2000"]


def test_all_peers_fit_into_80_columns():
    ratios = dict.fromkeys(PEERS, 12.34)
    (table,) = overview_tables([cell("lengths", "backward", ratio=ratios, missing={})], TITLES)
    kept, left_out = fitting(table, 80)
    console = Console(width=80)
    with console.capture() as shown:
        console.print(drawn(kept, 80))
    assert not left_out and shown.get().count("12.34") == 4


def test_searches_and_kernels():
    search = {
        "default_seconds": 2e-3, "best_seconds": 1e-3, "ratio": 0.5, "failures": {"spill": 1},
        "candidates": [{}] * 4, "agreement": {"analytical": 0.5},
    }  # fmt: skip
    known = {"kind": "search", "section": "candidates", "case": "attn_fwd"}
    wrong = {"kind": "kernel", "section": "kernels", "case": "attn_bwd", "threads": 1,
             "device": "cuda", "right": False, "errors": {}, "failure": "tall: Boom"}  # fmt: skip
    cells = [{**known, "search": search}, {**known, "error": "the default is wrong"}, wrong]
    checked, searches = overview_tables(cells, TITLES)
    assert rows_of(checked) == [["attn_bwd", "cuda", "tall: Boom"]]
    assert rows_of(searches)[0] == ["attn_fwd", "2", "1", "0.500", "4", "0.50", "1 spill"]
    assert rows_of(searches)[1][:2] == ["attn_fwd", "failed"]
