from __future__ import annotations

from cxr_ray.cli.reproduce import _command


def test_the_page_names_no_folder_of_this_machine() -> None:
    said = _command(["a system"], "/home/me/plan.yaml", ["key=/secret/place/data/", "other=s3://bucket/x"], ["weights=/home/me/file.pth"])
    assert said == "cxr-ray reproduce 'a system' --plan plan.yaml --data key=data --data other=x --let weights=file.pth"
