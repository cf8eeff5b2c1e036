"""Report as one HTML file that needs nothing else, and as part of a notebook."""

from __future__ import annotations

from ksm_eval.report.html.markup import Html, element, joined
from ksm_eval.report.html.page import body, island, policy, script, style
from ksm_eval.report.html.verdict import title
from ksm_eval.report.model import Report, Run
from ksm_eval.report.plain import document

ROWS = 500
"""The most that a table of the page has; the JSON in it has all."""
NOTEBOOK_ROWS = 25
"""A notebook keeps what it showed, every time."""


def to_html(report: Report, run: Run) -> str:
    """A page of its own: no network, complete without its script, the JSON report inside.

    Strings from the target are escaped as in the terminal: none becomes markup, or is invisible.
    """
    data, left_out = island(document(report, run))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy()),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("meta", name_="referrer", content="no-referrer"),
        element("meta", name_="generator", content=f"ksm-eval {run.version}"),
        element("title", f"ksm-eval: {title(report)}"),
        Html(f"<style>{style()}</style>"),
    )
    says = "The JSON report is in this file, in the element with the id ksm-eval."
    if left_out:
        says = (
            f"The JSON report in this file does without {', '.join(left_out)}, which would make "
            "it too large; --format json has them."
        )
    content = element(
        "main",
        body(report, run, ROWS, anchors=True),
        element("footer", element("p", says)),
        class_="ksm-eval",
    )
    foot = joined((data, Html(f"<script>{script()}</script>")))
    page = element("html", head, Html("\n"), element("body", content, Html("\n"), foot), lang="en")
    return f"<!doctype html>\n{page.code}\n"


def to_fragment(report: Report) -> str:
    """For notebooks: the same without a page around it, without script, tables cut short."""
    content = body(report, None, NOTEBOOK_ROWS, anchors=False)
    return f"<style>{style()}</style>{element('div', content, class_='ksm-eval').code}"
