"""Threads, signals, processes, and models that are closed."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import PICTURE

import llava_sae
from llava_sae.errors import ClosedError, InvalidError, StoppedError


def test_one_model_in_several_threads(model, image):
    expected = [model.generate(image), model.generate(image, steer={"mushroom": -12})]

    def work(i):
        if i % 2:
            with model.steered(steer={"mushroom": -12}):
                return model.generate(image)
        return model.generate(image)

    with ThreadPoolExecutor(4) as threads:
        texts = list(threads.map(work, range(12)))
    assert texts == [expected[i % 2] for i in range(12)]


def test_others_run_meanwhile(model, image):
    n, done = 0, threading.Event()

    def count():
        nonlocal n
        while not done.is_set():
            n += 1
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    for _ in range(5):
        model.generate(image)
    done.set()
    counter.join()
    assert n > 10


def test_closed_models(image):
    model = llava_sae.demo()
    found = model.features(PICTURE)
    model.close()
    model.close()
    assert model.closed and "closed" in repr(model)
    for use in (model.generate, model.features, model.capture, model.logits, model.metrics, model.tokens):
        with pytest.raises(ClosedError, match="closed"):
            use(image)
    with pytest.raises(ClosedError):
        model.image(PICTURE)
    with pytest.raises(ClosedError):
        model.generate(image, stream=True)
    assert found.top(1) and model.sae.labels, "what was found stays"


def test_closing_ends_what_runs():
    model = llava_sae.demo()
    stream = model.generate(PICTURE, stream=True, edit={model.sae.hook_name: lambda *_: time.sleep(0.1)})
    next(stream)
    start = time.monotonic()
    model.close()
    list(stream)
    assert time.monotonic() - start < 2
    assert stream.text is None or stream.text.stop == "interrupted"


def test_closing_ends_what_waits():
    model = llava_sae.demo()
    slow = {model.sae.hook_name: lambda *_: time.sleep(0.2)}
    raised = []

    def work():
        try:
            model.generate(PICTURE, edit=slow)
        except StoppedError as error:
            raised.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    model.close()
    for thread in threads:
        thread.join(timeout=5)
    assert len(raised) == 3


def test_a_model_within_its_own_run(model, image):
    def edit(rows, tokens):
        model.features(image)

    with pytest.raises(InvalidError, match="in the middle of the run"):
        model.generate(image, edit={model.sae.hook_name: edit})
    assert model.generate(image, max_tokens=1).stop == "length"


def test_closing_a_model_within_its_own_run():
    model = llava_sae.demo()
    with pytest.raises(StoppedError):
        model.features(PICTURE, edit={model.sae.hook_name: lambda *_: model.close()})
    with pytest.raises(ClosedError):
        model.generate(PICTURE)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_ctrl_c_ends_a_run(model, image):
    # Processes that a shell starts in the background ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            model.generate(image, edit={model.sae.hook_name: lambda *_: time.sleep(0.3)})
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 3
    assert model.generate(image, max_tokens=1).stop == "length"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_ctrl_c_ends_what_waits_for_another_thread(model, image):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    slow, ends = threading.Event(), threading.Event()

    def edit(rows, tokens):
        slow.set()
        ends.wait(timeout=20)

    other = threading.Thread(target=model.features, args=(image,), kwargs={"edit": {model.sae.hook_name: edit}})
    other.start()
    slow.wait()
    threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            model.generate(image)
    finally:
        signal.signal(signal.SIGINT, before)
        ends.set()
        other.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_is_told(model, image):
    child = os.fork()
    if child == 0:
        try:
            model.generate(image)
        except ClosedError as error:
            os._exit(7 if "forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize("ending", ["", "import os; os._exit(0)", "model = None", "raise SystemExit"])
def test_python_ends_well_in_the_middle_of_a_run(ending):
    program = f"""
import llava_sae
model = llava_sae.demo()
stream = model.generate({str(PICTURE)!r}, stream=True, edit={{model.sae.hook_name: lambda rows, tokens: rows}})
next(stream)
{ending}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
