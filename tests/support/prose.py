"""Measure the English of docstrings, comments, messages and documents.

Print figures and the worst sentences of each file::

    python -m tests.support.prose usage_plugin/tracking docs README.md
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from markdown_it.token import Token

TESTS = Path(__file__).resolve().parents[1]
MAX_SENTENCE = 25
MAX_PARAGRAPH = 90
# A literal of fewer words is a name, a format or a key.
MIN_MESSAGE = 4
SUFFIXES = (".py", ".md", ".yaml", ".yml")
SKIPPED = {"build", "dist", "node_modules", "site"}

# A code span, a formatted value or an address: one mark in a sentence, no word of prose.
CODE = "\N{REPLACEMENT CHARACTER}"

_LISTED = re.compile(
    r"\b(?:dear(?:er|est)?|anew|beside|somebody|nobody|whoever|whatever|whomever|whom|told|heard|lies"
    r"|stands(?! (?:for|out)\b)"
    r"|so many(?! \w+ that\b)"
    r"|(?<!there )(?<!There )(?:is|are|was|were) no(?! (?:longer|more|less|later|earlier|other|different)\b) \w+"
    r")\b",
    re.IGNORECASE,
)
_FREE = re.compile(r"\b(who|what|whom|whoever|whatever)\b", re.IGNORECASE)
# After these words, `who` has no noun to refer to: `by who spent`, `tells who it is`.
_NO_NOUN = frozenset(
    """
    a about after all also and as ask asked asks at before but by check checks choose chooses decide decided decides
    determine determines exactly find finds for from get has have if in into is just know known knows learn learns
    list lists mark marks name names not of on only or over record records remember remembers report reports say says
    see seen sees show shown shows since tell telling tells than that then to until was were when where whether while
    with without write writes
    """.split()  # noqa: SIM905 - a list of 80 quoted words is harder to read
)
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*(?:[A-Z0-9$*…]|" + CODE + r"))")
_ABBREVIATED = re.compile(r"\b(?:e\.g|i\.e)\.")
_ABBREVIATION = re.compile(r"\b(?:etc|vs|cf|approx|No)\.$")
_WORD = re.compile(r"[A-Za-z][A-Za-z'\N{RIGHT SINGLE QUOTATION MARK}-]*|\d[\d.,:]*")
_INLINE_CODE = re.compile(r"``.+?``|`[^`]+`", re.DOTALL)
_ADDRESS = re.compile(r"https?://\S+|\b[\w./-]+\.(?:py|md|ya?ml|jsonl?|db|toml)\b")
# Names from code without backticks: snake_case, dotted.names, CamelCase, calls().
_NAME = re.compile(r"\b\w*_\w+\b|\b[a-z]\w*\.[a-z_]\w*\b|\b[A-Z][a-z0-9]+[A-Z]\w*\b|\b\w+\(\)")
_DIRECTIVE = re.compile(r"^#\s*(?:noqa|type:|fmt:|pragma|pyright|ruff|mypy|!|-\*-)")
_SECTION = re.compile(r"^(?:Args|Arguments|Attributes|Examples?|Notes?|Raises|Returns|Yields):$")
_ENTRY = re.compile(r"^\s+\*{0,2}\w+(?: \([^)]*\))?: ")
_SQL = re.compile(
    r"\b(?:SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP|PRAGMA|WHERE|FROM|VALUES|JOIN|BEGIN|ATTACH|COPY)\b|ORDER BY"
)
_NOT_PROSE = re.compile(r"\(\?[:P<!=]|\\[dwsb]|^[\s{\[</]|^[^A-Za-z]*$|\w=\w|;$|->|</")


class Prose(NamedTuple):
    """A paragraph, list item, cell, docstring, comment or message of a file."""

    line: int
    kind: str
    text: str


@dataclass
class Figures:
    """Counts and findings in some prose; `+` adds up files."""

    words: int = 0
    sentences: int = 0
    free: list[str] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)
    long_sentences: list[tuple[int, str]] = field(default_factory=list)
    long_paragraphs: list[str] = field(default_factory=list)
    openings: list[str] = field(default_factory=list)

    def __add__(self, other: Figures) -> Figures:
        """Return the sum of two files' figures."""
        return Figures(
            self.words + other.words,
            self.sentences + other.sentences,
            self.free + other.free,
            self.listed + other.listed,
            self.long_sentences + other.long_sentences,
            self.long_paragraphs + other.long_paragraphs,
            self.openings + other.openings,
        )

    @property
    def free_per_thousand(self) -> float:
        """Free relatives per 1,000 words."""
        return 1000 * len(self.free) / self.words if self.words else 0.0

    @property
    def long_share(self) -> float:
        """The share of sentences above the maximum length."""
        return len(self.long_sentences) / self.sentences if self.sentences else 0.0

    def __str__(self) -> str:
        """Return one line of figures."""
        return (
            f"{self.words:,} words, {self.free_per_thousand:.1f} free relatives per 1,000 ({len(self.free)}), "
            f"{len(self.listed)} listed words, {len(self.long_sentences)} of {self.sentences} sentences above "
            f"{MAX_SENTENCE} words ({self.long_share:.1%}), {len(self.long_paragraphs)} paragraphs above "
            f"{MAX_PARAGRAPH}, {len(self.openings)} docstrings that begin with `Say` or `What`"
        )


