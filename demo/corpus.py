"""The text that the language model and the SAE learn from: plain prose from grammars, and scenes
written as grids of words, in the chat form of the pictures' prompts. No picture and no drawing is
looked at here: the grids come from circles and boxes.
"""

import random

import scenes
from words import BACKGROUNDS, CLASSES, GROUNDS, KINDS, NOUNS, article

PROMPT = "Describe the image."
USER, MODEL, END = "<start_of_turn>user\n", "<start_of_turn>model\n", "<end_of_turn>"

NAMES = "Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Klara Leo Mia Nils Olga Paul Rosa Sam Tina Victor".split()
PLACES = "garden field farm forest zoo lake sea beach meadow kitchen market bakery street station village park harbor airport hill house school museum shop river valley".split()
TIMES = ["in the morning", "at noon", "in the evening", "at night", "on Monday", "on Sunday", "last summer", "in winter", "every day", "after school", "before dinner", "once a year"]
SIZES = "small large big tiny huge little tall heavy light".split()
MOODS = "happy sad tired proud angry calm curious quiet hungry late".split()
COLOURS = "red orange yellow green blue purple pink white gray black brown".split()
DEEDS = ["looked at", "painted", "photographed", "drew", "remembered", "dreamed of", "talked about", "wrote about", "searched for", "found", "lost", "bought", "sold", "hid", "moved", "carried", "liked", "forgot"]  # fmt: skip
NUMBERS = "two three four five six seven eight nine ten twelve twenty".split()
IRREGULAR = {"fish": "fish", "strawberry": "strawberries", "butterfly": "butterflies", "bus": "buses", "octopus": "octopuses", "bread": "loaves of bread", "cheese": "pieces of cheese"}  # fmt: skip


def plural(noun: str) -> str:
    return IRREGULAR.get(noun, f"{noun}s")


def sentence(rng: random.Random, noun: str) -> str:
    """A sentence about a class; the words that fit the class come from its facts."""
    _, kind, colour, place, deed = CLASSES[noun]
    one, name, other = article(noun), rng.choice(NAMES), rng.choice(NOUNS)
    name2, place2 = rng.choice(NAMES), rng.choice(PLACES)
    time, size, mood = rng.choice(TIMES), rng.choice(SIZES), rng.choice(MOODS)
    any_colour, verb, number = rng.choice(COLOURS), rng.choice(DEEDS), rng.choice(NUMBERS)
    a_kind = article(kind)
    text = rng.choice(
        [
            f"{one} is {a_kind}.",
            f"the {noun} {deed}.",
            f"{time}, the {noun} {deed}.",
            f"you can often see {one} in the {place}.",
            f"most {plural(noun)} are {colour}.",
            f"{name} has a {colour} {noun}.",
            f"{name} {verb} the {size} {noun} in the {place}.",
            f"{name} {verb} {number} {plural(noun)} {time}.",
            f"there is a {size} {noun} in the {place2}.",
            f"the {noun} in the {place2} is {any_colour}, not {rng.choice(COLOURS)}.",
            f"is {one} {a_kind}? Yes, it is.",
            f"is {one} {article(rng.choice(KINDS))}? {name} does not know.",
            f"what color is the {noun}? It is {colour}.",
            f"{name} asked {name2} about the {noun}.",
            f"\"Look, {one}!\" said {name}.",
            f"\"Where is my {noun}?\" asked {name}. \"In the {place},\" said {name2}.",
            f"{name} was {mood} because the {noun} was gone.",
            f"{name} drew {one} and {article(other)} {time}.",
            f"the {noun} is {size}, and the {other} is {rng.choice(SIZES)}.",
            f"next to the {noun} stood {article(other)}.",
            f"a book about {plural(noun)} lies on the table.",
            f"{name} thinks that {plural(noun)} are better than {plural(other)}.",
            f"in the {place}, {name} {verb} {one}.",
            f"nobody saw the {noun} {time}.",
            f"the word {noun} has {len(noun)} letters.",
            f"{name} gave {name2} {one} {time}.",
            f"first came the {noun}, then the {other}.",
            f"the {any_colour} {noun} belongs to {name}.",
            f"how many {plural(noun)} are there? {number.capitalize()}.",
            f"without {one}, the {place} would be empty.",
        ]
    )
    return text[0].upper() + text[1:]


