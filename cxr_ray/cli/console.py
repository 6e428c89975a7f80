"""What the commands say: people read stderr, programs read one JSON object on stdout."""

from __future__ import annotations

import json as jsonlib
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

_state = {"json": False, "debug": False}
_people = Console(stderr=True, highlight=False, soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; text for people goes to stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the log.")]


def reset(*, json: bool, debug: bool) -> None:
    """Set how this call speaks, and set up logging: the only place that does."""
    _state.update(json=json, debug=debug)
    logging.basicConfig(
        level=logging.INFO if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )


def debugging() -> bool:
    """Whether ``--debug`` was given."""
    return _state["debug"]


def say(text: str = "") -> None:
    """A line for people; ``[bold]…[/]`` is markup."""
    _people.print(text)


def fail(message: str, hint: str | None) -> None:
    """The one message of a command that could not do its work."""
    _people.print("[bold red]error:[/] ", end="")
    _people.print(message, markup=False)
    if hint:
        _people.print(f"  try: {hint}", markup=False)
    if debugging() and sys.exc_info()[0] is not None:
        traceback.print_exc()


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A small table for people."""
    sheet = Table(title=title, title_justify="left", header_style="bold", show_edge=False)
    for number, column in enumerate(columns):
        prose = any(len(row[number].split()) > 4 for row in rows)  # sentences to the left, figures to the right
        sheet.add_column(column, justify="left" if number == 0 or prose else "right", overflow="fold")
    for row in rows:
        sheet.add_row(*row)
    _people.print(sheet)


_stdout: TextIO | None = None


@contextmanager
def stdout_for_result() -> Iterator[None]:
    """With ``--json``, whatever else prints to stdout in this block (Ray does) goes to stderr."""
    global _stdout
    if not _state["json"]:
        yield
        return
    _stdout = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _stdout = None


_captured: list[dict[str, Any]] | None = None


@contextmanager
def captured() -> Iterator[list[dict[str, Any]]]:
    """Commands run within this block hand their results to the list instead of printing them."""
    global _captured
    _captured = []
    try:
        yield _captured
    finally:
        _captured = None


def result(data: Mapping[str, Any], *, next_step: str | None = None) -> None:
    """End of a command: the JSON object if asked for, and what to type next."""
    if _captured is not None:
        _captured.append(dict(data))
        return
    if _state["json"]:
        out = _stdout or sys.stdout
        out.write(jsonlib.dumps(dict(data), ensure_ascii=False, allow_nan=False) + "\n")
        out.flush()
    if next_step:
        _people.print("next: ", end="")
        _people.print(next_step, markup=False)


class Meter:
    """A progress bar that is told how much is done."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task

    def update(self, done: int, total: int, note: str = "") -> None:
        """``done`` of ``total``; ``note`` stands behind the bar."""
        self._progress.update(self._task, completed=done, total=total, note=note)


@contextmanager
def progress(name: str) -> Iterator[Meter]:
    """A bar with an estimate, on stderr; quiet where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=_people, transient=True, disable=not _people.is_terminal) as bar:
        yield Meter(bar, bar.add_task(name, total=None, note=""))
