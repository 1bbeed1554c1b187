"""The English of the project is measured: docstrings, comments, messages and documents.

Print the findings of a room: `python -m tests.support.prose usage_plugin/tracking`.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.support.prose import files, free_relatives, measure, plain_text, read, split_sentences

ROOT = Path(__file__).parents[2]

ROOMS = [
    "usage_plugin",
    "tests",
    "docs",
    "examples",
    "benchmarks",
    "tools",
    ".github",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "config.example.yaml",
]

# datasette, tox, procrastinate, svcs, hatchling, eventsourcing, limits and TigerBeetle have 0.0 to 1.5.
MAX_FREE_RELATIVES = 2.0
# Sentences above 25 words; a room of few sentences may have one.
MAX_LONG_SHARE = 0.02


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_in_plain_english(room: str) -> None:
    """Each room keeps to the bounds for words, sentences and paragraphs."""
    found = measure(ROOT / room)
    assert found.words, f"{room} has no prose"
    assert found.free_per_thousand <= MAX_FREE_RELATIVES, "\n".join(found.free)
    assert not found.listed, "\n".join(found.listed)
    assert not found.openings, "\n".join(found.openings)
    assert not found.long_paragraphs, "\n".join(found.long_paragraphs)
    assert len(found.long_sentences) <= max(1, MAX_LONG_SHARE * found.sentences), "\n".join(
        f"{length} words, {text}" for length, text in sorted(found.long_sentences, reverse=True)
    )


def measured(tmp_path: Path, name: str, text: str):
    path = tmp_path / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return measure(path)


def test_a_module_is_read_in_full(tmp_path: Path) -> None:
    """Docstrings, comments and messages count as prose; code, SQL and directives do not."""
    path = tmp_path / "module.py"
    path.write_text(
        textwrap.dedent('''\
            """Module sentence."""

            import logging  # noqa: F401 - reason of the directive

            # First line of a comment
            # and its second line.
            LIMIT = 1  # trailing comment
            """Attribute docstring of four words."""
            QUERY = "SELECT a FROM b WHERE c is not null and so on"


            class Thing:
                """Class sentence."""

                def act(self, number):
                    """Function sentence.

                    Args:
                        number: The first entry.

                    Returns:
                        The second entry.
                    """
                    raise ValueError(f"expected a number here; found {number}")
            ''')
    )
    assert sorted((prose.kind, " ".join(prose.text.split())) for prose in read(path)) == [
        ("comment", "First line of a comment and its second line."),
        ("comment", "reason of the directive"),
        ("comment", "trailing comment"),
        ("docstring", "Class sentence."),
        ("docstring", "Module sentence."),
        ("function", "Function sentence. Args: number: The first entry. Returns: The second entry."),
        ("message", "Attribute docstring of four words."),
        ("message", "expected a number here; found \N{REPLACEMENT CHARACTER}"),
    ]


def test_a_document_is_read_in_full(tmp_path: Path) -> None:
    """Headings, paragraphs, items and cells count as prose; code and addresses do not."""
    path = tmp_path / "page.md"
    path.write_text(
        "# A head\n\nText with `code` and\n[a link](x.md).\n\n- item\n\n```bash\nwhat\n```\n\n| a | b |\n|--|--|\n| c | `d` |\n"
    )
    mark = "\N{REPLACEMENT CHARACTER}"
    assert [tuple(prose) for prose in read(path)] == [
        (1, "heading", "A head"),
        (3, "paragraph", f"Text with {mark} and a link."),
        (6, "paragraph", "item"),
        (12, "cell", "a"),
        (12, "cell", "b"),
        (14, "cell", "c"),
        (14, "cell", mark),
    ]


def test_comments_of_yaml_are_read(tmp_path: Path) -> None:
    """A # inside a quoted value opens no comment."""
    path = tmp_path / "config.yaml"
    path.write_text('# One\n# two.\na: "Ask #platform" # three\nb: c#d\n')
    assert [tuple(prose) for prose in read(path)] == [(1, "comment", "One\ntwo."), (3, "comment", "three")]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Whoever settles first wins.", ["Whoever"]),
        ("It tells what was spent and by whom.", ["what", "whom"]),
        ("List who was refused.", ["who"]),
        ("Users who spend most, and eva, who spends little.", []),
        ("The `client` who asks.", []),
    ],
)
def test_free_relatives_are_found(sentence: str, expected: list[str]) -> None:
    """A pronoun without a noun before it is a free relative; an ordinary relative clause is not."""
    assert list(free_relatives(plain_text(sentence))) == expected


def test_a_question_may_begin_with_what(tmp_path: Path) -> None:
    """Interrogative pronouns of a question are not counted."""
    assert not measured(tmp_path, "page.md", "# What does it cost?\n").free


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The dearest model is read anew by somebody.", ["dearest", "anew", "somebody"]),
        ("So many requests wait.", ["So many"]),
        ("So many requests that it fails.", []),
        ("A name is no glob.", ["is no glob"]),
        ("There is no store, and it is no longer open.", []),
        ("It stands for a name. It stands at the end.", ["stands"]),
        ("`nobody` is a name of the code.", []),
    ],
)
def test_listed_words_are_found(tmp_path: Path, text: str, expected: list[str]) -> None:
    """The words that prose avoids are found outside of code."""
    found = measured(tmp_path, "page.md", text)
    assert [hit.split(": ")[1] for hit in found.listed] == expected


def test_long_sentences_and_paragraphs_are_found(tmp_path: Path) -> None:
    """A sentence may have 25 words and a paragraph 90."""
    page = (
        f"{'Word ' * 25}.\n\n{'Word ' * 26}.\n\n{('Nine words are in each one of these sentences. ' * 10)}Ninety-one.\n"
    )
    found = measured(tmp_path, "page.md", page)
    assert [length for length, _ in found.long_sentences] == [26]
    assert len(found.long_paragraphs) == 1


def test_openings_of_function_docstrings_are_found(tmp_path: Path) -> None:
    """A function's docstring begins with neither `Say` nor `What`."""
    found = measured(
        tmp_path,
        "module.py",
        '''\
        def a():
            """Say it."""
        def b():
            """What it is."""
        def c():
            """Return it."""
        ''',
    )
    assert len(found.openings) == 2


def test_sentences_end_at_full_stops_only() -> None:
    """An abbreviation or a decimal point ends no sentence."""
    text = "It costs 1.5 cents, e.g. Monday. Then `code` ends. `code` begins."
    assert len(list(split_sentences(plain_text(text)))) == 3


def test_generated_folders_are_left_out(tmp_path: Path) -> None:
    """Files of hidden folders and of builds are not read."""
    for folder in (".venv", "build", "docs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "page.md").write_text("Text.\n")
    assert [path.parent.name for path in files(tmp_path)] == ["docs"]
