"""Addresses, impossible requests and the server's faults; the jobs API itself: tests/integration/test_cluster.py."""

from __future__ import annotations

import json
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from cxr_ray import cli, cluster
from cxr_ray.errors import ClusterError, ConfigError
from cxr_ray.jobs import client
from cxr_ray.jobs.client import JobRecord, Jobs, refuse_impossible, resolve_address


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert resolve_address(None) == "http://127.0.0.1:8265"
    assert resolve_address("head:8265") == "http://head:8265"
    assert resolve_address("https://ray.example.org/") == "https://ray.example.org"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://other:1")
    assert resolve_address(None) == "http://other:1"
    assert resolve_address("http://head:8265") == "http://head:8265"
    with pytest.raises(ConfigError, match="no address of a jobs server"):
        resolve_address("ray://head:10001")


def test_an_entrypoint_must_fit_on_one_node() -> None:
    nodes = [{"CPU": 4.0, "memory": 8 * 2**30}, {"CPU": 2.0, "GPU": 1.0, "memory": 2**30}]
    refuse_impossible({"CPU": 4}, nodes)
    refuse_impossible({"CPU": 2, "GPU": 1}, nodes)
    with pytest.raises(ClusterError, match=r"needs 4 CPU and 1 GPU on one node.*4 CPU and 0 GPU; 2 CPU and 1 GPU"):
        refuse_impossible({"CPU": 4, "GPU": 1}, nodes)
    with pytest.raises(ClusterError, match=r"needs 16 GiB on one node.*8 GiB; 1 GiB"):
        refuse_impossible({"memory": 16 * 2**30}, nodes)
    with pytest.raises(ClusterError, match="by node: none"):
        refuse_impossible({"CPU": 1}, [])


def test_no_server_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    with pytest.raises(ClusterError, match=r"no jobs server answers at http://127\.0\.0\.1:9"):
        Jobs("http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("server", "ours"),
    [
        ("Request failed with status code 404: job x does not exist", "knows no job x"),
        ("Request failed with status code 500: Job with submission_id x already exists", "there is a job x already"),
        ("Package size (600MiB) exceeds the maximum size of 500MiB", "too large to send"),
    ],
)
def test_the_servers_faults_in_our_words(server: str, ours: str) -> None:
    jobs = Jobs.__new__(Jobs)
    jobs.address = "http://head:8265"
    with pytest.raises(ClusterError, match=ours), jobs._explained("x"):
        raise RuntimeError(server)
    with pytest.raises(RuntimeError, match="our bug"), jobs._explained("x"):
        raise RuntimeError("our bug")


def test_a_death_by_signal_is_an_exit_code_of_the_shell() -> None:
    details = {"submission_id": "x", "job_id": None, "entrypoint": "y", "message": None, "start_time": 1500, "end_time": None}
    status = SimpleNamespace(value="FAILED")
    record = client._record(SimpleNamespace(**details, status=status, driver_exit_code=-signal.SIGKILL))
    assert (record.exit_code, record.over, record.started, record.ended) == (137, True, 1.5, None)


class FakeJobs:
    """A server on which every job ends as ``ends`` says, or is interrupted."""

    ends: JobRecord | BaseException
    address = "http://head:8265"

    def __init__(self, address: str | None = None) -> None:
        self.asked: list[Any] = []

    def submit(self, request: Any, *, may_grow: bool = False) -> str:
        return "x"

    def follow(self, job: str, show: Any) -> JobRecord:
        show("a line\n")
        if isinstance(self.ends, BaseException):
            raise self.ends
        return self.ends


def ended(status: str, code: int | None) -> JobRecord:
    return JobRecord("x", status, "true", "the node died", 1.0, 2.0, code)


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        (ended("SUCCEEDED", 0), 0, "x: SUCCEEDED after 1 s"),
        (ended("FAILED", 7), 7, "x: FAILED after 1 s, exit code 7"),
        (ended("FAILED", None), 2, "x failed: the node died"),
        (ended("STOPPED", None), 1, "x: STOPPED"),
        (KeyboardInterrupt(), 130, "x goes on"),
    ],
)
def test_submit_ends_as_the_job_does(
    ends: Any, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FakeJobs, "ends", ends, raising=False)
    monkeypatch.setattr(client, "Jobs", FakeJobs)
    # --json and --debug after the dashes are the job's, not ours
    assert cli.run(["submit", "--", "cxr-ray", "train", "--out", "run", "--json", "--debug"]) == code
    shown = capsys.readouterr()
    assert said in " ".join(shown.err.split())
    assert "--out run is a path in the job's own directory" in " ".join(shown.err.split())
    assert shown.out == "a line\n"


def test_submit_with_json_prints_one_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(FakeJobs, "ends", ended("SUCCEEDED", 0), raising=False)
    monkeypatch.setattr(client, "Jobs", FakeJobs)
    assert cli.run(["submit", "--json", "--", "true"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"job": "x", "address": "http://head:8265", "status": "SUCCEEDED", "exit_code": 0}
    assert "a line" in shown.err


# --- what of cxr_ray.cluster a job counts on --------------------------------------------------------------------------


def test_inside_a_job_its_variables_are_not_named_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    asked: dict[str, Any] = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **arguments: asked.update(arguments))
    job = {"runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "ACTIVE"}, "working_dir": "gcs://x"}, "metadata": {}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    cluster.connect("127.0.0.1:6379")
    assert set(asked["runtime_env"]["env_vars"]) == set(cluster.RAY_ENVIRONMENT) - {"OMP_WAIT_POLICY"}


def test_a_cluster_that_grows_may_be_asked_for_what_it_can_become(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "memory": 1.0})
    monkeypatch.delenv(cluster.CLUSTER_LIMIT, raising=False)
    with pytest.raises(ClusterError, match="8 CPU"):
        cluster.require(8, 1, what="it")
    monkeypatch.setenv(cluster.CLUSTER_LIMIT, "CPU=16,GPU=1")
    cluster.require(8, 1, what="it")
    assert cluster.resources() == {"CPU": 16.0, "GPU": 1.0, "memory": 1.0}
    monkeypatch.setenv(cluster.CLUSTER_LIMIT, "CPU=1")
    assert cluster.resources()["CPU"] == 2.0
    monkeypatch.setenv(cluster.CLUSTER_LIMIT, "many")
    with pytest.raises(ClusterError, match="says nothing"):
        cluster.resources()
