"""Links from the documentation to files of the repository outside it, such as tests and plots.

Written as on GitHub, relative to the page (``../tests/test_rng.py``). A file that is linked to is copied into
the site; a file that does not exist is a warning, which ``mkdocs build --strict`` turns into a failure.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_LINK = re.compile(r"(\]\()((?:\.\./)+[^)\s#]+)")
_log = logging.getLogger("mkdocs.hooks.repository")


def on_files(files: Files, config: Any) -> Files:
    """Adds the files that pages link to."""
    for page in list(files.documentation_pages()):
        for _, link in _LINK.findall(page.content_string):
            name = _outside(page.src_uri, link)
            if name is None or files.get_file_from_path(f"repository/{name}"):
                continue
            path = Path(config.config_file_path).parent / name
            if path.is_file():
                files.append(File.generated(config, f"repository/{name}", abs_src_path=str(path)))
            else:
                _log.warning("%s links to %s, which is not in the repository", page.src_uri, name)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Points those links at the copies."""

    def moved(match: re.Match[str]) -> str:
        name = _outside(page.file.src_uri, match[2])
        if name is None:
            return match[0]
        return match[1] + posixpath.relpath(f"repository/{name}", posixpath.dirname(page.file.src_uri) or ".")

    return _LINK.sub(moved, markdown)


def _outside(page: str, link: str) -> str | None:
    """The file of the repository that a link of a page leads to; None if it is inside the documentation."""
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if target.startswith(("docs/", "..")) else target
