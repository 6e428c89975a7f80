"""What travels with a job, and what stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from cxr_ray.errors import ConfigError
from cxr_ray.jobs.request import JobRequest, excludes, parse_environment, unreachable_paths


def test_the_command_reaches_the_shell_as_it_was_given() -> None:
    request = JobRequest(("sh", "-c", "echo 'a b' > $HOME/c"))
    assert request.entrypoint == """sh -c 'echo '"'"'a b'"'"' > $HOME/c'"""
    assert request.runtime_env() == {}
    assert request.needs == {}


def test_what_the_entrypoint_needs() -> None:
    assert JobRequest(("true",), cpus=2, memory_bytes=1 << 30).needs == {"CPU": 2, "memory": 2**30}


def test_data_runs_and_images_stay_here(tmp_path: Path) -> None:
    for file in ("recipe.yaml", "data/covid/dataset.json", "run/run.json", "run/deep/run.json", "src/code.py", ".venv/lib/run.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    environment = JobRequest(("true",), working_dir=str(tmp_path), environment={"A": "1"}).runtime_env()
    assert environment["working_dir"] == str(tmp_path)
    assert environment["env_vars"] == {"A": "1"}
    assert {".git", ".venv", "*.[dD][cC][mM]"} <= set(environment["excludes"])
    assert [pattern for pattern in excludes(str(tmp_path)) if pattern.startswith("/")] == ["/data/covid", "/run"]


def test_rays_own_reader_of_patterns_leaves_them_out(tmp_path: Path) -> None:
    """The patterns are handed to Ray's packaging, and what it packs is looked at."""
    import zipfile

    from ray._private.runtime_env.packaging import create_package

    files = ("recipe.yaml", "cxr/net.py", "data/dataset.json", "data/train/part-0.parquet", "x.dcm", "deep/y.PNG", "deep/z.png")
    source = tmp_path / "source"
    for file in files:
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).write_text("x")
    create_package(str(source), tmp_path / "package.zip", include_gitignore=True, excludes=excludes(str(source)))
    packed = {name for name in zipfile.ZipFile(tmp_path / "package.zip").namelist() if not name.endswith("/")}
    assert packed == {"recipe.yaml", "cxr/net.py"}


def test_a_working_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no directory"):
        JobRequest(("true",), working_dir=str(tmp_path / "absent")).runtime_env()


def test_variables() -> None:
    assert parse_environment(["A=1", "B=x=y", "C=", "KEY"], {"KEY": "secret"}) == {"A": "1", "B": "x=y", "C": "", "KEY": "secret"}
    with pytest.raises(ConfigError) as found:
        parse_environment(["1A=2", "ABSENT", "=x"], {})
    assert len(found.value.faults) == 3


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("train --data s3://b/d --out s3://b/r", []),
        ("train --data /shared/d --out /shared/r", []),
        ("train --data dataset --out=run", ["--data dataset", "--out run"]),
        ("tune f.yaml --data small=here --data big=s3://b/d?x=y --out /o", ["--data here"]),
        ("train --out", []),
    ],
)
def test_paths_that_lead_elsewhere_on_the_cluster(command: str, expected: list[str]) -> None:
    assert unreachable_paths(command.split()) == expected
