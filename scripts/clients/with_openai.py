"""The `openai` package against the server: what it makes of answers, streams and refusals."""

import asyncio
import tempfile

import openai
from demo_server import about_picture, caption, served

STEERING = [{"kind": "steer", "feature": "mushroom", "value": -12}]


def client(url, key="none"):
    return openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0, timeout=120)


def chat(client, name="carrot-mushroom", **options):
    return client.chat.completions.create(model="demo", messages=about_picture(name), **options)


def check_chat(ours):
    plain = chat(ours)
    assert plain.choices[0].message.content == caption("carrot-mushroom"), plain
    assert plain.choices[0].message.role == "assistant" and plain.choices[0].finish_reason == "stop", plain
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens > 36, plain.usage
    assert plain.model_extra["timings"]["predicted_n"] == plain.usage.completion_tokens, plain.model_extra
    short = chat(ours, max_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3, short
    several = chat(ours, n=3, temperature=1.0, seed=7, top_p=0.9)
    assert [choice.index for choice in several.choices] == [0, 1, 2], several
    again = chat(ours, n=3, temperature=1.0, seed=7, top_p=0.9)
    assert [choice.message for choice in several.choices] == [choice.message for choice in again.choices]
    stopped = chat(ours, stop=["mushroom"])
    assert plain.choices[0].message.content.startswith(stopped.choices[0].message.content), stopped
    assert "mushroom" not in stopped.choices[0].message.content and stopped.choices[0].finish_reason == "stop", stopped
    return plain


def check_logprobs(ours, plain):
    likely = chat(ours, logprobs=True, top_logprobs=3)
    tokens = likely.choices[0].logprobs.content
    assert "".join(token.token for token in tokens).strip() == plain.choices[0].message.content, tokens
    for token in tokens:
        assert bytes(token.bytes).decode() == token.token and len(token.top_logprobs) == 3, token
        assert token.top_logprobs[0].token == token.token and token.top_logprobs[0].logprob == token.logprob <= 0, token


def check_stream(ours, plain):
    chunks = list(chat(ours, stream=True, stream_options={"include_usage": True}))
    *chunks, last = chunks
    assert last.choices == [] and last.usage == plain.usage, last
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    assert chunks[-1].choices[0].finish_reason == "stop", chunks[-1]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == plain.choices[0].message.content, text
    assert len({chunk.id for chunk in [*chunks, last]}) == 1
    with ours.chat.completions.stream(model="demo", messages=about_picture("boat")) as stream:
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.content == caption("boat")


def check_extensions(ours):
    extra = {"steering": STEERING, "sae": {"top": 5}}
    steered = chat(ours, extra_body=extra)
    text = steered.choices[0].message.content
    assert text == caption("carrot-mushroom", "--steer", "mushroom:-12") and "mushroom" not in text, text
    features = steered.model_extra["sae"]["features"]
    assert len(features) == 5 and {"rank", "feature", "label", "score"} <= features[0].keys(), features
    chunks = list(chat(ours, stream=True, extra_body=extra))
    assert chunks[0].model_extra["sae"]["features"] == features, chunks[0]
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == text, streamed
    unknown = chat(ours, max_tokens=1, extra_body={"colour": "red"})
    assert unknown.model_extra["ignored"] == ["colour"], unknown


def check_completions(ours):
    prompt = "There is a tiny"
    answer = ours.completions.create(model="demo", prompt=prompt, max_tokens=8)
    assert answer.object == "text_completion" and answer.choices[0].text, answer
    echoed = ours.completions.create(model="demo", prompt=prompt, max_tokens=8, echo=True, logprobs=2)
    assert echoed.choices[0].text == prompt + answer.choices[0].text, echoed
    found = echoed.choices[0].logprobs
    assert found.token_logprobs[0] is None and all(value <= 0 for value in found.token_logprobs[1:]), found
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset), found
    assert "".join(found.tokens).endswith(echoed.choices[0].text), found
    two = ours.completions.create(model="demo", prompt=[prompt, "The word"], max_tokens=8)
    assert [choice.index for choice in two.choices] == [0, 1] and two.choices[0].text == answer.choices[0].text, two
    chunks = list(ours.completions.create(model="demo", prompt=prompt, max_tokens=8, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == answer.choices[0].text, chunks


def check_refusals(ours, url):
    def refused(kind, said, ask):
        try:
            answer = ask()
        except kind as error:
            assert said in error.message, error
            assert type(error) is kind, type(error)
            return error
        raise AssertionError(f"no {kind.__name__}, but {answer}")

    error = refused(openai.BadRequestError, "no label", lambda: chat(
        ours, extra_body={"steering": [{"kind": "steer", "feature": "unicorn", "value": 1}]}))
    assert error.param == "steering" and error.type == "invalid_request_error" and error.code, error.body
    refused(openai.BadRequestError, "temperature", lambda: chat(ours, temperature=-1))
    refused(openai.BadRequestError, "web address", lambda: ours.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]}]))
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    refused(openai.BadRequestError, "tools", lambda: chat(ours, tools=[tool]))
    refused(openai.NotFoundError, "nothing at", lambda: ours.embeddings.create(model="demo", input="a"))
    refused(openai.PermissionDeniedError, "evil.example", lambda: openai.OpenAI(
        base_url=url + "/v1", api_key="none", max_retries=0, default_headers={"Origin": "http://evil.example"},
    ).models.list())


def check_key():
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("se-cret\n")
        file.flush()
        with served("--api-key-file", file.name, record=False) as url:
            assert client(url, "se-cret").models.list().data[0].object == "model"
            try:
                client(url, "wrong").models.list()
                raise AssertionError("a wrong key was taken")
            except openai.AuthenticationError as error:
                assert "API key" in error.message, error


def check_full():
    """A full queue is 503 with Retry-After, after which the package asks again by itself."""
    with served("--parallel", "1", "--queue", "0", record=False) as url:
        async def ask_all():
            async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=20) as ours:
                return await asyncio.gather(*(chat(ours) for _ in range(3)))
        texts = {answer.choices[0].message.content for answer in asyncio.run(ask_all())}
        assert texts == {caption("carrot-mushroom")}, texts


with served() as url:
    ours = client(url)
    models = ours.models.list().data
    assert len(models) == 1 and models[0].id and models[0].owned_by == "llava-sae-cpp", models
    plain = check_chat(ours)
    check_stream(ours, plain)
    check_refusals(ours, url)
    check_extensions(ours)
    check_logprobs(ours, plain)
    check_completions(ours)
check_key()
check_full()
print(f"openai {openai.__version__}: chats, streams, steering, features, log-probabilities, completions and refusals")
