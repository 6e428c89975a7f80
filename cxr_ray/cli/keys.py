"""``keys``: make, list and revoke the API keys of a service."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from cxr_ray.cli import console
from cxr_ray.cli.console import Debug, Json
from cxr_ray.errors import CxrRayError

keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys. Example: cxr-ray keys new keys.yaml --id ward-3")
File = Annotated[str, typer.Argument(metavar="FILE", help="Key file: YAML, or JSON by its name; a path or a URI.")]


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.add_typer(keys, name="keys")


@keys.command()
def new(
    file: File,
    id: Annotated[str, typer.Option(help="Stands in the audit log; name a system or a ward, not a person.")],
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="In any 60 s; default: no limit.")] = None,
    expires: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last day (UTC) on which the key is taken.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a key: it is shown this once, and only its SHA-256 goes into FILE.

    Example: cxr-ray keys new keys.yaml --id ward-3 --requests-per-minute 60 --expires 2027-12-31
    """
    from cxr_ray import storage
    from cxr_ray.serving.keys import KeyRecord, digest, new_key, read_keys, write_keys
    from cxr_ray.settings import parse_settings

    records = read_keys(file) if storage.exists(file) else ()
    key = new_key()
    given = {"id": id, "sha256": digest(key), "requests_per_minute": requests_per_minute, "expires": expires and expires.date()}
    write_keys(file, [*records, parse_settings(KeyRecord, given, where="keys new")])
    console.say(f"API key {id}, shown this once:\n  {key}")
    console.result({"file": file, "id": id, "key": key}, next_step=f"cxr-ray serve BUNDLE --keys {file}")


@keys.command("list")
def list_keys(file: File, json: Json = False, debug: Debug = False) -> None:
    """Which keys FILE holds.

    Example: cxr-ray keys list keys.yaml
    """
    from cxr_ray.serving.keys import read_keys

    today = datetime.now(UTC).date()
    records = read_keys(file)
    rows = [
        [
            record.id,
            str(record.requests_per_minute or "no limit"),
            "never" if record.expires is None else f"{record.expires}{' (expired)' if record.expires < today else ''}",
        ]
        for record in records
    ]
    console.table(file, ["id", "a minute", "expires"], rows)
    console.result({"file": file, "keys": [record.model_dump(mode="json", exclude={"sha256"}) for record in records]})


@keys.command()
def revoke(
    file: File,
    id: Annotated[str, typer.Option(help="Of the key.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Take a key out of FILE; a running service refuses it within 30 s.

    Example: cxr-ray keys revoke keys.yaml --id ward-3
    """
    from cxr_ray.serving.keys import read_keys, write_keys

    records = read_keys(file)
    left = [record for record in records if record.id != id]
    if len(left) == len(records):
        raise CxrRayError(f"{file} holds no key {id!r}; it holds: {', '.join(record.id for record in records) or 'none'}")
    write_keys(file, left)
    console.say(f"revoked {id}; {len(left)} keys are left")
    console.result({"file": file, "revoked": id, "left": len(left)})
