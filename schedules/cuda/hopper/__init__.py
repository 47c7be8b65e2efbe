"""Kernels for sm_90a: tensor maps, mbarriers and products of warp groups (TMA, wgmma)."""
