"""Mixed requests on loopback for some minutes, whose answers are known beforehand; then a kill, and ends under load.

    soak.py MINUTES

The server is asked first what it answers where it has nothing else to do. Beside others, rows are rounded otherwise: a
text may leave the known one where the two best tokens were less than MARGIN apart, and such texts are counted apart.
"""

import asyncio
import base64
import collections
import contextlib
import json
import os
import random
import signal
import statistics
import struct
import sys
import tempfile
import time
import zlib

from connection import Connection
from demo_server import PICTURES, Server, about_picture

N_WORKERS = 10
MARGIN = 0.1  # nats
MAX_GROWTH = 1.03
SAMPLE_EVERY = 10  # seconds
NAMES = sorted(path.stem for path in PICTURES.glob("*.png"))
STRENGTHS = [0, -12, 12]
CHAT = "/v1/chat/completions"
KNOWN, NEAR_TIE, BUSY, WRONG = "as known", "left at a near tie", "503", "wrong or lost"


class Busy(Exception):
    """503, which says when to come again."""


def steering(strength):
    return [{"kind": "steer", "feature": "mushroom", "value": strength}] if strength else []


def prompt(name):
    return {"messages": about_picture(name)}


def generation(name):
    return {**prompt(name), "max_tokens": 64}


def chat(name, strength, **options):
    return {**generation(name), "steering": steering(strength), **options}


@contextlib.asynccontextmanager
async def asked(port, path, body=None, status=200, small_buffer=False, **how):
    """A connection on which the answer's head has come."""
    async with Connection(port, small_buffer) as connection:
        await connection.send(path, body, **how)
        found = await connection.head()
        if found == 503:
            assert "retry-after" in connection.headers, connection.headers
            raise Busy
        assert found == status, (path, found, await connection.body())
        yield connection


async def answer(port, path, body=None, status=200, **how):
    async with asked(port, path, body, status, **how) as connection:
        return json.loads(await connection.body())


async def frames(port, path, body, pause=0.0, **how):
    """All frames of a stream, which has to come to its end."""
    async with asked(port, path, body, **how) as connection:
        return [frame async for frame in connection.frames(pause)]


def chat_text(found):
    *parts, done = found
    assert done == "[DONE]", done
    return "".join(part["choices"][0]["delta"].get("content", "") for part in parts)


class Known:
    """What the server answers where nobody else asks."""

    def __init__(self):
        self.texts = {}  # (picture, strength): a text, and how many of its characters are sure
        self.features = {}  # picture: {feature: score}
        self.documents = {}  # address: JSON
        self.likely = "The image shows a carrot at the bottom and a mushroom on the right, on calm water."
        self.log_probs = []  # of that text's tokens

    async def ask(self, port):
        for name in NAMES:
            for strength in STRENGTHS:
                found = await answer(port, CHAT, chat(name, strength, logprobs=True, top_logprobs=2))
                self.texts[name, strength] = sure_text(found["choices"][0])
            self.features[name] = scores(await answer(port, "/api/features", {**prompt(name), "sae": {"top": 20}}))
        self.log_probs = token_log_probs(await answer(port, "/v1/completions", likelihoods_of(self.likely)))
        for path in ["/v1/models", "/api/model", "/api/labels?q=carrot", "/api/features/mushroom", "/openapi.json"]:
            self.documents[path] = await answer(port, path)

    def text(self, name, strength, text):
        known, n_sure = self.texts[name, strength]
        if text == known:
            return KNOWN
        assert n_sure < len(known) and text.startswith(known[:n_sure]), (name, strength, text, known)
        return NEAR_TIE


def sure_text(choice):
    """A text, and how many characters come before its first near tie."""
    text, n_sure = choice["message"]["content"], 0
    for token in choice["logprobs"]["content"]:
        best, second = (candidate["logprob"] for candidate in token["top_logprobs"])
        if best - second < MARGIN:
            return text, n_sure
        n_sure += len(token["token"])
    return text, len(text)


def scores(found):
    return {entry["feature"]: entry["score"] for entry in found["features"]}


