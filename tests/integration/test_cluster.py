"""A cluster of two nodes on this machine, with tokens: jobs, and what becomes of a training whose node dies.

The head has no CPUs, so everything but drivers runs on the other node. Each node is a `ray start --block` of its own, with a variable by
which its processes are found: only those are ever killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cxr_ray.errors import ClusterError

ROOT = Path(__file__).parents[2]
MARK = "CXR_RAY_TEST_NODE"
TOKEN, OTHER_TOKEN = "a" * 64, "b" * 64
BACK_SECONDS = 60.0
"""From a node that is there again to the next finished epoch. The goal is 20 s; measured on two cores: 7 s idle, 27 s at a load of 15."""
ERROR_SECONDS = 120.0
"""From the death of the last node to the end of the job, in words; measured: 87 s."""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def processes_of(node: str) -> dict[int, str]:
    """Process numbers and command lines of all that runs on a node."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"{MARK}={node}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


def kill(processes: list[int]) -> None:
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def wait_for(ready: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if found := ready():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds:g} s for {what}")


class Cluster:
    """A head without CPUs and worker nodes that come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gcs, dashboard, client = free_ports(3)
        self.address = f"http://127.0.0.1:{dashboard}"
        self.nodes: list[str] = []
        self.started: list[subprocess.Popen[bytes]] = []
        (folder / "token").write_text(TOKEN)
        (folder / "token").chmod(0o600)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = kept | {"RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT), "HOME": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
        ports = f"--port={self.gcs} --dashboard-port={dashboard} --ray-client-server-port={client} --dashboard-agent-listen-port=0"
        self._start("head", ["--head", *ports.split(), "--num-cpus=0"])
        wait_for(self.answers, "the head to answer")

    def _start(self, name: str, arguments: list[str]) -> None:
        node = f"{self.folder.name}-{name}"
        self.nodes.append(node)
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--object-store-memory=200000000", *arguments]
        # a dead node is known to be dead after 5 s instead of 17: see docs/cluster.md
        health = {"RAY_health_check_period_ms": "1000"}
        with (self.folder / f"{name}.log").open("w") as log:
            self.started.append(
                subprocess.Popen(
                    [*command, f"--temp-dir={self.folder / name}"],
                    env=self.environment | health | {MARK: node, "RAY_AUTH_TOKEN_PATH": str(self.folder / "token")},
                    start_new_session=True,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )

    def answers(self) -> bool:
        try:
            return isinstance(self.client(), object)
        except ClusterError:
            return False

    def client(self) -> Any:
        from cxr_ray.jobs.client import Jobs

        return Jobs(self.address)

    def cpus(self) -> float:
        """Of the nodes that live, as the cluster knows them."""
        return sum(node.get("CPU", 0.0) for node in self.client()._nodes())

    def ended(self, job: str) -> Any:
        """The record of a job when it is over."""
        client = self.client()
        wait_for(lambda: client.status(job).over, f"{job} to end", 180)
        return client.status(job)

    def add_node(self) -> None:
        """Start a worker node of four logical CPUs and wait until the cluster knows it."""
        before = self.cpus()
        self._start(f"worker{len(self.nodes)}", [f"--address=127.0.0.1:{self.gcs}", "--num-cpus=4"])
        wait_for(lambda: self.cpus() > before, "the node to join")

    def kill_raylet(self) -> None:
        """Kill the newest node as a power cut would: its raylet is gone, and with it all it runs."""
        (raylet,) = [process for process, command in processes_of(self.nodes[-1]).items() if "raylet/raylet" in command.split(" ")[0]]
        os.kill(raylet, signal.SIGKILL)

    def run(self, *arguments: str, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
        """`cxr-ray ARGUMENTS --address …`, as a person at another machine gives it."""
        own = {"RAY_AUTH_TOKEN": token} if token else {}
        head, tail = arguments[:1], arguments[1:]
        place = [*head, "--address", self.address] if head[0] == "submit" else [*head, tail[0], "--address", self.address]
        return subprocess.run(
            [sys.executable, "-m", "cxr_ray", *place, *(tail if head[0] == "submit" else tail[1:])],
            env=self.environment | own,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def end(self) -> None:
        for node in self.nodes:
            kill(list(processes_of(node)))
        for process in self.started:
            process.wait()


def forget_token() -> None:
    """Ray keeps the first token it reads for the life of a process: another cluster of this process would be spoken to with it."""
    from ray._raylet import AuthenticationTokenLoader

    AuthenticationTokenLoader.instance().reset_cache()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The head; a token for this process's own clients."""
    with tempfile.TemporaryDirectory(prefix="cxr-", ignore_cleanup_errors=True) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        patch.setenv("RAY_API_SERVER_ADDRESS", "set by the client")
        forget_token()
        started = None
        try:
            started = Cluster(Path(folder))
            yield started
        finally:
            if started is not None:
                started.end()
            forget_token()


@pytest.fixture
def two_nodes(cluster: Cluster) -> Cluster:
    """The head and one node of four CPUs."""
    if cluster.cpus() == 0:
        cluster.add_node()
    return cluster


CXR_RAY = (sys.executable, "-m", "cxr_ray")


@pytest.fixture(scope="module")
def dataset(cluster: Cluster) -> str:
    """Phantoms, ingested by a job."""
    if cluster.cpus() == 0:
        cluster.add_node()
    images, out = cluster.folder / "phantoms", str(cluster.folder / "dataset")
    subprocess.run([*CXR_RAY, "phantoms", "--out", str(images), "--count", "60"], env=cluster.environment, check=True, capture_output=True)
    done = cluster.run("submit", "--", *CXR_RAY, "ingest", str(images), "--out", out, "--size", "48")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def training(dataset: str, run: Path, epochs: int) -> list[str]:
    settings = [f"training.epochs={epochs}", "training.batch_size=2", "model.rnn.hidden_size=8"]
    return [*CXR_RAY, "train", "--recipe", "demo", "--data", dataset, "--out", str(run), *settings]


