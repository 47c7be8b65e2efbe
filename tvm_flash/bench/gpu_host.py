"""What a measurement on a GPU ran on: device, driver, libraries, clocks."""

from __future__ import annotations

import subprocess
from importlib import metadata

import torch

# Field of nvidia-smi --query-gpu -> key of the document.
FIELDS = {
    "name": "name",
    "driver_version": "driver",
    "clocks.sm": "sm_clock",
    "clocks.max.sm": "sm_clock_max",
    "clocks.mem": "memory_clock",
    "power.draw": "power",
    "power.limit": "power_limit",
    "temperature.gpu": "temperature",
}
PACKAGES = ("triton", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")


def gpu_fields() -> dict:
    """torch's first CUDA device, and the libraries that contenders are made of."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "driver": clocks().get("driver"),
        "cuda": torch.version.cuda,
        "versions": installed_versions(),
    }


def installed_versions() -> dict[str, str]:
    """Versions of PACKAGES, those that are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def clocks() -> dict[str, str]:
    """What nvidia-smi says now of the first device; empty without it."""
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_clocks(done.stdout)


def parse_clocks(text: str) -> dict[str, str]:
    """The first line of nvidia-smi's answer by FIELDS."""
    values = [value.strip() for value in text.partition("\n")[0].split(",")]
    known = zip(FIELDS.values(), values, strict=False)
    return {key: value for key, value in known if not value.startswith("[")}
