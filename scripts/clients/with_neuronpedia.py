"""Neuronpedia's own Python client of its inference server.

The published client is older than the wire that it speaks: it sends `snake_case`, which is still taken, and expects
it, where Neuronpedia's server and this one answer in `camelCase`. Its answers' names are changed below, and nothing
else of it; and what it sends is sent once more in `camelCase`, as Neuronpedia's web pages do, for the same answer.
"""

import importlib.metadata
import json
import math
import re
import tempfile
import urllib.request

import neuronpedia_inference_client as neuronpedia
from demo_server import served
from neuronpedia_inference_client.exceptions import (
    BadRequestException,
    UnauthorizedException,
    UnprocessableEntityException,
)

STEERED, DEFAULT = neuronpedia.NPSteerType.STEERED, neuronpedia.NPSteerType.DEFAULT
KEPT = {"hookName", "activeFeatures"}  # so in the older client too


def renamed(value, rename):
    if isinstance(value, dict):
        return {name if name in KEPT else rename(name): renamed(item, rename) for name, item in value.items()}
    return [renamed(item, rename) for item in value] if isinstance(value, list) else value


def snake(name):
    return re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), name)


def camel(name):
    return re.sub("_(.)", lambda letter: letter[1].upper(), name)


def near(a, b):
    return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3)


