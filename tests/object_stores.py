"""An S3-speaking server on loopback, moto's, that can be told to fail now and then."""

import contextlib
import logging
import os
import random
import threading
import urllib.request

BUCKET = "bucket"


class Faults:
    """A WSGI application before moto's, which answers some requests with 500 and 503, before or after they are done.

    A real bucket decides whether an object is new (If-None-Match) and writes it as one step; moto's threads do not, so
    requests that change something pass one at a time.

    Attributes:
      share: of the requests that fail.
      requests: the number of all of them.
      failed: the number of those that have failed, by status.
      client: for the bucket.
    """

    def __init__(self, application, seed=0):
        self._application, self._rng, self._lock = application, random.Random(seed), threading.Lock()
        self.share, self.requests, self.failed = 0.0, 0, {500: 0, 503: 0}
        self.client = None

    def __call__(self, environ, start_response):
        with self._lock:
            self.requests += 1
            fails, done = self._rng.random() < self.share, self._rng.random() < 0.5
            status = self._rng.choice(list(self.failed))
        answer = []
        if fails and not done:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        else:
            changes = environ["REQUEST_METHOD"] not in ("GET", "HEAD")
            with self._lock if changes else contextlib.nullcontext():
                answer = self._application(environ, (lambda *given: None) if fails else start_response)
        if not fails:
            return answer
        self.failed[status] += 1
        code, words = {500: ("InternalError", "Internal Server Error"), 503: ("SlowDown", "Slow Down")}[status]
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{words}</Message></Error>'.encode()
        start_response(f"{status} {words}", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


@contextlib.contextmanager
def s3():
    """Run a server with an empty bucket, to which the variables of the environment lead; yield its `Faults`."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    faults = Faults(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, faults, threaded=True)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.port}"
    variables = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    # All servers of a process have the same buckets.
    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST")).close()
    faults.client = boto3.client("s3", endpoint_url=url)
    faults.client.create_bucket(Bucket=BUCKET)
    try:
        yield faults
    finally:
        server.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
