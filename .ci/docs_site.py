"""mkdocs hooks: add pages from outside `docs/`, and check that the site loads no files from other hosts."""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md", "shapes.md": "examples/shapes/README.md"}
# Attributes that make a browser load a file; links that a reader follows (<a href>) may go anywhere.
EXTERNAL = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//|<link\b[^>]*\bhref=\"?(?:https?:)?//"
)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of `PAGES` with links that work in the site, and the images in their folders."""
    for page, source in PAGES.items():
        path = ROOT / source
        text = re.sub(r"\]\((?:\.\./)*docs/", "](", path.read_text(encoding="utf-8"))
        for other, file in PAGES.items():
            text = re.sub(rf"\]\((?:\.\./)*{re.escape(file)}", f"]({other}", text)
        files.append(File.generated(config, page, content=text))
        for image in path.parent.glob("*.svg"):
            files.append(File.generated(config, image.name, abs_src_path=str(image)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Changes links to files outside `docs/` to the pages made from them."""
    for page, source in {**PAGES, "index.md": "README.md"}.items():
        markdown = markdown.replace(f"](../{source}", f"]({page}")
    return markdown


def on_post_build(config: Any) -> None:
    """Fails if a page loads a script, style, font or image from another host."""
    for page in Path(config.site_dir).rglob("*.html"):
        if found := EXTERNAL.search(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page} loads a file from another host: {found[0]}")
    for style in Path(config.site_dir).rglob("*.css"):
        if found := re.search(r"(?:@import|url\()[\"' ]*https?://[^)\"']*", style.read_text(encoding="utf-8")):
            raise PluginError(f"{style} loads a file from another host: {found[0]}")
