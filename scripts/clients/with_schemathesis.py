"""schemathesis, which makes requests of /openapi.json: none is answered with 500, and answers fit the document."""

import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tempfile

from demo_server import served

CHECKS = "not_a_server_error,response_schema_conformance,content_type_conformance"

with served() as url, tempfile.TemporaryDirectory() as folder:
    program = pathlib.Path(sys.executable).parent / "schemathesis"
    # Its notes of failures stay in the folder, so that each run makes the same requests.
    done = subprocess.run(
        [program, "run", url + "/openapi.json", "--checks", CHECKS, "--max-examples", "40", "--seed", "1",
         "--generation-deterministic", "--request-timeout", "120", "--no-color"],
        cwd=folder, capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stdout[-15_000:] + done.stderr[-2000:]
found = re.search(r"\d+ generated, .*", done.stdout)
print(f"schemathesis {importlib.metadata.version('schemathesis')}: {found[0]}")
