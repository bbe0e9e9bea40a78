"""What makes converted notebooks fit for every reader: alternative texts, table heads, places to scroll, live links."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bs4 import BeautifulSoup, Tag

from holitom_repro.report.attachments import Attachments
from holitom_repro.report.pictures import Pictures

COLOURED = re.compile(r"(?<![-\w])color:\s*(#[0-9a-fA-F]{6})")
LONGEST_ALT = 420


@dataclass
class Finished:
    """A page's body, its sections (id, heading) and the figure files whose numbers it shows (stem of figures/...)."""

    html: str
    sections: list[tuple[str, str]] = field(default_factory=list)


def finish(html: str, pictures: Pictures, attachments: Attachments, pages: Iterable[str], numbers: Any) -> Finished:
    """pages: names of the notebooks that have a page; numbers(stem) -> address of the CSV behind a figure, or None."""
    soup = BeautifulSoup(html, "html.parser")
    sections = _headings(soup)
    _links(soup, attachments, set(pages))
    for picture in soup.find_all("img"):
        _picture(soup, picture, pictures, numbers)
    for number, table in enumerate(soup.find_all("table"), 1):
        _table(soup, table, number)
    for style in soup.find_all("style"):
        text = COLOURED.sub(_variable, style.get_text())
        style.string = re.sub(r"(tbody tr:nth-child\(\d+\)) td\b", r"\1 > *", text)  # the row's head, too
    for marked in soup.find_all(style=COLOURED):
        marked["style"] = COLOURED.sub(_variable, marked["style"])
    for block in soup.select("details.code pre"):
        block["tabindex"] = "0"
        block["role"] = "group"
        block["aria-label"] = "code"
    return Finished(str(soup), sections)


def slug(heading: str) -> str:
    """ "10. Verdict" -> "verdict"."""
    words = re.sub(r"^[\d.\s]+", "", heading.lower())
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-") or "section"


def _headings(soup: BeautifulSoup) -> list[tuple[str, str]]:
    """Every h2 gets an id of its own; whatever ids the converter chose are replaced."""
    found: list[tuple[str, str]] = []
    for heading in soup.find_all(["h1", "h2", "h3"]):
        for anchor in heading.select("a.anchor-link"):
            anchor.decompose()
        text = heading.get_text().strip()
        name, again = slug(text), 2
        while name in {known for known, _ in found}:
            name, again = f"{slug(text)}-{again}", again + 1
        heading["id"] = name
        if heading.name == "h2":
            found.append((name, text))
    return found


def _links(soup: BeautifulSoup, attachments: Attachments, pages: set[str]) -> None:
    for link in soup.find_all("a", href=True):
        target = str(link["href"])
        name, _, section = target.partition("#")
        if target.startswith(("#", "https://", "http://")):
            continue
        if name.endswith(".ipynb") and name[:-6] in pages:
            link["href"] = f"{name[:-6]}.html" + (f"#{section}" if section else "")
        elif copied := attachments.follow(target):
            link["href"] = copied
        else:  # a folder, or a file too large to carry along: its name remains
            link.name = "span"
            link.attrs = {"class": "place", "title": target.replace("../", "")}


def _picture(soup: BeautifulSoup, image: Tag, pictures: Pictures, numbers: Any) -> None:
    made = pictures.add_uri(str(image.get("src", "")))
    if made is None:
        return
    wide = int(str(image.get("data-width") or image.get("width") or made.width))
    stem = re.sub(r"\.\w+$", "", str(image.get("data-said", "")).split("/")[-1])
    alt = str(image.get("alt") or "") or described(image, stem)
    image.attrs = {
        "src": made.href,
        "alt": alt,
        "width": str(wide),
        "height": str(round(wide * made.height / made.width)),
        "loading": "lazy",
    }
    frame = soup.new_tag("figure")
    image.wrap(frame)
    scroll = _scroller(soup, f"figure {stem}".strip())
    scroll["class"] = ["scroll", "card"]
    image.wrap(scroll)
    if stem and (address := numbers(stem)):
        caption = soup.new_tag("figcaption")
        caption.append("Every point of it with its source: ")
        link = soup.new_tag("a", href=address)
        link.string = f"{stem}.csv"
        caption.append(link)
        frame.append(caption)


def described(image: Tag, stem: str) -> str:
    """Alternative text from the prose above a picture: the section's name and what it tells the reader to look at."""
    prose = image.find_previous("div", class_="prose")
    heading = image.find_previous(["h2", "h1"])
    title = re.sub(r"^[\d.\s]+", "", heading.get_text().strip()) if heading else "Picture"
    words = " ".join(p.get_text(" ", strip=True) for p in prose.find_all("p")) if prose else ""
    words = re.sub(r"\s+", " ", words)
    if len(words) > LONGEST_ALT:
        words = words[:LONGEST_ALT].rsplit(". ", 1)[0].rstrip(".") + "."
    return f"Figure {stem + ', ' if stem else ''}{title}. {words}".strip()


def _table(soup: BeautifulSoup, table: Tag, number: int) -> None:
    """Scopes, no empty heads, the caption outside what scrolls, and a box that scrolls by keyboard."""
    for name in ("border", "align"):
        table.attrs.pop(name, None)
    head = set(table.select("thead th"))
    for cell in table.find_all("th"):
        if not cell.get_text().replace("\xa0", "").strip():
            cell.name = "td"
            cell.attrs.pop("scope", None)
            continue
        span = int(str(cell.get("colspan", "1")))
        if cell.get("scope") != "rowgroup":
            cell["scope"] = ("colgroup" if span > 1 else "col") if cell in head else "row"
    if not table.find("th", scope="row"):
        _name_rows(table)
    _span_headings(table)
    label = f"table-{number}"
    scroll = _scroller(soup, "table")
    table.wrap(scroll)
    if caption := table.find("caption"):
        below = soup.new_tag("p", id=f"{label}-caption")
        below["class"] = "caption"
        for part in list(caption.contents):
            below.append(part)
        caption.decompose()
        scroll.insert_after(below)
        table["aria-describedby"] = below["id"]
    heading = table.find_previous(["h2", "h1"])
    if heading is not None and heading.get("id"):
        scroll["aria-label"] = f"table: {heading.get_text().strip()}"


def _name_rows(table: Tag) -> None:
    """The first words of a row are its head, in a table whose rows have none."""
    for row in table.select("tbody tr"):
        first = next((cell for cell in row.find_all("td") if re.search(r"[A-Za-z]", cell.get_text())), None)
        if first is not None:
            first.name = "th"
            first["scope"] = "row"


def _span_headings(table: Tag) -> None:
    """A row with words in its first cell alone is a heading across the table, not the widest cell of a column."""
    for row in table.select("tbody tr"):
        first, *rest = row.find_all(["td", "th"])
        if len(rest) > 1 and first.name == "th" and not any(cell.get_text().strip() for cell in rest):
            for cell in rest:
                cell.decompose()
            first["colspan"] = str(len(rest) + 1)
            first["scope"] = "rowgroup"


def _scroller(soup: BeautifulSoup, label: str) -> Tag:
    return soup.new_tag("div", attrs={"class": "scroll", "role": "group", "tabindex": "0", "aria-label": label})


def _variable(found: re.Match[str]) -> str:
    """A colour as a variable, which the dark style sheet sets anew; the colour itself where it does not."""
    value = found[1].lower()
    return f"color: var(--ink-{value[1:]}, {value})"
