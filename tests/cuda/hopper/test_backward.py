"""The backward for sm_90a on the shared list of cases, interpreted under random schedules."""

import dataclasses
from functools import cache

import pytest
from case_factors import factors, sweeping
from interpreted import InterpretedKernel, aligned_rows, interpreted, shuffled

import tvm_flash
from tvm_flash.cases import CORRECTNESS, make_inputs
from tvm_flash.codegen.cuda import kernel_sources, ptx_of, ptx_version
from tvm_flash.codegen.nvcc import assemble, compile_ptx
from tvm_flash.codegen.sass.listing import disassemble
from tvm_flash.frontend import ops, placement
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.hopper.backward_config import HopperBackwardConfig
from tvm_flash.schedules.cuda.hopper.defaults import hopper_backward_configs
from tvm_flash.schedules.cuda.select import cuda_programs
from tvm_flash.verify.rule import judged

ARCH = ARCHS["sm_90a"]
