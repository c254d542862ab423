"""Makes src/releases.tsv from SAELens' list of published SAEs.

    pip install --no-deps sae-lens==6.54.12 && pip install pyyaml
    python3 make-releases.py > src/releases.tsv

The package is not imported, since that would need torch: only its data file is read.
"""

import importlib.metadata
import sys

import yaml

PICKLE = "its files are pickles, which can run any program when they are read, so they are not read: load them with SAELens, save them with `sae.save_model(folder)`, and convert that folder"

# What SAELens calls its readers, and why the conversion has none for their files.
REFUSED_READERS = {
    "connor_rob_hook_z": PICKLE,
    "deepseek_r1": PICKLE,
    "dictionary_learning_1": PICKLE,
    "goodfire": PICKLE,
    "qwen_scope": PICKLE,
    "temporal": "temporal SAEs, which read several positions at once, are not supported",
}
KNOWN_READERS = {None, "gemma_2", "gemma_2_transcoder", "gemma_3", "llama_scope", "llama_scope_r1_distill", "mwhanna_transcoder", "mntss_clt_layer_transcoder"}

# What a release may change in the configurations of its SAEs without changing what they compute.
HARMLESS_OVERRIDES = {"dataset_path", "model_from_pretrained_kwargs"}


def refused_release(release):
    """Why none of a release's SAEs can be converted."""
    reader = release.get("conversion_func")
    if reader in REFUSED_READERS:
        return REFUSED_READERS[reader]
    if reader not in KNOWN_READERS:
        sys.exit(f"{reader} is new: see what its files are")
    overrides = set(release.get("config_overrides") or {}) - HARMLESS_OVERRIDES
    if overrides:
        return f"SAELens changes `{min(overrides)}` of its configuration, which is not supported"
    return None


def centring(release):
    """The last field of a release whose SAEs were trained on rows less their mean."""
    arguments = (release.get("config_overrides") or {}).get("model_from_pretrained_kwargs") or {}
    if set(arguments) - {"center_writing_weights"}:
        sys.exit(f"{arguments} is new: see what it does to rows")
    return "\tcentred" if arguments.get("center_writing_weights") else ""


def refused_sae(path, sae_id):
    """Why one SAE of a release cannot be converted."""
    first = path.split("/")[0]
    if first.startswith("crosscoder"):
        return "crosscoders, which read several layers at once, are not supported"
    if first == "embedding":
        return "SAEs of the embeddings are not supported, only those of a layer"
    return None


def path_of(release, sae):
    """Where an SAE is in its repository; SAELens gives the block of a cross-layer transcoder."""
    path = str(sae["path"])
    return f"W_enc_{path}.safetensors" if release.get("conversion_func") == "mntss_clt_layer_transcoder" else path


def main():
    version = importlib.metadata.version("sae-lens")
    data = importlib.metadata.distribution("sae-lens").locate_file("sae_lens/pretrained_saes.yaml")
    releases = yaml.load(data.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    print(f"# Made by make-releases.py from SAELens {version}'s pretrained_saes.yaml (MIT). In tabs:")
    print("# `>` release, repository, model, `centred` if rows had their mean subtracted; below it its SAEs: id, folder (`*` is the id), Neuronpedia's labels,")
    print("# norm factor, each empty where there is none; `!` for what is refused, with the reason at the end.")
    for name, release in sorted(releases.items()):
        reason = refused_release(release)
        saes = [(str(sae["id"]), path_of(release, sae), sae) for sae in release["saes"]]
        reasons = {refused_sae(path, sae_id) for sae_id, path, _ in saes}
        if reason is None and len(reasons) == 1:
            reason = reasons.pop()
        if reason is not None:
            print("!", name, "\t", release["repo_id"], "\t", release["model"], "\t", reason, sep="")
            continue
        print(">", name, "\t", release["repo_id"], "\t", release["model"], centring(release), sep="")
        for sae_id, path, sae in saes:
            reason = refused_sae(path, sae_id)
            if reason is not None:
                print("!", sae_id, "\t", reason, sep="")
                continue
            folder = path.replace(sae_id, "*")
            factor = sae.get("norm_scaling_factor")
            fields = [sae_id, folder, sae.get("neuronpedia") or "", "" if factor is None else repr(factor)]
            print("\t".join(fields).rstrip("\t"))


main()
