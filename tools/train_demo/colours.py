"""The eleven colours that captions name: backgrounds and tints alike."""

COLOURS = {
    "red": (214, 48, 49),
    "orange": (245, 140, 40),
    "yellow": (250, 210, 60),
    "green": (70, 170, 80),
    "blue": (60, 110, 220),
    "purple": (130, 75, 190),
    "pink": (248, 150, 190),
    "brown": (125, 80, 50),
    "gray": (140, 140, 140),
    "black": (20, 20, 20),
    "white": (255, 255, 255),
}
COLOUR_NAMES = list(COLOURS)
# What a picture gets whose caption names no background.
DEFAULT_BACKGROUND = COLOUR_NAMES.index("white")
