"""Build the documentation as a site and check its links: `make site` writes it to `build/site`.

The site has the layout of the repository, with the README as its first page. So a relative link works on the
repository's page and on the site, and none is rewritten. Source files that a page links to are copied too.

Zensical builds the pages. Its strict mode checks links between pages. `broken_links` then reads the finished HTML, and
checks every link of it: to other files, anchors, styles, scripts and images.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "build" / "site-source"
SITE = ROOT / "build" / "site"
PAGES = ("*.md", "docs/*.md", "examples/*/*.md")

_LINK = re.compile(r"\]\(([^)#\s]+)")


def main() -> None:
    """Build and check; end with an error if a link leads nowhere."""
    stage(ROOT, SOURCE)
    zensical = Path(sys.executable).with_name("zensical")
    built = subprocess.run([zensical, "build", "--clean", "--strict"], cwd=ROOT, check=False)  # noqa: S603
    if built.returncode:
        sys.exit("The site cannot be built: see above.")
    broken = list(broken_links(SITE))
    for one in broken:
        sys.stderr.write(f"{one}\n")
    pages = len(list(SITE.rglob("*.html")))
    if broken:
        sys.exit(f"{len(broken)} broken links on {pages} pages.")
    sys.stdout.write(f"{pages} pages in {SITE.relative_to(ROOT)}, every link of them leads somewhere.\n")


def stage(root: Path, folder: Path) -> None:
    """Copy the pages and the files that they link to into a folder, in the layout of the repository."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = [page for pattern in PAGES for page in sorted(root.glob(pattern))]
    linked = {
        target
        for page in pages
        for link in _LINK.findall(page.read_text(encoding="utf-8"))
        if not urlsplit(link).scheme and (target := (page.parent / unquote(link)).resolve()).is_file()
    }
    for path in {*pages, *linked}:
        copy = folder / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


class _Page(HTMLParser):
    """The anchors of a page, and the targets of its links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record the anchor and the targets of a tag."""
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif name in ("href", "src"):
                self.targets.append(value)


def broken_links(site: Path) -> Iterator[str]:
    """Yield every link of the finished pages that leads to no file of the site, or to no anchor of a page.

    Links to other hosts are not followed: a check that needs the network fails when a stranger's server does.
    """
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        if path == site / "404.html":  # served in place of any page, with addresses from the root of the host
            continue
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            found = path if not parts.path else _file_of(site, path, unquote(parts.path))
            anchor = unquote(parts.fragment)
            if not found.is_file():
                yield f"{path.relative_to(site)}: {target}: no such file"
            elif anchor and found in pages and anchor not in pages[found].anchors:
                yield f"{path.relative_to(site)}: {target}: no such anchor"


def _file_of(site: Path, page: Path, path: str) -> Path:
    found = (site / path.lstrip("/") if path.startswith("/") else page.parent / path).resolve()
    return found / "index.html" if path.endswith("/") or found.is_dir() else found


if __name__ == "__main__":
    main()
