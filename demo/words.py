"""What the demo model knows: its classes of objects, its backgrounds, and facts about them.

A class is a noun that becomes one token, the names of the drawings that show it in the emoji sets,
and facts that the text corpus is made from.
"""

# noun: (drawings, kind, colour, place, deed)
CLASSES = {
    "dog": (["dog", "dog-face", "poodle", "dogside"], "animal", "brown", "garden", "barks at the door"),
    "cat": (["cat", "cat-face", "catside"], "animal", "gray", "house", "sleeps on the sofa"),
    "cow": (["cow", "cow-face", "ox"], "animal", "white", "field", "eats grass all day"),
    "pig": (["pig", "pig-face", "pigside"], "animal", "pink", "farm", "rolls in the mud"),
    "horse": (["horse", "horse-face"], "animal", "brown", "field", "runs over the hill"),
    "frog": (["frog"], "animal", "green", "pond", "jumps into the water"),
    "bear": (["bear"], "animal", "brown", "forest", "looks for honey"),
    "elephant": (["elephant"], "animal", "gray", "zoo", "lifts a heavy log"),
    "penguin": (["penguin"], "animal", "black", "ice", "slides on its belly"),
    "duck": (["duck"], "animal", "green", "lake", "swims with its family"),
    "fish": (["fish", "tropical-fish"], "animal", "blue", "sea", "hides between stones"),
    "whale": (["whale", "spouting-whale"], "animal", "blue", "ocean", "sings in the deep"),
    "octopus": (["octopus"], "animal", "red", "reef", "opens a jar"),
    "snail": (["snail"], "animal", "brown", "garden", "carries its home"),
    "turtle": (["turtle"], "animal", "green", "beach", "walks very slowly"),
    "butterfly": (["butterfly"], "animal", "orange", "meadow", "visits a flower"),
    "rabbit": (["rabbit", "rabbit-face"], "animal", "white", "meadow", "digs a hole"),
    "pizza": (["pizza", "sliceofpizza"], "food", "red", "oven", "comes with extra olives"),
    "hamburger": (["hamburger"], "food", "brown", "kitchen", "is served with fries"),
    "banana": (["banana"], "food", "yellow", "market", "ripens in a week"),
    "apple": (["red-apple"], "food", "red", "orchard", "falls from the branch"),
    "strawberry": (["strawberry"], "food", "red", "garden", "tastes of summer"),
    "watermelon": (["watermelon"], "food", "green", "market", "is full of seeds"),
    "carrot": (["carrot"], "food", "orange", "field", "grows under the ground"),
    "doughnut": (["doughnut"], "food", "pink", "bakery", "is covered with sugar"),
    "bread": (["bread"], "food", "brown", "bakery", "smells of the oven"),
    "cheese": (["cheese-wedge"], "food", "yellow", "kitchen", "attracts mice"),
    "car": (["automobile", "oncoming-automobile"], "vehicle", "red", "road", "waits at the light"),
    "bus": (["bus", "oncoming-bus"], "vehicle", "yellow", "street", "stops at the school"),
    "bicycle": (["bicycle"], "vehicle", "black", "street", "leans against the wall"),
    "airplane": (["airplane", "small-airplane"], "vehicle", "white", "airport", "lands in the fog"),
    "rocket": (["rocket"], "vehicle", "white", "desert", "flies to the stars"),
    "boat": (["sailboat"], "vehicle", "white", "harbor", "follows the wind"),
    "train": (["locomotive", "train", "high-speed-train"], "vehicle", "gray", "station", "arrives on time"),
    "house": (["house", "house-with-garden", "housebuilding"], "building", "white", "village", "has a small chimney"),
    "castle": (["castle", "japanese-castle", "europeancastle"], "building", "gray", "hill", "guards the valley"),
    "tree": (["evergreen-tree", "deciduous-tree"], "plant", "green", "park", "gives shade"),
    "sunflower": (["sunflower"], "plant", "yellow", "field", "turns to the light"),
    "mushroom": (["mushroom"], "plant", "red", "forest", "appears after rain"),
    "umbrella": (["umbrella", "umbrella-with-rain-drops", "closed-umbrella"], "thing", "purple", "hall", "keeps the rain away"),
    "guitar": (["guitar"], "thing", "brown", "stage", "plays a soft song"),
    "key": (["key", "old-key"], "thing", "yellow", "drawer", "opens the gate"),
}  # fmt: skip

NOUNS = list(CLASSES)
KINDS = sorted({facts[1] for facts in CLASSES.values()})

# word: (how a caption says it, base colour, texture)
BACKGROUNDS = {
    "red": ("on a red background", (205, 50, 50), "plain"),
    "orange": ("on an orange background", (240, 140, 40), "plain"),
    "yellow": ("on a yellow background", (245, 220, 80), "plain"),
    "green": ("on a green background", (60, 160, 80), "plain"),
    "blue": ("on a blue background", (55, 100, 215), "plain"),
    "purple": ("on a purple background", (135, 70, 180), "plain"),
    "pink": ("on a pink background", (245, 165, 195), "plain"),
    "white": ("on a white background", (245, 245, 245), "plain"),
    "gray": ("on a gray background", (135, 135, 135), "plain"),
    "black": ("on a black background", (22, 22, 26), "plain"),
    "grass": ("on green grass", (110, 175, 60), "blades"),
    "sand": ("on yellow sand", (225, 200, 145), "grains"),
    "water": ("on calm water", (70, 155, 190), "waves"),
    "sky": ("in a clear sky", (150, 205, 245), "fade"),
}
GROUNDS = list(BACKGROUNDS)
PATCH_WORDS = NOUNS + GROUNDS  # what a patch of a picture can be


def article(noun: str) -> str:
    """The noun with its article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
