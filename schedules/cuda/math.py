"""Elementary functions of the score pipeline on a GPU's special function units."""

from __future__ import annotations

from tvm import tirx

from ...definition.scores import LOG2E


class CudaMath:
    """The functions ``score.legalise`` and the online softmax ask for.

    exp2 is ex2.approx (2 ulp; PTX ISA, ex2), which kernels are compiled for by flushing denormals;
    the others are built on it, because tanh.approx (2^-11) is coarser than float16 results allow.
    """

    def exp2_full(self, x):
        """2**x."""
        return tirx.exp2(x)

    def exp(self, x):
        """e**x."""
        return tirx.exp2(x * _f32(LOG2E))

    weight = exp

    def sigmoid(self, x):
        """1 / (1 + e**-x)."""
        return _f32(1) / (_f32(1) + self.exp(_f32(0) - x))

    def tanh(self, x):
        """1 - 2 / (1 + e**2x); near zero, where that keeps little of the result, x - x**3 / 3.

        A softcap far above all scores takes tanh of such numbers, and multiplies it by the cap.
        """
        name = tirx.Var("x", "float32")
        far = _f32(1) - _f32(2) / (_f32(1) + tirx.exp2(name * _f32(2 * LOG2E)))
        near = name + name * (name * name * _f32(-1 / 3))
        is_near = tirx.And(name < _f32(2.0**-5), name > _f32(-(2.0**-5)))
        return tirx.Let(name, x, tirx.Select(is_near, near, far))


def _f32(value: float):
    return tirx.const(value, "float32")
