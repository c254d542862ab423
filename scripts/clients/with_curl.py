"""The lines of docs/serve.md that call curl, as they stand but for the port."""

import json
import os
import pathlib
import re
import subprocess
import tempfile

from demo_server import ROOT, served



def check_answers(text):
    """One JSON or several behind each other, or a stream."""
    while text := text.lstrip():
        if text.startswith("data: "):
            assert "error" not in json.loads(text.removeprefix("data: ").split("\n")[0]), text
            return
        _, end = json.JSONDecoder().raw_decode(text)
        text = text[end:]


text = (ROOT / "docs/serve.md").read_text()
blocks = [block for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if "curl " in block]
assert blocks, "docs/serve.md has no lines with curl"
with served() as url, tempfile.TemporaryDirectory() as home:
    pathlib.Path(home, ".curlrc").write_text("fail-with-body\n")  # an answer of 400 is an error
    for block in blocks:
        lines = block.replace("http://127.0.0.1:8080", url)
        assert url in lines, block
        done = subprocess.run(
            ["sh", "-ec", lines], cwd=ROOT, env=os.environ | {"CURL_HOME": home}, capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stdout, (block, done)
        check_answers(done.stdout)
print(f"curl: {len(blocks)} blocks of docs/serve.md")
