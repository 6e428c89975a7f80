"""``submit`` and ``jobs``: commands on a Ray cluster, through its jobs API."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json
from cxr_ray.errors import ClusterError

if TYPE_CHECKING:
    from cxr_ray.jobs.client import JobRecord, Jobs

INTERRUPTED = 130
jobs = typer.Typer(no_args_is_help=True, help="Look at, follow and stop the jobs of a cluster.")
Address = Annotated[str | None, typer.Option(help="Jobs server, http://HEAD:8265; default: RAY_API_SERVER_ADDRESS, else this machine.")]
JobId = Annotated[str, typer.Argument(help="Submission id of the job.", metavar="ID")]


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(submit)
    app.add_typer(jobs, name="jobs")
    for command in (list_, status, logs, stop):
        jobs.command(name=command.__name__.rstrip("_"))(command)


def submit(
    command: Annotated[list[str], typer.Argument(help="What to run on the cluster, after --.", metavar="COMMAND...")],
    address: Address = None,
    working_dir: Annotated[
        str | None,
        typer.Option(help="Directory to send along, without data, images and weights; the command runs in it. Default: nothing is sent."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(help="Variable of the job; KEY alone takes the value it has here. Repeatable.", metavar="KEY[=VALUE]"),
    ] = None,
    submission_id: Annotated[str | None, typer.Option(help="Name of the job; default: Ray makes one.")] = None,
    entrypoint_num_cpus: Annotated[float, typer.Option(min=0, help="CPUs kept for the command itself; 0: it runs on the head.")] = 0,
    entrypoint_num_gpus: Annotated[float, typer.Option(min=0, help="GPUs kept for the command itself.")] = 0,
    entrypoint_memory: Annotated[float, typer.Option(min=0, help="GiB kept for the command itself.")] = 0,
    may_grow: Annotated[
        bool, typer.Option("--may-grow", help="The cluster adds nodes on demand: wait for one that is large enough.")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Submit and leave; the job goes on.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a command on a cluster, follow what it prints, and end with its exit code; Ctrl-C leaves it running.

    Example: cxr-ray submit --address http://head:8265 -- cxr-ray train --recipe cnn-lstm --data s3://bucket/dataset --out s3://bucket/run
    """
    from cxr_ray.jobs.client import Jobs
    from cxr_ray.jobs.request import JobRequest, parse_environment, unreachable_paths

    request = JobRequest(
        command=tuple(command),
        working_dir=working_dir,
        environment=parse_environment(env or [], os.environ),
        submission_id=submission_id,
        cpus=entrypoint_num_cpus,
        gpus=entrypoint_num_gpus,
        memory_bytes=int(entrypoint_memory * 2**30),
    )
    for path in unreachable_paths(request.command):
        console.say(
            f"[bold yellow]note:[/] {path} is a path in the job's own directory, which goes with the job; "
            "give s3://… or the full path of storage that all nodes share"
        )
    client = Jobs(address)
    job = client.submit(request, may_grow=may_grow)
    follow = f"cxr-ray jobs logs {job} --follow --address {client.address}"
    console.say(f"job {job} submitted to {client.address}")
    if no_wait:
        console.result({"job": job, "address": client.address, "status": client.status(job).status}, next_step=follow)
        return
    _finish(client.address, _follow(client, job, follow))


def list_(address: Address = None, json: Json = False, debug: Debug = False) -> None:
    """Every job that was submitted to the cluster, the newest first.

    Example: cxr-ray jobs list --address http://head:8265
    """
    from cxr_ray.jobs.client import Jobs

    client = Jobs(address)
    found = client.all()
    rows = [[record.id, record.status, _clock(record.started), _length(record), record.command] for record in found]
    console.table(f"jobs at {client.address}", ["id", "status", "started (UTC)", "took", "command"], rows)
    console.result({"address": client.address, "jobs": [asdict(record) for record in found]})


def status(job: JobId, address: Address = None, json: Json = False, debug: Debug = False) -> None:
    """How a job stands.

    Example: cxr-ray jobs status raysubmit_4LamXRuQpYdSMg7J
    """
    from cxr_ray.jobs.client import Jobs

    record = Jobs(address).status(job)
    console.say(f"{record.id}: {record.status} after {_length(record)}. {record.message}")
    console.result({"job": asdict(record)})


def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends, and end with its exit code.")] = False,
    address: Address = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """What a job has printed.

    Example: cxr-ray jobs logs raysubmit_4LamXRuQpYdSMg7J --follow
    """
    from cxr_ray.jobs.client import Jobs

    client = Jobs(address)
    if follow:
        _finish(client.address, _follow(client, job, f"cxr-ray jobs logs {job} --follow --address {client.address}"))
        return
    _show(text := client.logs(job))
    console.result({"job": job, "logs": text})


def stop(job: JobId, address: Address = None, json: Json = False, debug: Debug = False) -> None:
    """End a job; a training goes on from its last finished epoch when it is submitted again.

    Example: cxr-ray jobs stop raysubmit_4LamXRuQpYdSMg7J
    """
    from cxr_ray.jobs.client import Jobs

    record = Jobs(address).stop(job)
    if not record.over:
        raise ClusterError(f"{record.id} has not ended yet: {record.status}", hint=f"cxr-ray jobs status {job}")
    console.say(f"{record.id}: {record.status}")
    console.result({"job": asdict(record)})


def _follow(client: Jobs, job: str, again: str) -> JobRecord:
    try:
        return client.follow(job, _show)
    except KeyboardInterrupt:
        console.say(f"\nleft alone: {job} goes on. To follow it: {again}; to end it: cxr-ray jobs stop {job} --address {client.address}")
        raise typer.Exit(INTERRUPTED) from None


def _finish(address: str, record: JobRecord) -> None:
    """Say how the job ended and leave with its exit code."""
    if record.status == "FAILED" and not record.exit_code:  # its command never began, or the node under it died
        raise ClusterError(f"{record.id} failed: {record.message.strip()}", hint=f"cxr-ray jobs logs {record.id} --address {address}")
    console.say(f"{record.id}: {record.status} after {_length(record)}" + (f", exit code {record.exit_code}" if record.exit_code else ""))
    console.result({"job": record.id, "address": address, "status": record.status, "exit_code": record.exit_code})
    if record.status != "SUCCEEDED":
        raise typer.Exit(record.exit_code or 1)


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _clock(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def _length(record: JobRecord) -> str:
    return "-" if record.started is None else f"{(record.ended or time.time()) - record.started:.0f} s"
