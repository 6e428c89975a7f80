"""Our service, as ``cxr-ray serve`` starts it: ``python -m rivals.ours`` with a ServeSettings as JSON, a port and a front."""

from __future__ import annotations

import json
import sys

from cxr_ray import front
from cxr_ray.cluster import connected, prepare_environment


def main() -> None:
    """Serve until SIGTERM."""
    settings, port, before = sys.argv[1:]
    front.choose(before)
    prepare_environment()
    from cxr_ray.serving.app import ServeSettings
    from cxr_ray.serving.start import Place, serve_until_stopped

    with connected():
        serve_until_stopped(ServeSettings(**json.loads(settings)), place=Place(port=int(port)), ready=print)


if __name__ == "__main__":
    main()
