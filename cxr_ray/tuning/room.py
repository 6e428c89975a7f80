"""How many trials run at a time. More than fit would wait for each other's resources for ever (Ray's placement groups do not share)."""

from __future__ import annotations

import math

from cxr_ray.cluster import nodes, require, resources
from cxr_ray.training.launch import SPARE_CPUS

TRIAL_CPUS = 0.1
"""Logical CPUs of the process that launches a trial's training; Ray Tune does not take 0."""


def room(trials: int, *, workers: int, use_gpu: bool, wanted: int | None = None) -> int:
    """Trials at a time; Ray must be connected.

    Args:
        trials: How many are to be run.
        workers: Training processes of each: a logical CPU each, and a GPU with ``use_gpu``.
        wanted: What the user asks for. None: as many as the cluster has room for.

    Raises:
        ClusterError: The cluster could never run one trial, or not as many at once as ``wanted``.
    """
    there = resources()
    cpus = there.get("CPU", 0.0) - SPARE_CPUS
    fit = math.floor(cpus / (workers + TRIAL_CPUS) + 1e-9)
    if use_gpu:
        fit = min(fit, int(there.get("GPU", 0.0)) // workers)
    if wanted is not None:
        needed = wanted * workers
        require(needed + wanted * TRIAL_CPUS, needed if use_gpu else 0, what=f"{wanted} trial(s) at a time of {workers} worker(s)")
        fit = wanted
    elif fit < 1:  # one trial may have less than a CPU a worker (cpus_a_worker), if the GPUs are there
        require(TRIAL_CPUS, workers if use_gpu else 0, what=f"a trial of {workers} worker(s)")
    return max(1, min(trials, fit))


def sharing(at_a_time: int) -> int:
    """Trainings that share each node's cores where so many run at a time."""
    return math.ceil(at_a_time / nodes())
