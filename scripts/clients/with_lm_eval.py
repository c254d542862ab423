"""lm-evaluation-harness (`local-completions`) on a task in local files, with the demo's own tokenizer files.

What the server says of each choice is compared with the same sum in double precision (reference.py)."""

import importlib.metadata
import json
import logging
import os
import pathlib
import tempfile

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import lm_eval
import transformers
from demo_server import served
from lm_eval.tasks import TaskManager
from reference import CHECKPOINT, Reference

CHOICES = [
    {"text": "The image shows a carrot at the bottom and a", "choices": [" mushroom", " tiny", " the", " airplane"],
     "answer": 0},
    {"text": "A boat on calm", "choices": [" water", " carrot on the right"], "answer": 0},
    {"text": "There is a", "choices": [" mushroom in the evening", " tiny carrot, and a frog"], "answer": 1},
]
TEXTS = [{"text": "The image shows"}, {"text": "There is a tiny"}]
TASKS = {
    "demo_choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "demo_texts": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 24, "temperature": 0},
        "metric_list": [{"metric": "bypass"}],
    },
}
# Sums of log-probabilities of a model of half precision, whose cache of keys and values is too.
TOLERANCE = 0.002


def write_tasks(folder):
    for (name, task), rows in zip(TASKS.items(), [CHOICES, TEXTS], strict=True):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        about = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
                 "test_split": "test", **task}
        (folder / f"{name}.yaml").write_text(json.dumps(about))  # JSON is YAML


def evaluated(url, folder, options):
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={"model": "demo", "base_url": url + "/v1/completions", "tokenizer": str(CHECKPOINT),
                    "tokenizer_backend": "huggingface", "max_length": 512, "max_retries": 1, **options},
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        cache_requests=False,
    )
    return {name: sorted(samples, key=lambda sample: sample["doc_id"]) for name, samples in found["samples"].items()}


class Expected:
    """The sums and texts of the reference, of prompts with the vocabulary's first token before them or without."""

    def __init__(self, has_bos):
        self.reference = Reference()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
        self.has_bos = has_bos

    def ids(self, text):
        return self.tokenizer(text, add_special_tokens=self.has_bos).input_ids

    def choice(self, text, choice):
        """The sum, and whether each token is the likeliest."""
        given, ids = len(self.ids(text)), self.ids(text + choice)
        log_probs = self.reference.log_probs(ids)[given - 1:-1]
        chosen = log_probs[range(len(log_probs)), ids[given:]]
        return chosen.sum(), bool((chosen == log_probs.max(axis=1)).all())

    def text(self, text, n, end):
        ids = self.ids(text)
        given = len(ids)
        while len(ids) < given + n and end not in self.tokenizer.decode(ids[given:]):
            next_id = int(self.reference.log_probs(ids)[-1].argmax())
            if next_id == self.tokenizer.eos_token_id:
                break
            ids.append(next_id)
        return self.tokenizer.decode(ids).removeprefix(self.tokenizer.decode(ids[:given])).split(end)[0]


def check(url, folder, **options):
    samples = evaluated(url, folder, options)
    expected = Expected(options.get("add_bos_token", False))
    worst = 0.0
    for sample in samples["demo_choices"]:
        doc = sample["doc"]
        for choice, [(said, is_greedy)] in zip(doc["choices"], sample["resps"], strict=True):
            wanted, wanted_greedy = expected.choice(doc["text"], choice)
            worst = max(worst, abs(float(said) - wanted) / max(1, abs(wanted)))
            assert is_greedy == wanted_greedy, (options, doc, choice, is_greedy)
    assert worst < TOLERANCE, (options, worst)
    for sample in samples["demo_texts"]:
        wanted = expected.text(sample["doc"]["text"], 24, ".")
        assert sample["resps"] == [[wanted]], (options, sample["resps"], wanted)
    return worst


logging.getLogger("lm_eval").setLevel(logging.ERROR)
with tempfile.TemporaryDirectory() as name, served() as url:
    folder = pathlib.Path(name)
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    write_tasks(folder)
    worst = max(
        check(url, folder, add_bos_token=True),
        check(url, folder),
        check(url, folder, add_bos_token=True, batch_size=4),
        check(url, folder, add_bos_token=True, num_concurrent=3),
        check(url, folder, add_bos_token=True, tokenized_requests=False),
    )
print(
    f"lm-eval {importlib.metadata.version('lm-eval')}: choices and texts by ids, by texts, in batches and side by side;"
    f" log-probabilities differ from those in double precision by {worst:.1e} of their sums at most"
)
