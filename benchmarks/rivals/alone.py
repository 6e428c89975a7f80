"""Our routes and engine on uvicorn, without Ray: ``python -m rivals.alone`` with a ServeSettings as JSON, and a port."""

from __future__ import annotations

import json
import sys

import uvicorn

from cxr_ray.bundle import read_bundle
from cxr_ray.cpu import use_cores
from cxr_ray.serving.app import ServeSettings, manifest_sha256, model_info, serve_bundle
from cxr_ray.serving.audit import AuditLog
from cxr_ray.serving.edge import Face, build_api
from cxr_ray.serving.metrics import Metrics


def main() -> None:
    """Serve until SIGTERM."""
    settings, port = ServeSettings(**json.loads(sys.argv[1])), int(sys.argv[2])
    use_cores(settings.cores)
    bundle, metrics = read_bundle(settings.bundle), Metrics()
    engine, _ = serve_bundle(settings, bundle, metrics)
    audit = AuditLog(settings.audit, model_sha256=manifest_sha256(bundle))
    api = build_api(Face(engine=engine, info=model_info(bundle), keys=settings.key_ring(), audit=audit, metrics=metrics))
    uvicorn.run(api, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
