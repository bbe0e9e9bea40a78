"""The frame around every page: head, navigation, footer; and the environment in which templates are filled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from holitom import __version__
from holitom_repro.figures.style import TIER_STAMPS
from holitom_repro.provenance import provenance
from holitom_repro.report.markup import slug
from holitom_repro.report.outline import NotebookPage, notebooks

TEMPLATES = Path(__file__).parent / "template"


@dataclass(frozen=True)
class Link:
    href: str
    short: str


TOP = (
    Link("index.html", "Start: every claim"),
    Link("method.html", "The method in pictures"),
    Link("records.html", "Records"),
)


class Frame:
    """One site's templates and what all its pages share."""

    def __init__(self, tier: str, site: Path) -> None:
        self.tier, self.site = tier, site
        self.groups = notebooks(tier)
        loader = jinja2.FileSystemLoader(TEMPLATES)
        self._environment = jinja2.Environment(loader=loader, trim_blocks=False, undefined=jinja2.StrictUndefined)
        self._environment.filters["slug"] = slug

    @property
    def pages(self) -> list[NotebookPage]:
        return [page for pages in self.groups.values() for page in pages]

    def fill(self, template: str, **values: Any) -> str:
        """A template's text; tier and groups are known to each."""
        return self._environment.get_template(template).render(tier=self.tier, groups=self.groups, **values)

    def write(
        self,
        href: str,
        title: str,
        content: str,
        *,
        description: str = "",
        sections: list[tuple[str, str]] | None = None,
        origin: str = "",
        script: str = "",
    ) -> Path:
        """One page into the site; origin: where its numbers come from, for the footer."""
        text = self.fill(
            "page.html.j2",
            here=href,
            title=title,
            content=content,
            description=description or title,
            sections=sections or [],
            origin=origin,
            footer=self.footer,
            script=f"<script>\n{script}</script>" if script else "",
            top=TOP,
        )
        path = self.site / href
        path.write_text(text, encoding="utf-8")
        return path

    @cached_property
    def footer(self) -> str:
        """Tier, commit, versions and machine: of the build, not of a number."""
        facts = provenance()
        git = facts.get("git") or {}
        commit = f"commit {git['commit'][:9]}{' with uncommitted changes' if git.get('dirty') else ''}" if git else ""
        machine = f"{facts.get('gpu') or facts.get('cpu')}, {facts.get('cores')} cores"
        versions = ", ".join(f"{name} {facts['packages'][name]}" for name in ("torch", "transformers", "lmms-eval"))
        built = f"Built by the HoliTom reproduction kit {__version__} (Apache-2.0)"
        return " · ".join(part for part in (TIER_STAMPS[self.tier], built, commit, machine, versions) if part)

    def css(self) -> None:
        (self.site / "style.css").write_text((TEMPLATES / "style.css").read_text(encoding="utf-8"), encoding="utf-8")


def script(name: str) -> str:
    """A script of the template folder, to be set into a page."""
    return (TEMPLATES / name).read_text(encoding="utf-8")
