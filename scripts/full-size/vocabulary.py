"""Random vocabularies of Gemma's and Gemma 3's size and layout, with which any text can be tokenised."""

import random
import string
from dataclasses import dataclass
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2
from transformers import GemmaTokenizer

MAX_PIECE_CHARS = 16

# Gemma's chat template; llama.cpp knows it by its turn markers.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' + "
    "message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)


# A user's turn with the image in front, as Gemma 3's template writes it.
GEMMA3_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n{% for part in "
    "message['content'] %}{{ '<start_of_image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@dataclass(frozen=True)
class Layout:
    n_pieces: int  # the image's token is appended behind them
    first: list[str]  # behind the control tokens
    image_marks: list[str]  # at id 255999
    chat_template: str
    named: dict[str, str]  # what the tokenizer calls its image tokens
    image_token: str


LLAVA_GEMMA = Layout(256_000, ["<mask>", "<2mass>", "[@BOS@]"], [], CHAT_TEMPLATE, {}, "<image>")
IMAGE_MARKS = ["<start_of_image>", "<end_of_image>"]
GEMMA3 = Layout(
    262_144,
    ["<mask>", "[multimodal]"],
    IMAGE_MARKS,
    GEMMA3_CHAT_TEMPLATE,
    {"boi_token": IMAGE_MARKS[0], "eoi_token": IMAGE_MARKS[1], "image_token": "<image_soft_token>"},
    "<image_soft_token>",
)


def pieces(layout: Layout) -> list[tuple[str, str]]:
    """Every piece with its kind, by id: Gemma's control, user-defined and byte tokens in their places, then
    merges of earlier pieces, and last the characters that these begin with."""
    found = [("<pad>", "CONTROL"), ("<eos>", "CONTROL"), ("<bos>", "CONTROL"), ("<unk>", "UNKNOWN")]
    user_defined = [*layout.first]
    user_defined += [f"<unused{i}>" for i in range(99)]
    user_defined += ["<start_of_turn>", "<end_of_turn>"]
    user_defined += ["\n" * n for n in range(1, 32)]
    user_defined += ["▁" * n for n in range(2, 32)]
    tags = ["table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "h1", "h2", "h3", "h4", "h5", "h6"]
    tags += ["blockquote", "strong", "em", "b", "i", "u", "s", "sub", "sup", "code"]
    user_defined += [f"<{slash}{tag}>" for slash in ("", "/") for tag in tags]
    found += [(piece, "USER_DEFINED") for piece in user_defined]
    found += [(f"<0x{byte:02X}>", "BYTE") for byte in range(256)]

    characters = ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    characters += [chr(code) for code in range(0xA1, 0x250) if chr(code).isprintable()]
    rng = random.Random(0)
    taken = {piece for piece, _ in found} | set(characters)
    merges = []
    while len(found) + len(merges) + len(characters) + len(layout.image_marks) < layout.n_pieces:
        common = characters[:53]  # a space and letters: most pieces are made of these
        sources = [characters, common, common, merges or common, merges[-20_000:] or common]
        merged = rng.choice(rng.choice(sources)) + rng.choice(rng.choice(sources))
        # As in Gemma, a space begins a piece or is not in it.
        if len(merged) <= MAX_PIECE_CHARS and "▁" not in merged[1:] and merged not in taken:
            taken.add(merged)
            merges.append(merged)
    found += [(piece, "NORMAL") for piece in merges + characters]
    found[255_999:255_999] = [(piece, "USER_DEFINED") for piece in layout.image_marks]
    return found


def make(folder: Path, layout: Layout = LLAVA_GEMMA) -> None:
    """Writes `tokenizer.model` and the files that transformers saves beside it."""
    model = sentencepiece_model_pb2.ModelProto()
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    n_merged = 0
    for piece, kind in pieces(layout):
        # As SentencePiece's BPE scores them: the earlier a merge was found, the sooner it is made.
        score = -float(n_merged) if kind == "NORMAL" else 0.0
        n_merged += kind == "NORMAL"
        model.pieces.add(piece=piece, score=score, type=getattr(kinds, kind))
    assert len(model.pieces) == layout.n_pieces
    model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = layout.n_pieces
    model.trainer_spec.pad_id, model.trainer_spec.eos_id = 0, 1
    model.trainer_spec.bos_id, model.trainer_spec.unk_id = 2, 3
    model.trainer_spec.pad_piece, model.trainer_spec.eos_piece = "<pad>", "<eos>"
    model.trainer_spec.bos_piece, model.trainer_spec.unk_piece = "<bos>", "<unk>"
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    path = folder / "tokenizer.model"
    path.write_bytes(model.SerializeToString())

    turns = ["<start_of_turn>", "<end_of_turn>"]
    named = {"extra_special_tokens": layout.named} if layout.named else {}
    tokenizer = GemmaTokenizer(
        str(path), chat_template=layout.chat_template, additional_special_tokens=turns, **named
    )
    tokenizer.add_tokens([layout.image_token], special_tokens=True)
    first = 4 + len(layout.first) + 99
    ids = tokenizer.convert_tokens_to_ids(["<start_of_turn>", "\n", layout.image_token, *layout.image_marks])
    assert ids == [first, first + 2, layout.n_pieces, 255_999, 256_000][: len(ids)], ids
    tokenizer.save_pretrained(folder)