def epochs(run: Path) -> list[dict[str, Any]]:
    file = run / "history.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


# --- jobs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "what"), [(None, "without a token"), (OTHER_TOKEN, "with this token")], ids=["no token", "another token"]
)
def test_without_the_clusters_token_a_job_is_refused(cluster: Cluster, token: str | None, what: str) -> None:
    done = cluster.run("submit", "--", "true", token=token)
    assert done.returncode == 2, done.stderr
    assert f"refuses us {what}" in " ".join(done.stderr.split())
    assert TOKEN not in done.stdout + done.stderr
    assert cluster.run("jobs", "list", token=token).returncode == 2


def test_a_training_goes_through_the_jobs_api(two_nodes: Cluster, dataset: str) -> None:
    run = two_nodes.folder / "first"
    # a variable that cxr_ray itself hands to Ray's workers: both in one job were a clash
    own = ("--submission-id", "first", "--env", "OMP_WAIT_POLICY=PASSIVE", "--json")
    done = two_nodes.run("submit", *own, "--", *training(dataset, run, 2))
    assert done.returncode == 0, done.stderr
    assert "epoch   2/2" in done.stderr
    answer = json.loads(done.stdout)
    assert answer == {"job": "first", "address": two_nodes.address, "status": "SUCCEEDED", "exit_code": 0}
    assert [record["epoch"] for record in epochs(run)] == [0, 1]
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    status = two_nodes.run("jobs", "status", "first", "--json")
    assert json.loads(status.stdout)["job"]["status"] == "SUCCEEDED"
    assert "first" in [job["id"] for job in json.loads(two_nodes.run("jobs", "list", "--json").stdout)["jobs"]]
    assert "epoch   1/2" in two_nodes.run("jobs", "logs", "first").stdout
    again = two_nodes.run("submit", "--submission-id", "first", "--", "true")
    assert (again.returncode, "a job first already" in again.stderr) == (2, True), again.stderr


def test_a_job_ends_with_its_own_exit_code_and_can_be_stopped(two_nodes: Cluster) -> None:
    assert two_nodes.run("submit", "--", "sh", "-c", "exit 7").returncode == 7
    left = two_nodes.run("submit", "--no-wait", "--submission-id", "long", "--json", "--", "sleep", "600")
    assert json.loads(left.stdout)["job"] == "long"
    assert json.loads(two_nodes.run("jobs", "stop", "long", "--json").stdout)["job"]["status"] == "STOPPED"
    assert two_nodes.run("jobs", "status", "no-such-job").returncode == 2


def test_resources_that_never_come_are_refused_at_once(two_nodes: Cluster, dataset: str) -> None:
    before = time.monotonic()
    done = two_nodes.run("submit", "--entrypoint-num-gpus", "1", "--", "true")
    assert done.returncode == 2
    assert "needs 1 GPU on one node, and no node has that (by node: 0 GPU; 0 GPU)" in " ".join(done.stderr.split())
    inside = two_nodes.run("submit", "--", *training(dataset, two_nodes.folder / "gpus", 2), "--gpu")
    assert inside.returncode == 2
    assert "needs 1 GPU (there are 0)" in " ".join(inside.stdout.split())
    assert time.monotonic() - before < 60


# --- deaths of nodes ----------------------------------------------------------------------------------------------------


def test_a_training_survives_the_death_of_its_node(
    two_nodes: Cluster, dataset: str, record_property: Callable[[str, object], None]
) -> None:
    run = two_nodes.folder / "survives"
    job = two_nodes.run("submit", "--no-wait", "--submission-id", "survives", "--", *training(dataset, run, 12))
    assert job.returncode == 0, job.stderr
    wait_for(lambda: len(epochs(run)) >= 3, "three epochs", 90)
    two_nodes.kill_raylet()
    dead = time.monotonic()
    wait_for(lambda: two_nodes.cpus() == 0, "the cluster to know that the node is dead")
    record_property("seconds_to_know", time.monotonic() - dead)
    before = epochs(run)
    assert len(before) < 12, "it ended before its node died"
    two_nodes.add_node()
    there = time.monotonic()
    wait_for(lambda: len(epochs(run)) > len(before), "the first epoch on the new node")
    seconds = time.monotonic() - there
    record_property("seconds_to_the_next_epoch", seconds)
    record = two_nodes.ended("survives")
    assert record.exit_code == 0, two_nodes.client().logs("survives")
    history = epochs(run)
    assert [line["epoch"] for line in history] == list(range(12))
    assert history[: len(before)] == before, "finished epochs were trained again: more than a checkpoint interval is lost"
    assert seconds <= BACK_SECONDS


def test_with_no_node_left_a_training_ends_in_words(
    two_nodes: Cluster, dataset: str, record_property: Callable[[str, object], None]
) -> None:
    run = two_nodes.folder / "ends"
    job = two_nodes.run("submit", "--no-wait", "--submission-id", "ends", "--", *training(dataset, run, 500))
    assert job.returncode == 0, job.stderr
    wait_for(lambda: epochs(run), "an epoch", 90)
    two_nodes.kill_raylet()
    dead = time.monotonic()
    record = two_nodes.ended("ends")
    seconds = time.monotonic() - dead
    record_property("seconds_to_the_error", seconds)
    said = " ".join(two_nodes.client().logs("ends").split())
    assert record.exit_code == 2, said
    assert "error: Ray could not run the workers: no node has room for them" in said
    assert "the same command goes on where it stopped" in said
    assert seconds <= ERROR_SECONDS
