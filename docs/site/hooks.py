"""Makes a site of files that are written to be read in the repository, too.

README and CHANGELOG become pages. Fences say more than their language, for the tests
(`python new`, `text prints`), and links may lead out of the documentation: neither means anything
on the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parents[2]
_PAGES = {"README.md": "readme.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}
_FENCE = re.compile(r"^```(\w+) [^\n]*$", re.MULTILINE)
_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<to>[^)#\s:]+)(?P<anchor>#[^)\s]+)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, page in _PAGES.items():
        text = (_ROOT / name).read_text("utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    # Where the page's own text stands in the repository, and where it is on the site.
    here = page.file.src_uri
    source = {site: name for name, site in _PAGES.items()}.get(here, f"docs/{here}")

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match["to"]))
        site = _PAGES.get(target, target.removeprefix("docs/"))
        if target not in _PAGES and not target.startswith("docs/"):
            return match["text"]
        relative = posixpath.relpath(site, posixpath.dirname(here) or ".")
        return f"[{match['text']}]({relative}{match['anchor'] or ''})"

    return _LINK.sub(link, _FENCE.sub(r"```\1", markdown))
