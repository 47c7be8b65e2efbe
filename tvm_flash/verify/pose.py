"""Host tensors that pose as CUDA tensors: the same memory, in a capsule that says CUDA."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import tvm_ffi

_CUDA = 2  # kDLCUDA of dlpack.h
# (code, bits) of DLDataType.
_TYPES = {
    torch.float32: (2, 32),
    torch.float64: (2, 64),
    torch.float16: (2, 16),
    torch.bfloat16: (4, 16),
    torch.int8: (0, 8),
    torch.int16: (0, 16),
    torch.int32: (0, 32),
    torch.int64: (0, 64),
    torch.uint8: (1, 8),
    torch.bool: (6, 8),
}


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    """DLManagedTensor."""


_DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _DELETER)]

# What a capsule's consumer still holds, by the address of its DLManagedTensor.
_held: dict[int, tuple] = {}


@_DELETER
def _release(managed) -> None:
    _held.pop(ctypes.addressof(managed.contents), None)


class _Posing:
    """An object of the DLPack protocol, as tvm_ffi.from_dlpack takes it."""

    def __init__(self, tensor: torch.Tensor, device_id: int):
        self.tensor, self.device_id = tensor, device_id

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self.device_id

    def __dlpack__(self, **_: Any):
        tensor, axes = self.tensor, self.tensor.ndim
        shape = (ctypes.c_int64 * axes)(*tensor.shape)
        strides = (ctypes.c_int64 * axes)(*tensor.stride())
        code, bits = _TYPES[tensor.dtype]
        described = _Tensor(
            tensor.data_ptr(), _CUDA, self.device_id, axes, code, bits, 1, shape, strides, 0
        )
        managed = _Managed(described, None, _release)
        _held[ctypes.addressof(managed)] = (managed, tensor, shape, strides)
        new_capsule = ctypes.pythonapi.PyCapsule_New
        new_capsule.restype = ctypes.py_object
        new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new_capsule(ctypes.addressof(managed), b"dltensor", None)


def as_cuda(tensor: torch.Tensor, device_id: int = 0) -> tvm_ffi.Tensor:
    """A tvm_ffi tensor over the memory of a CPU tensor, which says that it lies on a GPU."""
    return tvm_ffi.from_dlpack(_Posing(tensor.detach(), device_id))
