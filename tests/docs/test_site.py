"""The documentation as a site: its links are checked, and every page is in the navigation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.test_docs import PAGES
from tests.proxy.conftest import ROOT
from tools.build_site import broken_links, stage


def page(body: str) -> str:
    return f"<html><body>{body}</body></html>"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site whose links all lead somewhere: to a page, to an anchor, to a file, and to another host."""
    (tmp_path / "docs" / "python").mkdir(parents=True)
    (tmp_path / "index.html").write_text(
        page('<a href="docs/python/#money">a</a><a href="#top" id="top">b</a><img src="picture.png">')
    )
    (tmp_path / "docs" / "python" / "index.html").write_text(
        page('<h2 id="money">Money</h2><a href="../..">up</a><a href="https://example.com/none">c</a>')
    )
    (tmp_path / "picture.png").write_bytes(b"")
    return tmp_path


def test_good_links_are_not_reported(site: Path):
    """Pages, folders, anchors and files are found; other hosts are not asked."""
    assert list(broken_links(site)) == []


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("docs/none/", "no such file"),
        ("examples/none.py", "no such file"),
        ("/docs/none", "no such file"),
        ("docs/python/#none", "no such anchor"),
        ("#none", "no such anchor"),
    ],
)
def test_a_broken_link_is_reported(site: Path, link: str, problem: str):
    """The report has the page, the link and the kind of the problem."""
    index = site / "index.html"
    index.write_text(index.read_text().replace("</body>", f'<a href="{link}">x</a></body>'))
    assert list(broken_links(site)) == [f"index.html: {link}: {problem}"]


def test_the_staged_pages_have_the_files_they_link_to(tmp_path: Path):
    """Each relative link of a page leads to a file in the folder, as it does in the repository."""
    stage(ROOT, tmp_path)
    links = [
        (copy, target)
        for original in PAGES
        for copy in [tmp_path / original.relative_to(ROOT)]
        for target in re.findall(r"\]\(([^)#:]+)\)", copy.read_text())
    ]
    assert len(links) > 50
    assert [(copy.name, target) for copy, target in links if not (copy.parent / target).exists()] == []


def test_every_page_is_in_the_navigation():
    """A new page must be given a place, and none is there twice."""
    named = re.findall(r'= "([\w./-]+\.md)"', (ROOT / "zensical.toml").read_text())
    assert len(named) == len(set(named))
    pages = {str(path.relative_to(ROOT)) for path in (*PAGES, *ROOT.glob("*.md"))}
    assert set(named) == pages
