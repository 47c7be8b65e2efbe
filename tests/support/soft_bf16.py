"""LLVM functions that do in integer and float32 code what AVX512_BF16 does in one instruction."""


def _lanes(indices) -> str:
    return f"<16 x i32> <{', '.join(f'i32 {i}' for i in indices)}>"


def _rounded(name: str, value: str) -> str:
    """Bits of ``value`` rounded to nearest even at bit 16, as %{name}."""
    return f"""
  %{name}_bits = bitcast <16 x float> {value} to <16 x i32>
  %{name}_high = lshr <16 x i32> %{name}_bits, splat (i32 16)
  %{name}_odd = and <16 x i32> %{name}_high, splat (i32 1)
  %{name}_half = add <16 x i32> %{name}_bits, splat (i32 32767)
  %{name} = add <16 x i32> %{name}_half, %{name}_odd"""


def _pairs(kind: str, low, high) -> str:
    return f"""
define linkonce_odr <16 x i32> @tvm_flash_pair_{kind}(
    <16 x float> %x, <16 x float> %y) alwaysinline nounwind {{
  %low_part = shufflevector <16 x float> %x, <16 x float> %y, {_lanes(low)}
  %high_part = shufflevector <16 x float> %x, <16 x float> %y, {_lanes(high)}
  {_rounded("low", "%low_part")}
  {_rounded("high", "%high_part")}
  %low_word = lshr <16 x i32> %low, splat (i32 16)
  %high_word = and <16 x i32> %high, splat (i32 -65536)
  %words = or <16 x i32> %low_word, %high_word
  ret <16 x i32> %words
}}
"""


# In place of backward_pairs.PAIRS.
SOFT_PAIRS = _pairs("rows", range(16), range(16, 32)) + _pairs(
    "keys", range(0, 32, 2), range(1, 32, 2)
)

# In place of micro_tile.DOT_BF16.
SOFT_DOT = f"""
define linkonce_odr <16 x float> @tvm_flash_dot_bf16(
    <16 x float> %acc, i32 %pair, <16 x i32> %pairs) alwaysinline nounwind {{
  %first = insertelement <16 x i32> poison, i32 %pair, i64 0
  %a = shufflevector <16 x i32> %first, <16 x i32> poison, {_lanes([0] * 16)}
  %a_shifted = shl <16 x i32> %a, splat (i32 16)
  %b_shifted = shl <16 x i32> %pairs, splat (i32 16)
  %a_masked = and <16 x i32> %a, splat (i32 -65536)
  %b_masked = and <16 x i32> %pairs, splat (i32 -65536)
  %a_low = bitcast <16 x i32> %a_shifted to <16 x float>
  %b_low = bitcast <16 x i32> %b_shifted to <16 x float>
  %a_high = bitcast <16 x i32> %a_masked to <16 x float>
  %b_high = bitcast <16 x i32> %b_masked to <16 x float>
  %low = fmul <16 x float> %a_low, %b_low
  %high = fmul <16 x float> %a_high, %b_high
  %sum = fadd <16 x float> %acc, %low
  %result = fadd <16 x float> %sum, %high
  ret <16 x float> %result
}}
"""
