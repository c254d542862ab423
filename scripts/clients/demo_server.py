"""A server of the demo model for the checks in this folder, which run what PROGRAM names."""

import base64
import contextlib
import os
import pathlib
import signal
import subprocess
import threading
import time
import urllib.request

from recorder import recorded

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PROGRAM = os.environ.get("PROGRAM", ROOT / "target/release/llava-sae-cpp")
PICTURES = ROOT / "assets/pictures"


class Server:
    """A process that serves, and what it writes on stderr."""

    def __init__(self, *options, port=0):
        command = [PROGRAM, "serve", "--port", str(port), *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        first = self.process.stderr.readline()
        assert first.startswith("listening on http://"), first + self.process.stderr.read()
        self.url = first.split()[-1]
        self.port = int(self.url.rsplit(":", 1)[1])
        self.said = []
        threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True).start()
        with urllib.request.urlopen(self.url + "/health", timeout=300) as answer:  # waits for the model
            assert answer.status == 200, answer.status

    def stop(self, timeout=60):
        """Ends it as Ctrl-C does, and gives the seconds that it took."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout)
        assert code == 0, f"it ended with {code}: {''.join(self.said)}"
        return time.monotonic() - start


@contextlib.contextmanager
def served(*options, record=True):
    """The address of a server that ends with the block, and must not have died before."""
    server = Server(*options)
    try:
        with recorded(server.url) if record else contextlib.nullcontext(server.url) as url:
            yield url
        assert server.process.poll() is None, f"it died: {''.join(server.said)}"
        server.stop()
    finally:
        server.process.kill()
    assert not any("panicked" in line for line in server.said), "".join(server.said)


def picture_url(name):
    """A picture of the demo's, as a `data:` URL."""
    png = (PICTURES / f"{name}.png").read_bytes()
    return "data:image/png;base64," + base64.b64encode(png).decode()


def about_picture(name, text="Describe the image."):
    """A user's turn about a picture of the demo's."""
    image = {"type": "image_url", "image_url": {"url": picture_url(name)}}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


def caption(name, *options):
    """What the command line answers."""
    command = [PROGRAM, "--quiet", *options, PICTURES / f"{name}.png"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