def worst(*outcomes):
    return NEAR_TIE if NEAR_TIE in outcomes else KNOWN


# Kinds of requests: each is one exchange, checked, and gives how its answer was.


async def whole(port, known, name, strength, **how):
    found = await answer(port, CHAT, chat(name, strength), **how)
    return known.text(name, strength, found["choices"][0]["message"]["content"])


async def streamed(port, known, name, strength, **how):
    return known.text(name, strength, chat_text(await frames(port, CHAT, chat(name, strength, stream=True), **how)))


async def slow_reader(port, known, name, strength):
    return await streamed(port, known, name, strength, small_buffer=True, pause=0.05)


async def slow_reader_of_much(port, known, name, _):
    body = {**prompt(name), "sae": {"top": 20, "per_token": True, "heatmap": True}}
    async with asked(port, "/api/features", body, small_buffer=True) as connection:
        found = json.loads(await connection.body(pause=0.02))
    assert len(found["activations"]) == len(found["tokens"]) > 64, found
    return check_features(known, name, found)


async def slow_sender(port, known, name, strength):
    return await whole(port, known, name, strength, pieces=8, pause=0.3)


async def several_drawn(port, _, name, strength):
    found = await answer(port, CHAT, chat(name, strength, n=3, temperature=1.0, seed=random.randrange(1000)))
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2], found
    return KNOWN


async def dropped_stream(port, _, name, strength):
    async with asked(port, CHAT, chat(name, strength, stream=True)) as connection:
        n_left = random.randrange(1, 8)
        async for _ in connection.frames():
            n_left -= 1
            if n_left == 0:
                break
    return KNOWN


async def left_before_the_answer(port, _, name, strength):
    async with Connection(port) as connection:
        await connection.send(CHAT, chat(name, strength, n=4, temperature=1.0))
        await asyncio.sleep(random.random() * 0.2)
    return KNOWN


async def comparison(port, known, name, _):
    strength = random.choice([strength for strength in STRENGTHS if strength])
    found = await frames(port, "/api/compare", {**generation(name), "steering": steering(strength), "temperature": 0})
    *parts, done = found
    assert done["type"] == "done", done
    outcomes = []
    for run, steered_by in [("original", 0), ("steered", strength)]:
        text = "".join(part["text"] for part in parts if part.get("run") == run)
        assert text.strip() == done[run]["text"].strip(), (text, done)
        outcomes.append(known.text(name, steered_by, done[run]["text"]))
    return worst(*outcomes)


async def sweep(port, known, name, _):
    strengths = [strength for strength in STRENGTHS if strength]
    body = {**generation(name), "feature": "mushroom", "strengths": strengths}
    found = await frames(port, "/api/sweep", body)
    done = found[-1]
    assert done["type"] == "done", done
    runs = [done["original"], *done["steered"]]
    assert [run["strength"] for run in runs] == [0, *strengths], runs
    return worst(*(known.text(name, run["strength"], run["text"]) for run in runs))


async def features(port, known, name, _):
    return check_features(known, name, await answer(port, "/api/features", {**prompt(name), "sae": {"top": 20}}))


def check_features(known, name, found):
    expected, found = known.features[name], scores(found)
    for feature in list(expected)[:5]:
        assert abs(found[feature] - expected[feature]) <= 0.02 * abs(expected[feature]) + 0.02, (name, expected, found)
    return KNOWN


async def likelihoods(port, known, *_):
    found = await answer(port, "/v1/completions", likelihoods_of(known.likely))
    for ours, expected in zip(token_log_probs(found), known.log_probs, strict=True):
        assert abs(ours - expected) <= 0.02 * (1 + abs(expected)), (found, known.log_probs)
    return KNOWN


def likelihoods_of(text):
    return {"prompt": text, "echo": True, "logprobs": 1, "max_tokens": 0}


def token_log_probs(found):
    return found["choices"][0]["logprobs"]["token_logprobs"][1:]


async def document(port, known, *_):
    path = random.choice(list(known.documents))
    assert await answer(port, path) == known.documents[path], path
    return KNOWN


