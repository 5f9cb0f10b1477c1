"""S3 in memory, for tests: moto, one request at a time.

By itself it answers requests for one object side by side, and some with 500: one takes what another reads.

    moto_server.py PORT
"""

import io
import sys
import threading
from collections.abc import Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple


class OneAtATime:
    """Passes a request on when all of it is here, so that one that stalls holds nobody up."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.turn = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
        with self.turn:
            return list(self.application(environ, start_response))


class Quiet(WSGIRequestHandler):
    """Writes no line for each request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


run_simple(
    "127.0.0.1",
    int(sys.argv[1]),
    OneAtATime(DomainDispatcherApplication(create_backend_app)),
    threaded=True,
    request_handler=Quiet,
)