def measure(path: Path) -> Figures:
    """Return the figures of one file, or of all files in a folder."""
    total = Figures()
    for name in files(path):
        for prose in read(name):
            total += measure_text(prose, name)
    return total


def measure_text(prose: Prose, path: Path) -> Figures:
    """Return the figures of one piece of prose."""
    found = Figures()
    where = f"{path}:{prose.line}"
    if prose.kind == "function" and re.match(r"(?:Say|What)\b", prose.text):
        found.openings.append(f"{where}: {prose.text.splitlines()[0]}")
    for block in split_blocks(prose):
        plain = plain_text(block)
        words = 0
        for sentence in split_sentences(plain):
            length = len(_WORD.findall(sentence))
            if not length:
                continue
            words += length
            found.sentences += 1
            shown = sentence.replace(CODE, "`…`")
            if length > MAX_SENTENCE:
                found.long_sentences.append((length, f"{where}: {shown}"))
            found.listed += [f"{where}: {hit.group()}: {shown}" for hit in _LISTED.finditer(sentence)]
            if not sentence.rstrip("\"')").endswith("?"):
                found.free += [f"{where}: {hit}: {shown}" for hit in free_relatives(sentence)]
        found.words += words
        if prose.kind == "paragraph" and words > MAX_PARAGRAPH:
            found.long_paragraphs.append(f"{where}: {words} words: {plain[:80].replace(CODE, '`…`')}")
    return found


def free_relatives(sentence: str) -> Iterator[str]:
    """Yield each `who` or `what` of a sentence that has no noun before it."""
    for hit in _FREE.finditer(sentence):
        word = hit.group().lower()
        before = sentence[: hit.start()].rstrip()
        if word in {"who", "whom"} and before:
            # "users who spend", "eva, who spends" and "`client`, who …" have one.
            previous = re.search(r"([\w'’-]+|" + CODE + r")[\"'’)*]*,?$", before)
            if previous and previous.group(1).lower() not in _NO_NOUN:
                continue
        yield hit.group()


def files(path: Path) -> Iterator[Path]:
    """Yield the files with prose at or below a path, in order."""
    if path.is_file():
        yield path
        return
    for name in sorted(path.rglob("*")):
        parts = name.relative_to(path).parts
        hidden = any(part.startswith(".") or part in SKIPPED for part in parts)
        if name.suffix in SUFFIXES and name.is_file() and not hidden:
            yield name


def is_test(path: Path) -> bool:
    """Whether a file is part of a test suite, this project's or an example's."""
    return path.resolve().is_relative_to(TESTS) or path.name.startswith("test_")


