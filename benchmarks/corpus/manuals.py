"""Manuals: the prose of HTML pages, without code, tables and navigation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

from benchmarks.corpus.cleaning import CODE_TOKEN, is_prose, normalise
from benchmarks.corpus.documents import RawDoc

BLOCKS = frozenset(
    [
        "p",
        "li",
        "dd",
        "dt",
        "div",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "section",
        "blockquote",
        "td",
        "th",
        "body",
        "main",
    ]
)
SKIP_TAGS = frozenset(
    ["pre", "table", "nav", "script", "style", "header", "footer", "head", "button", "svg"]
)
SKIP_CLASS = re.compile(
    r"\b(nav\w*|related|sphinxsidebar|toc\w*|highlight\S*|sourcecode|footnote|refsynopsisdiv|"
    r"synopsis|indextable|versionmodified|top|toplang|bottomlang|footer|seealso|fancy_title|"
    r"up|menu\w*|pagelayout|searchmenu|variablelist-toc|admonition-title)\b"
)
VOID = frozenset(
    ["br", "hr", "img", "input", "meta", "link", "area", "base", "col", "embed", "source", "wbr"]
)


class PageParser(HTMLParser):
    """Collects (tag, text) blocks of a page and leaves out code, tables and navigation."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[tuple[str, str]] = []
        self._tag = "body"
        self._text: list[str] = []
        self._skip_tag = ""
        self._skip_depth = 0

    def flush(self, tag: str) -> None:
        text = normalise("".join(self._text)).replace("¶", "").strip()
        if text:
            self.blocks.append((self._tag, text))
        self._tag, self._text = tag, []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            self._text.append(" ")
        elif self._skip_depth:
            self._skip_depth += tag == self._skip_tag
        elif tag in SKIP_TAGS or (
            tag in ("div", "ul", "p", "dl", "section") and skipped_class(attrs)
        ):
            self.flush("div")
            self._skip_tag, self._skip_depth = tag, 1
        elif tag in BLOCKS:
            self.flush(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._skip_depth:
            self._skip_depth -= tag == self._skip_tag
        elif tag in BLOCKS:
            self.flush("div")

    def handle_data(self, data: str) -> None:
        if not self._skip_depth:
            self._text.append(data)


def skipped_class(attrs: list[tuple[str, str | None]]) -> bool:
    """Whether an element's class marks it as code or navigation."""
    return bool(SKIP_CLASS.search(dict(attrs).get("class") or ""))


def page_paragraphs(page: str) -> list[str]:
    """Headings and prose paragraphs of one HTML page."""
    parser = PageParser()
    parser.feed(page)
    parser.flush("body")
    out: list[str] = []
    heading = ""
    for tag, text in parser.blocks:
        if tag in ("h1", "h2", "h3"):
            heading = re.sub(r"^[\d.]+\s*|^(Chapter|Appendix) \w+\.\s*", "", text)
        elif is_prose(text):
            if len(heading.split()) >= 2 and not CODE_TOKEN.search(heading):
                out.append(heading)
            heading = ""
            out.append(text)
    return out


def html_docs(base: Path, folders: Iterable[str], skip: str) -> Iterator[RawDoc]:
    """One document a page below the folders, without paths that match `skip`."""
    for folder in folders:
        for path in sorted((base / folder).rglob("*.html")):
            name = path.relative_to(base).as_posix()
            if path.is_symlink() or re.search(skip, name):
                continue
            yield name, page_paragraphs(path.read_text(encoding="utf-8", errors="replace"))


def extract_python(root: Path) -> Iterator[RawDoc]:
    """Python documentation."""
    skip = r"genindex|search|changelog|license|copyright|py-modindex|contents|bugs|about|_static"
    yield from html_docs(root / "usr/share/doc/python3.11/html", ["."], skip)


def extract_postgresql(root: Path) -> Iterator[RawDoc]:
    """PostgreSQL manual."""
    skip = r"bookindex|legalnotice|biblio|contrib-spi|acronyms|index\.html"
    yield from html_docs(root / "usr/share/doc/postgresql-doc-15/html", ["."], skip)


def extract_sqlite(root: Path) -> Iterator[RawDoc]:
    """SQLite documentation."""
    skip = (
        r"releaselog|syntax/|changes|session/|matrix|requirements|keyword_index|"
        r"c3ref/(objlist|constlist|funclist)"
    )
    for name, paragraphs in html_docs(root / "usr/share/doc/sqlite3", ["."], skip):
        yield name, [p for p in paragraphs if "checked-by:" not in p]


def extract_rust(root: Path) -> Iterator[RawDoc]:
    """The Rust books."""
    books = ("book", "nomicon", "reference", "edition-guide", "embedded-book", "rust-by-example")
    folders = [*books, "rustc", "rustdoc", "unstable-book"]
    base = root / "usr/share/doc/rust-doc/html"
    yield from html_docs(base, folders, r"print\.html|/(first|second|2018)-edition/|/toc")


def extract_django(root: Path) -> Iterator[RawDoc]:
    """Django documentation."""
    skip = r"genindex|search|py-modindex|contents|_modules|_static"
    yield from html_docs(root / "usr/share/doc/python-django-doc/html", ["."], skip)


def extract_apache(root: Path) -> Iterator[RawDoc]:
    """Apache HTTP Server manual."""
    skip = r"license|quickreference|directives|sitemap"
    yield from html_docs(root / "usr/share/doc/apache2-doc/manual", ["en"], skip)
