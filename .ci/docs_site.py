"""mkdocs hooks: add pages from outside `docs/` and from notebooks; check that no page loads files from other hosts."""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "emoji.md": "examples/emoji/README.md",
    "shapes.md": "examples/shapes/README.md",
}
# Attributes that make a browser load a file; links that a reader follows (<a href>) may go anywhere.
EXTERNAL = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//|<link\b[^>]*\bhref=\"?(?:https?:)?//"
)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of `PAGES` with links that work in the site, the images in their folders, and the notebooks."""
    for page, source in PAGES.items():
        path = ROOT / source
        text = re.sub(r"\]\((?:\.\./)*docs/", "](", path.read_text(encoding="utf-8"))
        for other, file in PAGES.items():
            text = re.sub(rf"\]\((?:\.\./)*{re.escape(file)}", f"]({other}", text)
        files.append(File.generated(config, page, content=text))
        for image in (*path.parent.glob("*.svg"), *path.parent.glob("*.png")):
            files.append(File.generated(config, image.name, abs_src_path=str(image)))
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=_notebook_page(notebook)))
    return files


def _notebook_page(notebook: Path) -> str:
    """Returns the cells of a notebook as Markdown. Its outputs are not stored."""
    parts = [f'<a href="{notebook.name}" download>Download this page as a notebook</a>']
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    title = parts.pop(1)
    return "\n\n".join([title, *parts]) + "\n"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Changes links to files outside `docs/` to the pages made from them."""
    for page, source in {**PAGES, "index.md": "README.md"}.items():
        markdown = markdown.replace(f"](../{source}", f"]({page}")
    return re.sub(r"\]\(([^):]+)\.ipynb", r"](\1.md", markdown)


def on_post_build(config: Any) -> None:
    """Fails if a page loads a script, style, font or image from another host."""
    for page in Path(config.site_dir).rglob("*.html"):
        if found := EXTERNAL.search(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page} loads a file from another host: {found[0]}")
    for style in Path(config.site_dir).rglob("*.css"):
        if found := re.search(r"(?:@import|url\()[\"' ]*https?://[^)\"']*", style.read_text(encoding="utf-8")):
            raise PluginError(f"{style} loads a file from another host: {found[0]}")
