from __future__ import annotations

import dataclasses
from html.parser import HTMLParser

import numpy as np
import pytest
from report_content import summary_rows

from trispade.errors import InputError
from trispade.report.page import Panel, ReportFigure, render_report, write_report
from trispade.report.results_table import Cell, Table, results_table
from trispade.report.verdict import Finding, verdict_of

VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = "<script>alert('case')</script> & \"co\""


class Page(HTMLParser):
    """Collects what a page holds, and fails where a tag is closed that was not the last one opened."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html(content) -> str:
    return render_report(content)


def test_every_tag_is_closed_and_every_reference_within_the_page_has_its_place(html):
    page = Page(html)
    assert page.open == []
    places = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(places) == len(set(places))
    assert {link["href"] for link in page.all("a")} <= {f"#{place}" for place in places}
    labels = [attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes]
    assert labels
    assert set(labels) <= set(places)


def test_the_page_needs_no_network_and_no_script(html):
    page = Page(html)
    assert page.all("img")
    assert all(image["src"].startswith("data:image/png;base64,iVBOR") for image in page.all("img"))
    assert not [tag for tag, _ in page.elements if tag in ("script", "link", "iframe", "object")]
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    assert "@import" not in html
    (policy,) = [each["content"] for each in page.all("meta") if "content" in each and "http-equiv" in each]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_every_picture_is_described_and_every_table_has_row_and_column_heads(html, content):
    page = Page(html)
    panels = [panel for figure in content.figures for panel in (*figure.panels, *filter(None, [figure.scale]))]
    assert [image["alt"] for image in page.all("img")] == [panel.alt for panel in panels]
    assert all(panel.alt for panel in panels)
    assert {head.get("scope") for head in page.all("th")} == {"row", "col"}


def test_the_verdict_comes_before_the_numbers_and_they_before_the_pictures(html):
    assert [section["id"] for section in Page(html).all("section")] == [
        *("verdict", "reading", "results", "pictures", "memorisation", "distribution", "downstream", "failures"),
        "provenance",
    ]


def test_a_status_is_told_in_words_and_counted(bare_content):
    findings = [Finding("good", "Yes.", "r"), Finding("bad", "No.", "r"), Finding("not measured", "?", "other")]
    page = Page(render_report(bare_content(verdict=[*findings, findings[1]])))
    assert "1 good · 2 bad · 1 not measured" in page.text
    assert [each["class"].split()[1] for each in page.all("span") if "status" in each.get("class", "")] == [
        *("good", "bad", "not-measured", "bad"),
    ]
    assert page.text.count("Rule: r.") == 2  # one rule for neighbours, told again after another


def test_all_text_is_escaped(bare_content, content):
    table = Table(HOSTILE, [HOSTILE, HOSTILE], [[HOSTILE, Cell(HOSTILE, HOSTILE)]], notes=[HOSTILE])
    figure = ReportFigure(HOSTILE, HOSTILE, [Panel(content.figures[0].panels[0].png, HOSTILE, HOSTILE)])
    provenance = dataclasses.replace(
        content.provenance, command=HOSTILE, configs=[HOSTILE], versions={HOSTILE: HOSTILE}, seeds={HOSTILE: HOSTILE}
    )
    html = render_report(
        bare_content(
            **{"title": HOSTILE, "date": HOSTILE, "verdict": [Finding("bad", HOSTILE, HOSTILE)]},
            **{"results": [table], "comparisons": table, "rescan": [table], "by_age": [table], "figures": [figure]},
            **{"memorisation": table, "memorisation_verdict": HOSTILE, "distribution": table, "downstream": table},
            **{"failures": {HOSTILE: HOSTILE}, "provenance": provenance, "credits": [HOSTILE]},
        )
    )
    page = Page(html)
    assert "<script" not in html
    assert page.open == []
    in_tables, in_figure, elsewhere = 7 * 7, 3, 16
    assert page.text.count("alert('case')") == in_tables + in_figure + elsewhere
    assert page.all("img")[0]["alt"] == HOSTILE


def test_what_is_not_finite_is_not_available_and_said(bare_content):
    table = Table("t", ["head", "value"], [["a", float("nan")], ["b", float("inf")], ["c", None], ["d", -0.25]])
    page = Page(render_report(bare_content(distribution=table)))
    assert page.text.count("n/a") == 3 + 1 + 1  # three cells, the note that says it, and scan-rescan
    assert "n/a: not measured, or without a finite value." in page.text
    assert "−0.250" in page.text
    complete = Page(render_report(bare_content(distribution=Table("t", ["head", "value"], [["a", 1]]))))
    assert "n/a: not measured" not in complete.text


def test_a_page_with_nothing_says_what_is_missing(bare_content):
    page = Page(render_report(bare_content()))
    for line in (
        "No verdict was derived.",
        "Scan–rescan: n/a. Nobody among the test people was scanned twice.",
        "it takes at least two people",
        "the ages are not known",
        "No pictures were made.",
        "Not checked.",
        "Fréchet distance and MMD: not measured.",
        "No scan failed.",
        "not stated",
    ):
        assert line in page.text, line
    assert "Not for diagnosis" in page.text
    assert "docs/evaluation.md" in page.text


def test_a_single_case_without_rescan_and_memorisation_gives_a_page(bare_content):
    summary = summary_rows({"fused": [20.0, 0.7, *[0.9] * 6, 26.0]}, people=1, scans=1)
    page = Page(
        render_report(
            bare_content(
                verdict=verdict_of(summary),
                results=[results_table(summary, "gain_offset", "all test people")],
                rescan=[results_table([], "gain_offset", "people scanned twice")],
            )
        )
    )
    assert "Measured on 1 person (1 scan): too few to conclude from." in page.text
    assert "Memorisation: not checked." in page.text
    assert "nobody was scanned twice" in page.text
    assert "method (n = 1 person, 1 scan)" in page.text


def test_failures_are_told_beside_the_verdict(html, bare_content):
    assert "1 of the scans could not be measured and is in none of the numbers" in Page(html).text
    two = Page(render_report(bare_content(failures={"a": "dark", "b": "empty"})))
    assert "2 of the scans could not be measured and are in none" in two.text
    assert "a dark b empty" in two.text


def test_what_made_the_numbers_is_told(html, content):
    text = Page(html).text
    made = content.provenance
    assert made.command in text
    for part in (*made.configs, made.data.sha256, *(each.sha256 for each in made.weights), *content.credits):
        assert part in text
    for name, value in {**made.versions, **made.seeds, **made.people}.items():
        assert f"{name}: {value}" in text


def test_the_page_is_small_and_the_same_each_time(html, content):
    assert len(html.encode()) < 1_000_000  # at 6 mm; 3.8 MB at 1 mm
    assert render_report(content) == html


def test_the_page_is_written_whole_or_not_at_all(bare_content, tmp_path):
    path = write_report(bare_content(), tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8") == render_report(bare_content())
    broken = bare_content(title="later", figures=[ReportFigure("t", "c", [Panel(b"GIF89a", "a")])])
    with pytest.raises(ValueError, match=r"panel: expected the bytes of a PNG, got b'GIF89a'"):
        write_report(broken, path)
    assert "later" not in path.read_text(encoding="utf-8")
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


def test_a_folder_that_cannot_be_written_is_named(bare_content, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match=r"report\.html: expected a folder that can be written to"):
        write_report(bare_content(), tmp_path / "taken" / "report.html")


def test_a_column_of_words_is_told_from_one_of_numbers(bare_content):
    table = Table(
        "t", ["a", "b", "c", "d"], [["x", "word", 1.5, np.float64(2)], ["y", "other", "n/a", 3]], flattering=[2]
    )
    heads = Page(render_report(bare_content(downstream=table))).all("th")
    assert [head.get("class") for head in heads] == ["words", "words", "flattering", "", None, None]
