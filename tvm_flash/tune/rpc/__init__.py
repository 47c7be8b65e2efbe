"""Tuning on other machines: a TVM RPC tracker's servers as hardware of a search."""
