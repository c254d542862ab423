"""The licences of everything inside the programs and the wheel, as one text: crates, Rust's standard library, llama.cpp
with the C and C++ that it carries, the compiler's runtimes, and the demo's drawings.

    python3 scripts/third-party-licences.py [--target TRIPLE] -o THIRD-PARTY-LICENCES.txt

Fails where something is inside whose licence has no text. Needs Python 3.9 and the sources that cargo has downloaded.
"""

import argparse
import html.parser
import json
import pathlib
import re
import subprocess
import sys

PROJECT = pathlib.Path(__file__).resolve().parent.parent
# What is given away: the programs and the native module.
PACKAGES = ["gguf-tools", "llava-sae-cpp", "llava-sae-python"]
LICENCE_FILE = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)([-._].*)?", re.IGNORECASE)
NOTICE = re.compile(r"copyright|public domain|SPDX-License", re.IGNORECASE)
COMMENT = re.compile(r"/\*.*?\*/|(?:^[ \t]*//[^\n]*\n)+", re.DOTALL | re.MULTILINE)
SOURCE = (".c", ".comp", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".m", ".metal")
# What is compiled of llama.cpp, other devices' backends included.
LLAMA_CPP = [
    "ggml/src/*", "ggml/src/ggml-cpu/*", "ggml/src/ggml-cpu/amx/*", "ggml/src/ggml-cpu/arch/**/*",
    "ggml/src/ggml-cpu/llamafile/*", "ggml/src/ggml-cuda/**/*", "ggml/src/ggml-metal/**/*", "ggml/src/ggml-vulkan/**/*",
    "src/**/*", "tools/mtmd/**/*", "vendor/**/*",
]  # fmt: skip
RULE = "=" * 100


def run(*command):
    return subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True).stdout


def crates(target):
    """Each crate that is linked in, as cargo's metadata have it; what only builds them is left out."""
    metadata = json.loads(run("cargo", "metadata", "--format-version", "1", "--locked"))
    found = {f"{crate['name']} v{crate['version']}": crate for crate in metadata["packages"] if crate["source"]}
    chosen = [argument for package in PACKAGES for argument in ("--package", package)]
    tree = run(
        "cargo", "tree", "--locked", "--edges", "normal,no-proc-macro", "--target", target, *chosen,
        "--prefix", "none", "--no-dedupe", "--format", "{p}",
    )  # fmt: skip
    names = {" ".join(line.split()[:2]) for line in tree.splitlines() if line}
    return [found[name] for name in sorted(names) if name in found]


def texts_below(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and LICENCE_FILE.fullmatch(path.name))
    return [path.read_text(encoding="utf-8", errors="replace") for path in files]


def notices_in(source):
    """The comments of a C or C++ source that speak of its licence."""
    comments = COMMENT.findall(source.read_text(encoding="utf-8", errors="replace"))
    return [comment for comment in comments if NOTICE.search(comment)]


def llama_cpp(folder):
    """Title and notices of each source that has its own, which is how small libraries are carried."""
    for library in filter(pathlib.Path.is_dir, folder.joinpath("vendor").iterdir()):
        sources = (path for path in library.rglob("*") if path.suffix in SOURCE)
        if not texts_below(library) and not any(map(notices_in, sources)):
            sys.exit(f"error: nothing below `{library}` says its licence")
    for source in sorted({path for glob in LLAMA_CPP for path in folder.glob(glob) if path.suffix in SOURCE}):
        notices = notices_in(source)
        if notices:
            yield f"llama.cpp: {source.relative_to(folder)}", notices


class Text(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.parts, self.hidden = [], 0

    def handle_starttag(self, tag, attrs):
        self.hidden += tag in ("head", "style")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("head", "style")

    def handle_data(self, data):
        if not self.hidden:
            self.parts.append(data)


def rust_std(documents):
    reader = Text()
    reader.feed(documents.joinpath("COPYRIGHT-library.html").read_text(encoding="utf-8"))
    return re.sub(r"\n\s*\n+", "\n\n", "".join(reader.parts))


def collect(target):
    """Pairs of a title and its texts."""
    apache = PROJECT.joinpath("LICENSE-APACHE").read_text()
    # The licence's terms, without its copyright line.
    mit = PROJECT.joinpath("LICENSE-MIT").read_text().split("\n\n", 2)[2]
    for crate in crates(target):
        name, licence = f"{crate['name']} {crate['version']}", crate["license"] or "its own licence"
        folder = pathlib.Path(crate["manifest_path"]).parent
        texts = texts_below(folder)
        if crate["name"] == "llama-cpp-sys-2":
            yield from llama_cpp(folder / "llama.cpp")
            texts.append(apache)  # What was found is of the sources that it carries.
        if not texts and "Apache-2.0" in licence:
            texts = [apache]
        elif not texts and "MIT" in licence and crate["authors"]:
            texts = [f"MIT License\n\nCopyright (c) {', '.join(crate['authors'])}\n\n{mit}"]
        elif not texts:
            sys.exit(f"error: `{name}` ({licence}) comes without the text of its licence")
        yield f"{name} ({licence})", texts

    documents = pathlib.Path(run("rustc", "--print", "sysroot").strip(), "share/doc/rust")
    yield "Rust's standard library (MIT OR Apache-2.0, and what it lists)", [rust_std(documents)]
    if "linux" in target:
        terms = ["GCC-exception-3.1.txt", "GPL-3.0-or-later.txt"]
        yield (
            "GCC's libgomp, libstdc++ and libgcc (GPL-3.0-or-later WITH GCC-exception-3.1, which lets programs of "
            "any licence contain them)",
            [documents.joinpath("licenses", name).read_text() for name in terms],
        )
    yield "SAELens' list of published SAEs (MIT)", [f"MIT License\n\nCopyright (c) 2023 Joseph Bloom\n\n{mit}"]
    yield "pictures: Noto Emoji and FxEmojis (Apache-2.0)", [apache]
    yield "pictures: Fluent Emoji (MIT)", [f"MIT License\n\nCopyright (c) Microsoft Corporation.\n\n{mit}"]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--target", help="the machine that the programs are for; without it, this one")
    arguments.add_argument("-o", "--output", required=True, metavar="FILE", type=pathlib.Path)
    arguments = arguments.parse_args()
    target = arguments.target or re.search("host: (.*)", run("rustc", "-vV"))[1]

    titles_of = {}  # A text, and all that it is the licence of. Spaces don't tell texts apart.
    texts = {}
    titles = []
    for title, found in collect(target):
        titles.append(title)
        for text in found:
            key = " ".join(text.split())
            texts.setdefault(key, text)
            titles_of.setdefault(key, {})[title] = None
    out = [
        "What these programs contain, and the licences of it. The source of a crate is at",
        "https://crates.io/crates/NAME/VERSION, that of llama.cpp in the crate llama-cpp-sys-2.\n",
        *titles,
    ]
    for key, text in texts.items():
        out += ["", RULE, *titles_of[key], RULE, text.strip("\n")]
    arguments.output.write_text("\n".join(out) + "\n", encoding="utf-8")
    print(f"{arguments.output}: {len(titles)} parts, {len(texts)} texts", file=sys.stderr)


main()
