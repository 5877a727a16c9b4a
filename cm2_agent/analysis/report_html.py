"""A report as one HTML file that needs nothing else.

Every word of a trace is escaped, and the page's own policy forbids scripts, so that hostile dialogues are only ever
read."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from cm2_agent.analysis.report_figures import Report


def page(report: Report) -> str:
    """The HTML text: plots are inline SVG. Its Content-Security-Policy allows the page's own style sheet, by its hash,
    and nothing else: no script, no image, no font, no form, no request."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = files("cm2_agent") / "templates"
    style = (folder / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((folder / "report.html").read_text(encoding="utf-8"))
    # The style sheet is ours; it alone is not escaped, since its hash is over what the browser reads.
    return template.render(report=report, policy=policy, style=Markup(style))  # noqa: S704 (our own style sheet)


__all__ = ["page"]
