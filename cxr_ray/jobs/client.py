"""The jobs API of a cluster, its faults in our words. Ray is imported inside the functions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cxr_ray.cluster import prepare_environment
from cxr_ray.errors import ClusterError, ConfigError
from cxr_ray.jobs.request import JobRequest

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
FINAL = ("SUCCEEDED", "FAILED", "STOPPED")
POLL_SECONDS = 0.5
MOST_NODES = 10_000
"""Living and dead: Ray lists no more."""
STOP_SECONDS = 20.0
"""So long ``stop`` waits for a job to end; Ray kills it after three."""
UNITS = {"CPU": 1.0, "GPU": 1.0, "memory": 2.0**30}
_TOKEN_HINT = "RAY_AUTH_TOKEN_PATH=FILE with the cluster's token (or RAY_AUTH_TOKEN, or ~/.ray/auth_token)"


@dataclass(frozen=True)
class JobRecord:
    """What the cluster knows of a job."""

    id: str
    status: str
    """``PENDING``, ``RUNNING``, or one of :data:`FINAL`."""
    command: str
    message: str
    started: float | None
    """Unix time, s."""
    ended: float | None
    exit_code: int | None
    """Of the command; a death by signal N is 128 + N. None: it has not ended, or never began."""

    @property
    def over(self) -> bool:
        """Whether it has ended, in whichever way."""
        return self.status in FINAL


def resolve_address(address: str | None) -> str:
    """The URL of the jobs server: ``address``, else ``RAY_API_SERVER_ADDRESS``, else this machine's.

    Raises:
        ConfigError: It is not of the form ``http://host:8265``.
    """
    text = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    url = text if "://" in text else f"http://{text}"
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError([f"{text} is no address of a jobs server: expected http://HOST:8265"], where="--address")
    return url.rstrip("/")


class Jobs:
    """The jobs of the cluster at ``address``. Every method raises :class:`ClusterError` where the server is gone or refuses us.

    Args:
        address: See :func:`resolve_address`.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = resolve_address(address)
        prepare_environment()
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # Ray lets this variable and RAY_ADDRESS override its argument
        from ray.job_submission import JobSubmissionClient

        for name in ("job.sdk", "dashboard_sdk"):  # each sets its own level when it is imported
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        with self._explained():
            self._client: Any = JobSubmissionClient(self.address)

    def submit(self, request: JobRequest, *, may_grow: bool = False) -> str:
        """Start a job.

        Args:
            request: What.
            may_grow: The cluster adds nodes on demand: do not refuse what no node of now could give.

        Returns:
            Its submission id.

        Raises:
            ClusterError: No node could ever run its entrypoint, or the id is taken.
        """
        if request.needs and not may_grow:
            refuse_impossible(request.needs, self._nodes())
        with self._explained(request.submission_id):
            return str(
                self._client.submit_job(
                    entrypoint=request.entrypoint,
                    runtime_env=request.runtime_env(),
                    submission_id=request.submission_id,
                    entrypoint_num_cpus=request.cpus or None,
                    entrypoint_num_gpus=request.gpus or None,
                    entrypoint_memory=request.memory_bytes or None,
                )
            )

    def status(self, job: str) -> JobRecord:
        """What is known of one job."""
        with self._explained(job):
            return _record(self._client.get_job_info(job))

    def all(self) -> list[JobRecord]:
        """Every job that was submitted, the newest first; drivers that joined the cluster themselves are left out."""
        with self._explained():
            found = [_record(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda record: record.started or 0.0, reverse=True)

    def logs(self, job: str) -> str:
        """All that the job has printed."""
        with self._explained(job):
            return str(self._client.get_job_logs(job))

    def follow(self, job: str, show: Callable[[str], None]) -> JobRecord:
        """Hand over what the job prints until it ends; a connection that breaks is made anew, and nothing is shown twice."""
        import aiohttp

        shown = 0

        async def tail() -> None:
            nonlocal shown
            seen = 0  # each connection begins with the first line
            async for chunk in self._client.tail_job_logs(job):
                fresh = chunk[max(0, shown - seen) :]
                seen += len(chunk)
                shown = max(shown, seen)
                if fresh:
                    show(fresh)

        while True:
            with contextlib.suppress(RuntimeError, aiohttp.ClientError):  # the connection broke; whether the job is there says ``status``
                asyncio.run(tail())
            record = self.status(job)
            if record.over:
                return record
            time.sleep(POLL_SECONDS)

    def stop(self, job: str) -> JobRecord:
        """Ask the job to end and wait for it, at most :data:`STOP_SECONDS`."""
        with self._explained(job):
            self._client.stop_job(job)
        limit = time.monotonic() + STOP_SECONDS
        while not (record := self.status(job)).over and time.monotonic() < limit:
            time.sleep(POLL_SECONDS)
        return record

    def _nodes(self) -> list[dict[str, float]]:
        """What each living node has in all."""
        from ray.util.state import list_nodes

        with self._explained():
            nodes = list_nodes(address=self.address, limit=MOST_NODES, detail=True)
        return [dict(node.resources_total) for node in nodes if node.state == "ALIVE"]  # Ray's own filter fails once a node has died

    @contextlib.contextmanager
    def _explained(self, job: str | None = None) -> Iterator[None]:
        """Ray's and requests' errors as ours."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            what = "with this token" if "Authentication failed" in str(error) else "without a token"
            raise ClusterError(f"{self.address} refuses us {what}", hint=_TOKEN_HINT) from error
        except (ConnectionError, requests.exceptions.RequestException) as error:
            hint = (
                "--address http://HEAD:8265; from outside: ray dashboard cluster.yaml, kubectl port-forward or ssh -L 8265:localhost:8265"
            )
            raise ClusterError(f"no jobs server answers at {self.address}", hint=hint) from error
        except (RuntimeError, ValueError) as error:
            explained = self._of_server(str(error), job)
            if explained is None:
                raise
            raise explained from error

    def _of_server(self, text: str, job: str | None) -> ClusterError | None:
        if "status code 404" in text or "does not exist" in text:
            return ClusterError(f"{self.address} knows no job {job}", hint="cxr-ray jobs list")
        if "already exists" in text or "already been used" in text:
            return ClusterError(f"there is a job {job} already", hint="another --submission-id, or none")
        if "exceeds the maximum size" in text:
            return ClusterError("the working directory is too large to send", hint="a smaller --working-dir, or a .gitignore in it")
        return None


def refuse_impossible(needs: dict[str, float], nodes: list[dict[str, float]]) -> None:
    """Make sure that one node has in all what an entrypoint needs, before it waits for ever.

    Args:
        needs: Of the entrypoint, in Ray's units.
        nodes: Resources of each node.

    Raises:
        ClusterError: None has; the message says what there is.
    """
    if any(all(node.get(name, 0.0) >= amount for name, amount in needs.items()) for node in nodes):
        return
    there = "; ".join(_listed({name: node.get(name, 0.0) for name in needs}) for node in nodes) or "none"
    raise ClusterError(
        f"the job's entrypoint needs {_listed(needs)} on one node, and no node has that (by node: {there})",
        hint="a smaller --entrypoint-num-cpus, -num-gpus or -memory; --may-grow if the cluster adds nodes on demand",
    )


def _listed(amounts: dict[str, float]) -> str:
    return " and ".join(f"{amount / UNITS[name]:g} {'GiB' if name == 'memory' else name}" for name, amount in amounts.items())


def _record(details: Any) -> JobRecord:
    code = details.driver_exit_code
    return JobRecord(
        id=details.submission_id or details.job_id,
        status=str(getattr(details.status, "value", details.status)),
        command=details.entrypoint,
        message=details.message or "",
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        exit_code=128 - code if code is not None and code < 0 else code,
    )
