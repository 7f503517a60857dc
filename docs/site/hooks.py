"""What mkdocs calls while it builds the manual: pages made from the code and from the top folder, and links to source files."""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

SITE = Path(__file__).resolve().parent
ROOT = SITE.parents[1]
sys.path.insert(0, str(SITE))

import reference  # noqa: E402

TOP = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the reference pages and the pages of the top folder."""
    for name, text in reference.pages().items():
        files.append(File.generated(config, name, content=text))
    for name in TOP:
        files.append(File.generated(config, name, content=_moved((ROOT / name).read_text("utf-8"))))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links that leave the manual, such as those to source files, become the file's name: the site has no copy of the source."""
    folder = posixpath.dirname(page.file.src_uri)

    def kept(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        if "://" in target or files.get_file_from_path(posixpath.normpath(posixpath.join(folder, target))) is not None:
            return match[0]
        path = posixpath.normpath(posixpath.join("docs", folder, target))
        if path in TOP:
            return f"[{text}]({posixpath.relpath(path, folder or '.')}{match[3] or ''})"
        if not (ROOT / path).exists():
            return match[0]  # a dead link, which the build reports
        return text if path in text or text.startswith("`") else f"{text} (`{path}`)"

    return _LINK.sub(kept, markdown)


def _moved(text: str) -> str:
    """A page of the top folder as one of `docs/`: links that begin at the top begin at the folder of pages."""

    def moved(match: re.Match[str]) -> str:
        target = match[2]
        if "://" in target:
            return match[0]
        path = posixpath.relpath(target, "docs")
        return f"[{match[1]}]({path}{match[3] or ''})"

    return _LINK.sub(moved, text)
