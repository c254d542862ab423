"""Open WebUI's backend, without its browser part, with the server as its OpenAI connection: models and chats."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from demo_server import about_picture, caption, served

SETTINGS = {
    "WEBUI_AUTH": "False",
    "WEBUI_SECRET_KEY": "of this check alone, whose server ends with it",
    "ENABLE_OLLAMA_API": "False",
    "BYPASS_EMBEDDING_AND_RETRIEVAL": "True",  # its embedding model would be downloaded
    "RAG_EMBEDDING_ENGINE": "openai",
    "OFFLINE_MODE": "True",
    "ANONYMIZED_TELEMETRY": "False",
}


def ask(url, body=None, token=None):
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, body and json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read().decode()


@contextlib.contextmanager
def open_webui(model_url):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, open(pathlib.Path(folder, "log"), "w+") as log:
        environment = {"DATA_DIR": folder, "OPENAI_API_BASE_URL": model_url + "/v1", "OPENAI_API_KEY": "none"}
        program = pathlib.Path(sys.executable).parent / "open-webui"
        process = subprocess.Popen(
            [program, "serve", "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | SETTINGS | environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        except BaseException:
            log.seek(0)
            print(log.read()[-10_000:], file=sys.stderr)
            raise
        finally:
            process.kill()
            process.wait()


def wait_for(url, process):
    for _ in range(600):
        assert process.poll() is None, "Open WebUI ended"
        with contextlib.suppress(OSError):
            ask(url + "/health")
            return
        time.sleep(0.5)
    raise AssertionError("Open WebUI does not answer")


def streamed_text(answer):
    frames = [line.removeprefix("data: ") for line in answer.splitlines() if line.startswith("data: ")]
    assert frames[-1] == "[DONE]", frames
    chunks = [json.loads(frame) for frame in frames[:-1]]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", [])]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


# Its prompts for titles are longer than what the model was trained on.
with served("--ctx-size", "2048") as model_url, open_webui(model_url) as url:
    # Without accounts, anybody is the administrator.
    token = json.loads(ask(url + "/api/v1/auths/signin", {"email": "", "password": ""}))["token"]
    models = json.loads(ask(url + "/api/models", token=token))["data"]
    assert len(models) == 1 and models[0]["openai"]["owned_by"] == "llava-sae-cpp", models
    chat = {"model": models[0]["id"], "messages": about_picture("carrot-mushroom"), "temperature": 0}
    expected = caption("carrot-mushroom")
    answer = json.loads(ask(url + "/api/chat/completions", chat | {"stream": False}, token))
    assert answer["choices"][0]["message"]["content"] == expected, answer
    answer = ask(url + "/api/chat/completions", chat | {"stream": True}, token)
    assert streamed_text(answer) == expected, answer
    # What it does not know it passes on.
    steering = [{"kind": "steer", "feature": "mushroom", "value": -12}]
    answer = json.loads(ask(url + "/openai/chat/completions", chat | {"stream": False, "steering": steering}, token))
    assert answer["choices"][0]["message"]["content"] == caption("carrot-mushroom", "--steer", "mushroom:-12"), answer
    # Titles of chats are asked for beside them.
    title = {"model": chat["model"], "messages": [{"role": "user", "content": "Describe the image."}], "chat_id": "1"}
    answer = json.loads(ask(url + "/api/v1/tasks/title/completions", title, token))
    assert answer["choices"][0]["message"]["content"], answer
    try:
        ask(url + "/openai/chat/completions", chat | {"stream": False, "temperature": -1}, token)
        raise AssertionError("a negative temperature was taken")
    except urllib.error.HTTPError as error:
        body = error.read().decode()
        assert error.code == 400 and "temperature" in body, body
print(f"Open WebUI {importlib.metadata.version('open-webui')}: models, chats whole and streamed, steering, a refusal")
