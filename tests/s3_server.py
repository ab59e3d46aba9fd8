"""A server that speaks as much of S3 as is needed to store, multipart uploads included, and to delete."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class S3Server:
    """What a bucket holds.

    Attributes:
        url: its address.
        objects: content and headers by path, such as `/bucket/prefix/key`.
        refuses: the status that every request gets instead of being done.
        requests: their methods.
        begun: set by the first request.
        delay: for how many seconds a `PUT` waits before it is done.
    """

    url: str = ""
    objects: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)
    parts: dict[str, tuple[dict[int, bytes], dict[str, str]]] = field(default_factory=dict)
    refuses: int | None = None
    requests: list[str] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)
    delay: float = 0


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A running one."""
    state = S3Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.requests.append(self.command)
            state.begun.set()
            if state.refuses is not None:
                self._answer(state.refuses)
                return
            parts = urlsplit(self.path)
            path, query = unquote(parts.path), parse_qs(parts.query, keep_blank_values=True)
            headers = {name.lower(): value for name, value in self.headers.items()}
            if "uploads" in query:
                state.parts["1"] = ({}, headers)
                self._answer(
                    200, "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
                )
            elif "partNumber" in query:
                state.parts["1"][0][int(query["partNumber"][0])] = body
                self._answer(200)
            elif "uploadId" in query:
                found, first = state.parts.pop("1")
                state.objects[path] = (b"".join(found[number] for number in sorted(found)), first)
                self._answer(200, "<CompleteMultipartUploadResult><ETag>a</ETag></CompleteMultipartUploadResult>")
            elif "delete" in query:
                keys = re.findall("<Key>(.*?)</Key>", body.decode())
                for key in keys:
                    state.objects.pop(f"{path}/{key}", None)
                deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
                self._answer(200, f"<DeleteResult>{deleted}</DeleteResult>")
            elif self.command == "PUT":
                time.sleep(state.delay)
                state.objects[path] = (body, headers)
                self._answer(200)
            else:
                self._answer(501)

        def _answer(self, status: int, text: str = "") -> None:
            self.send_response(status)
            self.send_header("ETag", '"a"')
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_PUT = do_POST = do_DELETE = do_GET = _handle  # noqa: N815 -- the standard library's names

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