def ground_sentence(rng: random.Random) -> str:
    """A sentence about colours and backgrounds."""
    ground = rng.choice(GROUNDS)
    phrase, name = BACKGROUNDS[ground][0], rng.choice(NAMES)
    text = rng.choice(
        [
            f"{name} painted the wall {rng.choice(COLOURS)}.",
            f"{name} put {article(rng.choice(NOUNS))} {phrase}.",
            f"the picture was taken {phrase}.",
            f"{ground} is what {name} sees {rng.choice(TIMES)}.",
            f"everything here is {rng.choice(COLOURS)}.",
            f"{name} likes {ground} and {rng.choice(GROUNDS)}.",
        ]
    )
    return text[0].upper() + text[1:]


def prose(rng: random.Random) -> str:
    """A paragraph that stays with one or two classes."""
    topics = rng.sample(NOUNS, 2)
    sentences = []
    for _ in range(rng.randint(3, 9)):
        topic = topics[rng.random() < 0.3]
        sentences.append(ground_sentence(rng) if rng.random() < 0.12 else sentence(rng, topic))
    return " ".join(sentences)


def grid(rng: random.Random, scene: scenes.Scene) -> list[str]:
    """A scene as a word for each patch, in reading order, with some words wrong: anywhere, and, as
    where a drawing looks like another class in parts, one other noun within an object."""
    words = [[scene.ground] * scenes.GRID for _ in range(scenes.GRID)]
    for placed in scene.objects:
        looks_like = rng.choice(NOUNS)
        mistaken = rng.choice([0, 0, 0, 0.15, 0.3])
        round_shape = rng.random() < 0.6
        width, height = rng.uniform(0.5, 1.0), rng.uniform(0.5, 1.0)
        if max(width, height) < 0.85:
            width = 1.0
        for row in range(scenes.GRID):
            for column in range(scenes.GRID):
                x = ((column + 0.5) * scenes.PATCH - placed.left) / placed.size * 2 - 1
                y = ((row + 0.5) * scenes.PATCH - placed.top) / placed.size * 2 - 1
                x, y = x / width, y / height
                inside = x * x + y * y <= 1 if round_shape else max(abs(x), abs(y)) <= 1
                if inside:
                    words[row][column] = looks_like if rng.random() < mistaken else placed.noun
    wrong = rng.choice([0, 0, 0.02, 0.05, 0.1])
    flat = [word for row in words for word in row]
    return [rng.choice(scenes.PATCH_WORDS) if rng.random() < wrong else word for word in flat]


def question(rng: random.Random, scene: scenes.Scene) -> tuple[str, str]:
    """A question about a scene and its answer; mostly the description."""
    placed = rng.choice(scene.objects)
    count = {1: "one object", 2: "two objects", 3: "three objects"}[len(scene.objects)]
    absent = rng.choice([noun for noun in NOUNS if noun not in scene.nouns()])
    asked = rng.choice([placed.noun, absent])
    answer = "Yes" if asked == placed.noun else "No"
    listed = " and ".join(article(noun) for noun in scene.nouns())
    if rng.random() < 0.75:
        return PROMPT, scene.caption()
    return rng.choice(
        [
            (f"Where is the {placed.noun}?", f"The {placed.noun} is {placed.where()}."),
            (f"Is there {article(asked)}?", f"{answer}."),
            ("How many objects are there?", f"There is {count}." if len(scene.objects) == 1 else f"There are {count}."),
            ("What is in the image?", f"{listed[0].upper()}{listed[1:]}."),
            ("What is the background?", f"The image was taken {BACKGROUNDS[scene.ground][0]}."),
        ]
    )  # fmt: skip


def chat(rng: random.Random) -> str:
    """A conversation about a scene that is written as a grid of words."""
    n_objects = rng.choices([1, 2, 3], [40, 45, 15])[0]
    scene = scenes.sample(rng, n_objects, held_out=False)
    asked, answer = question(rng, scene)
    words = " ".join(grid(rng, scene))
    return f"{USER} {words}\n{asked}{END}\n{MODEL}{answer}{END}"


def text_chat(rng: random.Random) -> str:
    """A conversation without a scene."""
    noun = rng.choice(NOUNS)
    _, kind, colour, place, deed = CLASSES[noun]
    asked, answer = rng.choice(
        [
            (f"What is {article(noun)}?", f"{article(noun).capitalize()} is {article(kind)}."),
            (f"What color is the {noun}?", f"It is {colour}."),
            (f"Where can I see {article(noun)}?", f"In the {place}."),
            (f"What does the {noun} do?", f"The {noun} {deed}."),
            (f"Tell me about the {noun}.", " ".join(sentence(rng, noun) for _ in range(2))),
        ]
    )
    return f"{USER}{asked}{END}\n{MODEL}{answer}{END}"
