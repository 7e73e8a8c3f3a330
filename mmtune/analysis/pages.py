"""Pages of HTML that need nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmtune.analysis.comparison import Comparison, Estimate
from mmtune.analysis.tables import p_text, points_text
from mmtune.common.files import atomic_path
from mmtune.common.text import visible

FLIPS_PER_TASK = 300  # what a phone still scrolls through; comparison.json has all


def write_page(template: str, target: Path, **values: Any) -> None:
    """Fill a template of `mmtune/analysis/templates` and write it, whole or not at all.

    Everything filled in is escaped, and characters that act or hide are made visible: answers are untrusted text. The
    page's Content-Security-Policy lets only its own style sheet and script through, by their SHA-256 (CSP level 3,
    section 2.3.1), and pictures that are in the page; nothing else is loaded, run or sent.

    Args:
        template: `NAME.html`; `NAME.css` and `NAME.js` beside it go into the page.
        target: the file to write.
        values: what the template speaks of.
    """
    environment = Environment(
        loader=PackageLoader("mmtune.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.globals["points"] = points_text
    folder, name = Path(__file__).parent / "templates", template.removesuffix(".html")
    style = "".join((folder / f"{one}.css").read_text(encoding="utf-8") for one in ("page", name))
    script = (folder / f"{name}.js").read_text(encoding="utf-8")
    page = environment.get_template(template).render(
        values, style=Markup(style), script=Markup(script), style_hash=_csp_hash(style), script_hash=_csp_hash(script)
    )
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8")


def embedded_json(value: Any) -> Markup:
    """JSON that stands in a page's script element as data and cannot end it: in ASCII, without `<`, `>` and `&`."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026"))


def _csp_hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def write_comparison_page(comparison: Comparison, target: Path) -> None:
    """Write a comparison as a page: scores, intervals drawn to scale, and the flipped samples, searchable."""
    estimates = [task.estimate for one in comparison.against for task in one.tasks]
    estimates += [average.estimate for one in comparison.against for average in one.averages]
    # points of difference at the edge of the drawing, the same for all
    reach = max(abs(end) for estimate in estimates for end in estimate.interval) or 0.01

    def drawn(estimate: Estimate) -> dict[str, float]:
        """Where interval and difference stand, in per cent of the drawing's width."""
        low, middle, high = (
            50 + 50 * value / reach for value in (estimate.interval[0], estimate.difference, estimate.interval[1])
        )
        return {"left": low, "width": high - low, "middle": middle}

    others = " and ".join(str(one.other.folder) for one in comparison.against)
    write_page(
        "compare.html",
        target,
        title=f"{others} against {comparison.baseline.folder}",
        comparison=comparison,
        drawn=drawn,
        reach=reach,
        p_text=p_text,
        most=FLIPS_PER_TASK,
    )
