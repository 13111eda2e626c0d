"""A package of a dozen pictures in the layout of emoji-datasource-google."""

import io
import json
import tarfile

import pytest
from PIL import Image, ImageDraw

from examples.emoji.tables import write_tables

TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
# The split holds out one skin tone of the fist, the bug and Norway's flag.
NAMES = {
    "LEFT-FACING FIST": ("left-facing_fist", "People & Body"),
    "BUG": ("bug", "Animals & Nature"),
    "Norway Flag": ("flag-no", "Flags"),
    "PENGUIN": ("penguin", "Animals & Nature"),
    "RED APPLE": ("apple", "Food & Drink"),
    "FULL MOON SYMBOL": ("full_moon", "Travel & Places"),
    "GREEN SALAD": ("green_salad", "Food & Drink"),
}


def table():
    """Returns the content of emoji.json."""
    entries = []
    for number, (name, (short, category)) in enumerate(NAMES.items()):
        entry = {"name": name, "short_names": [short], "category": category, "sort_order": number}
        entry |= {"image": f"{number}.png", "has_img_google": True}
        if category == "People & Body":
            entry["skin_variations"] = {
                tone: {"image": f"{number}-{tone}.png", "has_img_google": True} for tone in TONES
            }
        entries.append(entry)
    return entries


def picture(number):
    """Returns a PNG file of a colored disk on a transparent background."""
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    color = (40 * number % 256, 90 * number % 256, 150, 255)
    ImageDraw.Draw(image).ellipse((8, 8, 40 + 2 * number % 20, 56), fill=color)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "emoji.tgz"
    entries = table()
    images = [one["image"] for entry in entries for one in (entry, *entry.get("skin_variations", {}).values())]
    files = {f"package/img/google/64/{name}": picture(number) for number, name in enumerate(images)}
    with tarfile.open(path, "w:gz") as tar:
        for name, content in (files | {"package/emoji.json": json.dumps(entries).encode()}).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="session")
def workdir(package, tmp_path_factory):
    """A workdir with the tables of this package."""
    folder = tmp_path_factory.mktemp("emoji")
    write_tables(package, folder / "data")
    return folder