def same(a, b):
    """Whether they are equal, but for the rounding of rows that another prompt has left behind."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return near(a, b) if isinstance(a, float) else a == b


class Client(neuronpedia.ApiClient):
    def call_api(self, method, url, header_params=None, body=None, *rest, **more):
        with_camels = urllib.request.Request(url, json.dumps(renamed(body, camel)).encode(), header_params)
        answer = super().call_api(method, url, header_params, body, *rest, **more)
        if answer.status == 200:
            again = urllib.request.urlopen(with_camels, timeout=120).read()
            assert same(json.loads(again), json.loads(answer.read())), (url, body)
        return answer

    def deserialize(self, text, *rest):
        return super().deserialize(json.dumps(renamed(json.loads(text), snake)), *rest)


def api_of(url, key=None):
    configuration = neuronpedia.Configuration(host=url + "/v1")
    if key:
        configuration.api_key["SimpleSecretAuth"] = key
    return neuronpedia.DefaultApi(Client(configuration))


def capabilities(url):
    with urllib.request.urlopen(url + "/v1/capabilities") as answer:
        return json.loads(answer.read())


def steer_options(model, source, index, strength, **more):
    feature = neuronpedia.NPSteerFeature(model=model, source=source, index=index, strength=strength)
    return {
        "model": model, "features": [feature], "types": [STEERED, DEFAULT], "normalize_steering": False,
        "steer_method": neuronpedia.NPSteerMethod.SIMPLE_ADDITIVE, "n_completion_tokens": 12, "temperature": 0,
        "strength_multiplier": 1, "freq_penalty": 0, "seed": 1, **more,
    }  # fmt: skip


def check_steering(api, model, source, index):
    options = steer_options(model, source, index, 30)
    prompt = "The image shows a"
    answer = api.steer_completion_post(neuronpedia.SteerCompletionRequest(prompt=prompt, **options))
    steered, default = answer.outputs
    assert (steered.type, default.type) == (STEERED, DEFAULT) and steered.output != default.output, answer
    nothing = steer_options(model, source, index, 0, n_logprobs=3)
    answer = api.steer_completion_post(neuronpedia.SteerCompletionRequest(prompt=prompt, **nothing))
    assert [output.output for output in answer.outputs] == [default.output] * 2, answer
    for token in answer.outputs[0].logprobs:
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob == token.logprob <= 0, token
    messages = [neuronpedia.NPSteerChatMessage(role="user", content="Describe the image.")]
    chat = neuronpedia.SteerCompletionChatPostRequest(prompt=messages, steer_special_tokens=False, **options)
    answer = api.steer_completion_chat_post(chat)
    assert [turn.content for turn in answer.input.chat_template] == ["Describe the image."], answer
    steered, default = answer.outputs
    assert steered.raw != default.raw and steered.raw.startswith(answer.input.raw), answer
    assert steered.chat_template[-1].content and len(steered.chat_template) == 2, answer


def check_activations(api, model, source, source_set, index):
    prompt = "The image shows a mushroom on the right"
    one = api.activation_single_post(
        neuronpedia.ActivationSinglePostRequest(prompt=prompt, model=model, source=source, index=str(index)))
    values = one.activation.values
    assert len(values) == len(one.tokens) and max(values) == one.activation.max_value > 0, one
    assert values[one.activation.max_value_index] == one.activation.max_value, one
    # `single` leaves the vocabulary's first token out, and the others do not.
    first, tokens = [0], ["<bos>", *one.tokens]
    found = api.activation_all_post(neuronpedia.ActivationAllPostRequest(
        prompt=prompt, model=model, source_set=source_set, selected_sources=[source], sort_by_token_indexes=[],
        ignore_bos=True, num_results=10))
    assert found.tokens == tokens and all(entry.source == source for entry in found.activations), found.tokens
    maxima = [entry.max_value for entry in found.activations]
    assert maxima == sorted(maxima, reverse=True), maxima
    same = next(entry.values for entry in found.activations if entry.index == index)
    assert len(same) == len(tokens) and all(map(near, same, first + values)), same
    top = api.activation_topk_by_token_post(neuronpedia.ActivationTopkByTokenPostRequest(
        prompt=prompt, model=model, source=source, top_k=3, ignore_bos=False))
    assert top.tokens == tokens, top
    for place, (value, row) in enumerate(zip(first + values, top.results, strict=True)):
        listed = {feature.feature_index: feature.activation_value for feature in row.top_features}
        assert row.token_position == place and len(listed) <= 3 and near(listed.get(index, value), value), row
    by_source = api.activation_source_post(neuronpedia.ActivationSourcePostRequest(
        prompts=[prompt, "A boat"], model=model, source=source)).results
    listed = dict(map(tuple, by_source[0].active_features[str(index)]))
    assert len(by_source) == 2 and by_source[0].tokens == tokens, by_source[0].tokens
    assert all(near(listed.get(i, 0), value) for i, value in enumerate(first + values)), listed
    several = api.activation_single_batch_post(neuronpedia.ActivationSingleBatchPostRequest(
        prompts=[prompt, "A boat"], model=model, source=source, index=str(index))).results
    assert all(map(near, several[0].activation.values, values)) and len(several) == 2, several
    return max(maxima)


def check_util(api, model, source, index):
    found = api.util_sae_vector_post(neuronpedia.UtilSaeVectorPostRequest(model=model, source=source, index=index))
    assert len(found.vector) == 192 and any(found.vector) and found.hook_name == "blocks.1.hook_resid_post", found
    feature = neuronpedia.NPFeature(model=model, source=source, index=index)
    nearest = api.util_sae_topk_by_decoder_cossim_post(neuronpedia.UtilSaeTopkByDecoderCossimPostRequest(
        feature=feature, model=model, source=source, num_results=4)).topk_decoder_cossim_features
    similarities = [entry.cosine_similarity for entry in nearest]
    assert len(nearest) == 4 and similarities == sorted(similarities, reverse=True) and max(similarities) <= 1.001
    text = "The image shows a tiny boat"
    tokens = api.tokenize_post(neuronpedia.TokenizePostRequest(model=model, text=text))
    assert tokens.prepend_bos and "".join(tokens.token_strings[1:]).strip() == text, tokens
    assert len(tokens.tokens) == len(tokens.token_strings), tokens


def check_refusals(api, model, source):
    def refused(kind, said, call, request):
        try:
            answer = call(request)
        except kind as error:
            assert said in error.body, error.body
            return
        raise AssertionError(f"no {kind.__name__}, but {answer}")

    none = neuronpedia.ActivationSinglePostRequest(prompt="a", model=model, source="none", index="1")
    refused(BadRequestException, "none", api.activation_single_post, none)
    far = neuronpedia.UtilSaeVectorPostRequest(model=model, source=source, index=10**6)
    refused(BadRequestException, "features", api.util_sae_vector_post, far)
    partial = neuronpedia.UtilSaeVectorPostRequest.model_construct(model=model, source=source)
    refused(UnprocessableEntityException, "index", api.util_sae_vector_post, partial)


def check_key():
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("se-cret\n")
        file.flush()
        with served("--api-key-file", file.name, record=False) as url:
            request = neuronpedia.TokenizePostRequest(model="embedded demo", text="a")
            assert api_of(url, "se-cret").tokenize_post(request).tokens
            try:
                api_of(url, "wrong").tokenize_post(request)
                raise AssertionError("a wrong key was taken")
            except UnauthorizedException as error:
                assert isinstance(json.loads(error.body)["error"], str), error.body


with served() as url:
    found = capabilities(url)
    model, source, source_set = found["model"], found["sources"][0], found["sae_sets"][0]
    labels = json.loads(urllib.request.urlopen(url + "/api/labels?q=mushroom").read())["labels"]
    api, index = api_of(url), labels[0]["feature"]
    check_util(api, model, source, index)
    check_activations(api, model, source, source_set, index)
    check_steering(api, model, source, index)
    check_refusals(api, model, source)
check_key()
print(
    f"neuronpedia-inference-client {importlib.metadata.version('neuronpedia-inference-client')}:"
    " steering, activations, tokens, decoder rows, refusals and the key"
)
