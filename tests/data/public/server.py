"""A server on the loopback that sends files as public ones do: with tags and ranges, and broken off where told."""

import contextlib
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Files(BaseHTTPRequestHandler):
    def do_GET(self):
        served = self.server
        name = self.path.lstrip("/")
        served.asked.append((name, self.headers.get("Range")))
        content = served.contents.get(name)
        if content is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        if served.ranges and self.headers.get("Range") and self.headers.get("If-Range") == tag:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        end = served.cut.pop(name, len(content))
        with contextlib.suppress(OSError):
            self.wfile.write(content[start:end])

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def serving(contents):
    """Yield a server of these contents by name; ``cut`` says where the next reply breaks off."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.contents, server.asked, server.cut, server.ranges = dict(contents), [], {}, True
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
