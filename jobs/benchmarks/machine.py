"""The machine that the figures are measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import psutil
import torch

from gansfp.cores import cores
from gansfp.device import is_bfloat16_fast


def describe_machine() -> dict[str, str | int | float]:
    """Returns system, processor, cores, memory in GB, GPUs, and the load before the measurements."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _processor(),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": ", ".join(_gpus()) or "none",
        "load": round(os.getloadavg()[0], 1),
    }


def faster_precision() -> str:
    """Returns what "auto" stands for on this machine. Asks for a GPU in another process, so that this one takes none
    of its memory."""
    if torch.cuda.is_available():
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            fast = process.submit(is_bfloat16_fast, "cuda").result()
    else:
        fast = is_bfloat16_fast("cpu")
    return "bfloat16" if fast else "float32"


def _gpus() -> list[str]:
    """Returns the names of the GPUs, as their driver knows them."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def _processor() -> str:
    """Returns the processor's model name as Linux knows it, elsewhere its architecture; psutil has neither."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())