async def refused(port, url, said):
    image = {"type": "image_url", "image_url": {"url": url}}
    found = await answer(port, CHAT, {"messages": [{"role": "user", "content": [image]}]}, status=400)
    assert said in found["error"]["message"], found
    return KNOWN


async def broken_image(port, *_):
    return await refused(port, png_url(8, 8, b"no pixels"), "image 1")


async def huge_image(port, *_):
    return await refused(port, png_url(60_000, 60_000, zlib.compress(b"")), "image 1")


def png_url(width, height, pixels):
    """A picture whose head says more than it holds."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


async def wrong_request(port, *_):
    body = random.choice([{"messages": 1}, {"messages": []}, {**chat("frog", 0), "steering": [{"kind": "tickle"}]}])
    found = await answer(port, CHAT, body, status=400)
    assert found["error"]["message"], found
    return KNOWN


async def stalled_sender(port, *_):
    async with Connection(port) as connection:
        await connection.write(f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\n{{".encode())
        assert await asyncio.wait_for(connection.head(), 70) == 408
    return KNOWN


async def half_a_head(port, *_):
    async with Connection(port) as connection:
        await connection.write(f"POST {CHAT} HTTP/1.1\r\nhost: 127".encode())
        rest = await asyncio.wait_for(connection.reader.read(), 25)
        assert rest == b"" or b" 408 " in rest.split(b"\r\n")[0], rest
    return KNOWN


WEIGHTS = {
    whole: 8, streamed: 8, slow_reader: 2, slow_reader_of_much: 1, slow_sender: 2, several_drawn: 2,
    dropped_stream: 6, left_before_the_answer: 3, comparison: 3, sweep: 1, features: 3, likelihoods: 3, document: 6,
    broken_image: 2, huge_image: 2, wrong_request: 3,
}  # fmt: skip


class Counts:
    def __init__(self):
        self.of = collections.defaultdict(collections.Counter)
        self.failures = []

    async def run(self, kind, port, known, label=None):
        """One exchange of this kind, about any picture."""
        label = label or kind.__name__.replace("_", " ")
        name, strength = random.choice(NAMES), random.choice(STRENGTHS)
        try:
            outcome = await asyncio.wait_for(kind(port, known, name, strength), 300)
        except Busy:
            outcome = BUSY
        except Exception as error:  # whatever it is: it is told at the end
            outcome = WRONG
            self.failures.append(f"{label}, {name}, {strength}: {type(error).__name__}: {str(error)[:1500]}")
        self.of[label][outcome] += 1
        return outcome

    def table(self):
        columns = [KNOWN, NEAR_TIE, BUSY, WRONG]
        print(f"| what was sent | n | {' | '.join(columns)} |\n| --- |{' ---: |' * 5}")
        for label, counts in self.of.items():
            print(f"| {label} | {counts.total()} | {' | '.join(str(counts[column]) for column in columns)} |")


async def worker(counts, port, known, end):
    while time.monotonic() < end:
        kind = random.choices(list(WEIGHTS), WEIGHTS.values())[0]
        if await counts.run(kind, port, known) == BUSY:
            await asyncio.sleep(random.random())


async def every(seconds, end, do):
    while time.monotonic() + seconds < end:
        await asyncio.sleep(seconds)
        await do()


async def load(counts, server, known, seconds):
    """The resident memory in MiB, sampled meanwhile."""
    port, end, memory = server.port, time.monotonic() + seconds, []

    async def hundred():
        await asyncio.gather(*(counts.run(whole, port, known, "100 connections at once") for _ in range(100)))

    async def stall():
        await asyncio.gather(counts.run(stalled_sender, port, known), counts.run(half_a_head, port, known))

    async def sample():
        memory.append(resident(server.process.pid))

    workers = [worker(counts, port, known, end) for _ in range(N_WORKERS)]
    await asyncio.gather(
        *workers, every(30, end, hundred), every(75, end - 75, stall), every(SAMPLE_EVERY, end, sample)
    )
    return memory


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def growth(memory, minutes):
    """The memory at the end by that at minute 10, or at half of a shorter time; medians of the minutes before."""
    then, width = min(10, minutes / 2), min(3, minutes / 5)
    n, at = max(1, round(width * 60 / SAMPLE_EVERY)), round(then * 60 / SAMPLE_EVERY)
    before, after = statistics.median(memory[max(0, at - n) : max(1, at)]), statistics.median(memory[-n:])
    print(
        f"resident memory: {before:.0f} MiB at minute {then:g}, {after:.0f} at minute {minutes:g} (medians of the"
        f" {width:g} minutes before): {after / before:.3f} ×"
    )
    print("each minute:", *(f"{size:.0f}" for size in memory[::6]))
    return after / before


async def begun(port, n):
    """Streams that have begun, as tasks that read the rest."""
    tasks, started = [], []
    for i in range(n):
        name, strength = NAMES[i % len(NAMES)], STRENGTHS[i % len(STRENGTHS)]
        first = asyncio.get_running_loop().create_future()

        async def read(name=name, strength=strength, first=first):
            async with asked(port, CHAT, chat(name, strength, stream=True)) as connection:
                found = []
                async for frame in connection.frames():
                    found.append(frame)
                    first.done() or first.set_result(None)
            return name, strength, chat_text(found)

        tasks.append(asyncio.create_task(read()))
        started.append(first)
    await asyncio.wait_for(asyncio.wait(started, return_when=asyncio.FIRST_COMPLETED), 60)
    return tasks


async def killed(server, known):
    """kill -9 under load, and a start on the same port and caches: the new one answers as the old one."""
    tasks = await begun(server.port, 8)
    server.process.kill()
    server.process.wait()
    await asyncio.gather(*tasks, return_exceptions=True)
    start = time.monotonic()
    server = Server(*OPTIONS, port=server.port)
    seconds = time.monotonic() - start
    counts = Counts()
    for _ in range(20):
        await counts.run(whole, server.port, known)
    assert not counts.failures, counts.failures
    print(f"kill -9 with 8 streams: started again on the same port in {seconds:.1f} s, and answers as before")
    return server


async def interrupted(server, known):
    """Ctrl-C under load: what has been taken in is answered, and nobody else is."""
    tasks = await begun(server.port, 8)
    start = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    for name, strength, text in await asyncio.wait_for(asyncio.gather(*tasks), 60):
        known.text(name, strength, text)
    code = await asyncio.to_thread(server.process.wait, 60)
    assert code == 0, (code, server.said)
    print(f"Ctrl-C with 8 streams: all came to their ends, and it ended in {time.monotonic() - start:.1f} s")


async def interrupted_twice():
    server = Server(*OPTIONS)
    tasks = await begun(server.port, 8)
    start = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    await asyncio.sleep(0.1)
    server.process.send_signal(signal.SIGINT)
    code = await asyncio.to_thread(server.process.wait, 10)
    await asyncio.gather(*tasks, return_exceptions=True)
    print(f"a second Ctrl-C: it ended with {code} in {time.monotonic() - start:.1f} s")


OPTIONS = ["--parallel", "4", "--queue", "16"]


async def main(minutes):
    random.seed(1)
    server, known, counts = Server(*OPTIONS), Known(), Counts()
    try:
        await known.ask(server.port)
        n_near = sum(n_sure < len(text) for text, n_sure in known.texts.values())
        print(f"{len(known.texts)} texts are known, {n_near} of them with a near tie (below {MARGIN} nats)", flush=True)
        memory = await load(counts, server, known, minutes * 60)
        counts.table()
        grown = growth(memory, minutes)
        server = await killed(server, known)
        await interrupted(server, known)
        await interrupted_twice()
    finally:
        server.process.kill()
    if counts.failures:
        print(*counts.failures[:20], sep="\n")
        sys.exit(f"error: {len(counts.failures)} answers were wrong or lost")
    if grown > MAX_GROWTH:
        sys.exit(f"error: memory grew by more than {MAX_GROWTH} ×")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as caches:
        os.environ["XDG_CACHE_HOME"] = caches
        asyncio.run(main(float(sys.argv[1])))
