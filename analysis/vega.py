"""Charts outside Python: pictures, and pages that need no network."""

from __future__ import annotations

import functools
import html
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import vl_convert

from analysis.errors import CannotDraw

#: No chart of ours loads anything.
_NOWHERE: list[str] = []
PNG_SCALE = 2
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
#: What vega-embed may do: save the picture. No link to an editor on the network.
EMBED_OPTIONS = {
    "renderer": "svg",
    "actions": {"export": {"svg": True, "png": True}, "source": False, "compiled": False, "editor": False},
    "downloadFileName": "chart",
}


def plain(value: Any) -> Any:
    """Return a specification without control characters and line separators: Vega-Lite writes some of its strings
    into expressions, where they would be errors."""
    if isinstance(value, str):
        return _CONTROLS.sub(" ", value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def version(spec: dict[str, Any]) -> str:
    """Return the Vega-Lite version of a chart, as vl-convert names it: `6.4`."""
    release = str(spec.get("$schema", "")).rpartition("/v")[2].removesuffix(".json")
    wanted = ".".join(release.split(".")[:2])
    known: list[str] = vl_convert.get_vegalite_versions()
    return wanted if wanted in known else known[-1]


@contextmanager
def _converting() -> Iterator[None]:
    """Turn what the converter cannot do into CannotDraw; its panics are no Exception and have no public name."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, ValueError) and type(error).__name__ != "PanicException":
            raise
        told = str(error).strip() or type(error).__name__
        raise CannotDraw(f"the picture cannot be made: {told.splitlines()[0]}") from None


def svg(spec: dict[str, Any]) -> str:
    """Return the chart as SVG; CannotDraw where it cannot be made, as in `png` and `pdf`."""
    with _converting():
        return str(vl_convert.vegalite_to_svg(spec, vl_version=version(spec), allowed_base_urls=_NOWHERE))


def png(svg_text: str) -> bytes:
    """Return an SVG as PNG at twice its size in pixels."""
    with _converting():
        return bytes(vl_convert.svg_to_png(svg_text, scale=PNG_SCALE))


def pdf(svg_text: str) -> bytes:
    """Return an SVG as PDF."""
    with _converting():
        return bytes(vl_convert.svg_to_pdf(svg_text))


@functools.cache
def libraries(vl_version: str) -> str:
    """Return the JavaScript of vega, vega-lite and vega-embed (0.9 MB), fit to stand inside a script element."""
    bundle = str(vl_convert.javascript_bundle(vl_version=vl_version))  # type: ignore[call-arg]
    return bundle.replace("</script", "<\\/script")


def json_for_script(value: object) -> str:
    """Return `value` as JSON that no HTML parser mistakes for markup, whatever text is in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>body {{ margin: 1rem; overflow-x: auto; }}</style>
<script>{libraries}</script>
</head>
<body>
<div id="chart"></div>
<script>vegaEmbed("#chart", {spec}, {options}).catch(console.error);</script>
</body>
</html>
"""


def page(spec: dict[str, Any], title: str) -> str:
    """Return one self-contained, interactive HTML page of a chart."""
    return _PAGE.format(
        title=html.escape(title),
        libraries=libraries(version(spec)),
        spec=json_for_script(spec),
        options=json_for_script(EMBED_OPTIONS),
    )
