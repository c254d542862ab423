"""A proxy that writes down what clients send and the server answers: RECORD names the file.

tests/fixtures/clients/ holds such files, which tests/it/serve_clients.rs sends again.
"""

import base64
import contextlib
import http.server
import json
import os
import pathlib
import threading
import urllib.error
import urllib.request

HEADERS = ["accept", "authorization", "content-type", "user-agent", "x-secret-key"]
PICTURES = pathlib.Path(__file__).resolve().parent.parent.parent / "assets/pictures"


@contextlib.contextmanager
def recorded(url):
    """The proxy's address, if it is asked for."""
    path = os.environ.get("RECORD")
    if not path:
        yield url
        return
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.behind, server.exchanges = url, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    write(pathlib.Path(path), server.exchanges)


class Proxy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.pass_on(None)

    def do_POST(self):
        self.pass_on(self.rfile.read(int(self.headers["content-length"])))

    def pass_on(self, body):
        headers = {name: self.headers[name] for name in [*HEADERS, "origin"] if name in self.headers}
        request = urllib.request.Request(self.server.behind + self.path, body, headers)
        try:
            answer = urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            answer = error
        content, kind = answer.read(), answer.headers["content-type"]
        self.server.exchanges.append({
            "method": self.command, "path": self.path, "headers": headers, "body": body and json.loads(body),
            "answer": {"status": answer.status, "type": kind, "body": read(kind, content)},
        })  # fmt: skip
        self.send_response(answer.status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def read(kind, content):
    """JSON, or the frames of a stream."""
    if not kind.startswith("text/event-stream"):
        return json.loads(content)
    frames = [line.removeprefix("data: ") for line in content.decode().split("\n") if line.startswith("data: ")]
    return [frame if frame == "[DONE]" else json.loads(frame) for frame in frames]


def is_kept(exchange):
    """Open WebUI's prompts for titles are its authors' own; a foreign origin is not the proxy's."""
    return "### Task:" not in json.dumps(exchange["body"]) and "origin" not in exchange["headers"]


def write(path, exchanges):
    """Each request once, with names in place of the demo's pictures."""
    known = json.loads(path.read_text()) if path.exists() else []
    text = json.dumps(known + list(filter(is_kept, exchanges)))
    for picture in PICTURES.glob("*.png"):
        url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
        text = text.replace(url, f"<{picture.stem}>")
    seen = {}
    for exchange in json.loads(text):
        sent = json.dumps({key: value for key, value in exchange.items() if key != "answer"}, sort_keys=True)
        seen.setdefault(sent, exchange)
    lines = ",\n".join(json.dumps(exchange, ensure_ascii=False) for exchange in seen.values())
    path.write_text(f"[\n{lines}\n]\n")
