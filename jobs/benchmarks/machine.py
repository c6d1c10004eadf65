"""The machine that the figures are measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil
import torch


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> dict[str, str | int | float]:
    """Returns system, processor, cores, memory in GB, GPUs, and the load before the measurements."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _processor(),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": ", ".join(gpus) or "none",
        "load": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    """Returns the processor's model name as Linux knows it, elsewhere its architecture; psutil has neither."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())
