"""What must be so before Ray starts."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import ray
from cxr_ray.cluster import connect
from cxr_ray.errors import ClusterError
try:
    connect("local")
except ClusterError as error:
    print(error)
"""


def test_ray_imported_too_early_is_said_in_words() -> None:
    """Ray reads the authentication mode once; a cluster of ours would then refuse this very process, after 20 s and in Ray's words."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    answer = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    assert "prepare_environment() before anything imports ray" in answer.stdout
