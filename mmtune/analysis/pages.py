"""Self-contained HTML pages, which need no network and no other file."""

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

FLIPS_PER_TASK = 300  # as many as a phone still scrolls through; comparison.json has all


def write_page(template: str, target: Path, **values: Any) -> None:
    """Render a template of `mmtune/analysis/templates` and write it atomically.

    Values are escaped, and control characters and invisible characters in them are made visible, because answers are
    untrusted text. The page's Content-Security-Policy allows only its own style sheet and script, by their SHA-256 (CSP
    level 3, section 2.3.1), and images as data URLs; nothing else is loaded, run or sent.

    Args:
        template: `NAME.html`; `page.css`, and `NAME.css` and `NAME.js` beside it, are included in the page.
        target: the file to write.
        values: variables of the template.
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
    """Return JSON for a script element, which it cannot close: in ASCII, with `<`, `>` and `&` escaped."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026"))


def _csp_hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def write_comparison_page(comparison: Comparison, target: Path) -> None:
    """Write a comparison as a page, with scores, intervals drawn to scale, and a search in the flipped samples."""
    estimates = [task.estimate for one in comparison.against for task in one.tasks]
    estimates += [average.estimate for one in comparison.against for average in one.averages]
    # difference at the edge of the drawing, the same for all intervals
    reach = max(abs(end) for estimate in estimates for end in estimate.interval) or 0.01

    def drawn(estimate: Estimate) -> dict[str, float]:
        """Return the positions of interval and difference, in percent of the width of the drawing."""
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