def read(path: Path) -> Iterator[Prose]:
    """Yield the prose of a Markdown, Python or YAML file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from read_markdown(text)
    elif path.suffix == ".py":
        # String literals of tests are data.
        yield from read_python(text, with_messages=not is_test(path))
    else:
        yield from read_yaml(text)


def read_markdown(text: str) -> Iterator[Prose]:
    """Yield the headings, paragraphs, list items and table cells of a document; code and HTML are left out."""
    parent = "paragraph"
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "heading_open":
            parent = "heading"
        elif token.type in {"td_open", "th_open"}:
            parent = "cell"
        elif token.type in {"heading_close", "td_close", "th_close"}:
            parent = "paragraph"
        elif token.type == "inline":
            yield Prose((token.map or [0])[0] + 1, parent, _inline_text(token))


def _inline_text(token: Token) -> str:
    parts: list[str] = []
    for child in token.children or ():
        if child.type == "code_inline":
            parts.append(CODE)
        elif child.type == "text":
            parts.append(child.content)
        elif child.type in {"softbreak", "hardbreak"}:
            parts.append(" ")
    return "".join(parts)


def read_python(text: str, *, with_messages: bool = True) -> Iterator[Prose]:
    """Yield the docstrings, comments and messages of a module."""
    yield from _comments(text)
    tree = ast.parse(text)
    documented = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                documented.add(id(node.body[0].value))  # type: ignore[attr-defined]
                is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
                yield Prose(node.body[0].lineno, "function" if is_function else "docstring", docstring)
    if with_messages:
        yield from _messages(tree, documented)


def _comments(text: str) -> Iterator[Prose]:
    first, column, lines = 0, -1, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        row, indent = token.start
        alone = not token.line[:indent].strip()
        follows = alone and indent == column and row == first + len(lines)
        if not follows and lines:
            yield Prose(first, "comment", "\n".join(lines))
            lines = []
        if _DIRECTIVE.match(token.string):
            # A directive may end with its reason, after a dash.
            _, _, reason = token.string.partition(" - ")
            if reason:
                yield Prose(row, "comment", reason)
            column = -1
            continue
        if not lines:
            first = row
        lines.append(token.string.lstrip("#:").strip())
        column = indent if alone else -1
    if lines:
        yield Prose(first, "comment", "\n".join(lines))


def _messages(tree: ast.Module, documented: set[int]) -> Iterator[Prose]:
    """Yield string literals of several words that are neither docstrings, SQL nor regular expressions."""
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside.update(id(part) for part in node.values)
    for node in ast.walk(tree):
        if id(node) in documented or id(node) in inside:
            continue
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else CODE
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if len(re.findall(r"\b[a-z']+\b", text)) >= MIN_MESSAGE and not (_SQL.search(text) or _NOT_PROSE.search(text)):
            yield Prose(node.lineno, "message", text)


def read_yaml(text: str) -> Iterator[Prose]:
    """Yield the comments of a YAML file; a run of whole lines is one."""
    first, lines = 0, list[str]()
    for row, line in enumerate(text.splitlines(), 1):
        # A # opens a comment at the start of a line or after a space, outside of quotes.
        found = re.match(r"""((?:[^"'#]|"[^"]*"|'[^']*'|(?<=\S)#)*)(?<!\S)#(.*)""", line)
        if found and not found.group(1).strip():
            first = first if lines else row
            lines.append(found.group(2).strip())
            continue
        if lines:
            yield Prose(first, "comment", "\n".join(lines))
            lines = []
        if found:
            yield Prose(row, "comment", found.group(2).strip())
    if lines:
        yield Prose(first, "comment", "\n".join(lines))


def split_blocks(prose: Prose) -> Iterable[str]:
    """Split a docstring, comment or message into paragraphs, list items and entries of its sections."""
    if prose.kind in {"paragraph", "heading", "cell"}:
        return [prose.text]
    blocks: list[list[str]] = [[]]
    in_section = False
    for line in prose.text.splitlines():
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        starts_item = re.match(r"(?:[-*•]|\d+\.) ", bare)
        if _SECTION.match(line):
            in_section = True
            blocks.append([])
        elif not bare or bare.startswith((">>>", "...", "|", "┌", "└", "├")) or (bare and set(bare) <= set("-=~ ")):
            blocks.append([])
        elif starts_item or (in_section and _ENTRY.match(line)):
            blocks.append([re.sub(r"^(?:[-*•]|\d+\.) |^\*{0,2}\w+(?: \([^)]*\))?: (?=.)", "", bare)])
        elif indent > 1 and not in_section and not blocks[-1]:
            # A diagram or an example: an indented block after a blank line.
            continue
        else:
            blocks[-1].append(bare)
    return [" ".join(block) for block in blocks if block]


def plain_text(block: str) -> str:
    """Replace code spans, addresses and names of the code by one mark each."""
    text = _INLINE_CODE.sub(CODE, block)
    text = _ABBREVIATED.sub("for example", text)
    text = _ADDRESS.sub(CODE, text)
    text = _NAME.sub(CODE, text)
    return re.sub(r"\s+", " ", text).strip()


def split_sentences(text: str) -> Iterator[str]:
    """Split plain text at full stops, exclamation and question marks, but not after abbreviations."""
    start = 0
    for gap in _END.finditer(text):
        if _ABBREVIATION.search(text[start : gap.start()]):
            continue
        yield text[start : gap.end()].strip()
        start = gap.end()
    if text[start:].strip():
        yield text[start:].strip()


def main(arguments: list[str]) -> None:
    """Print the figures of each path, and each file's findings; the longest sentences first."""
    total = Figures()
    for argument in arguments or ["."]:
        for path in files(Path(argument)):
            found = measure(path)
            total += found
            if not (found.free or found.listed or found.long_sentences or found.long_paragraphs or found.openings):
                continue
            print(f"\n{path}: {found}")
            for title, hits in (
                ("free", found.free),
                ("listed", found.listed),
                ("opening", found.openings),
                ("paragraph", found.long_paragraphs),
                ("long", [f"{length} words, {text}" for length, text in sorted(found.long_sentences, reverse=True)]),
            ):
                for hit in hits:
                    print(f"  {title}: {hit}")
    print(f"\nTotal: {total}")


if __name__ == "__main__":
    main(sys.argv[1:])
