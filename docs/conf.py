"""How Sphinx makes the site from docs/: `python -m sphinx -n -W -b html docs build/docs`.

The pages are plain Markdown that reads well on GitHub. So the links are ordinary ones between files, and the table of
contents is the list of links in index.md; a name that reference/api.md lists is replaced by its documentation. Nothing
is fetched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from twisted.python.reflect import namedAny
from zope.interface.interface import InterfaceClass, Method

import netsvc

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "netsvc"
version = release = netsvc.__version__
project_copyright = ""
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "index"
exclude_patterns = ["benchmarks/*"]

html_theme = "furo"
html_title = f"netsvc {version}"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
default_role = "py:obj"
# Every name of ours that the reference links to has to be there. What belongs to others is not on this site.
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:.*", r"(?!netsvc\.).*"),
    # Types of ours that signatures have, and that authors do not name.
    ("py:class", r"netsvc\.(.*\._\w+|(base|plan|testing\.wire)\..*|.*\.StreamFactory|.*\.Registry)"),
]

#: Where the repository is shown, when a workflow of GitHub builds the site.
REPOSITORY = (
    f"{os.environ['GITHUB_SERVER_URL']}/{os.environ['GITHUB_REPOSITORY']}/blob/{os.environ['GITHUB_SHA']}"
    if "GITHUB_REPOSITORY" in os.environ
    else ROOT.as_uri()
)
#: An object in reference/api.md, with a link to its source, and its signature.
NAMED = re.compile(r"^- \[`(netsvc\.[\w.]+)`\]\(\S+\)\n(?:  .*\n)*", re.M)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(?=[)#])")


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Prepare a page: see above. Links that leave docs/ lead to the repository."""
    page = HERE / f"{docname}.md"

    def target(match: re.Match[str]) -> str:
        path = (page.parent / match[1]).resolve()
        if path.is_relative_to(HERE) or not path.exists():
            return match[0]
        return f"{REPOSITORY}/{path.relative_to(ROOT)}"

    if docname == "reference/api":
        source[0] = NAMED.sub(lambda match: _block("eval-rst", _documented(match[1])), source[0])
    source[0] = LINK.sub(target, source[0])
    if docname == root_doc:
        source[0] += "".join(_contents(source[0]))


def _block(directive: str, lines: Iterator[str]) -> str:
    return "\n".join(["", "```{" + directive + "}", *lines, "```", ""])


def _contents(index: str) -> Iterator[str]:
    """Return a hidden toctree for each section of the index that links to pages."""
    for section in re.split(r"^## ", index, flags=re.M)[1:]:
        caption, _, text = section.partition("\n")
        pages = re.findall(r"^[-*] .*?\]\(([\w/-]+)\.md\)", text, flags=re.M)
        if pages:
            yield _block("toctree", iter([":hidden:", f":caption: {caption}", "", *pages]))


def _documented(name: str) -> Iterator[str]:
    """Return the directives that document an object, without the methods that only Twisted calls."""
    documented: Any = namedAny(name)
    if isinstance(documented, InterfaceClass):
        yield from _interface(name, documented)
    elif isinstance(documented, type):
        for_twisted = [each for each in dir(documented) if re.match(r"[a-z]+[A-Z]", each)]
        yield f".. autoclass:: {name}"
        yield "   :members:"
        yield f"   :exclude-members: {', '.join(['__init__', '__new__', *for_twisted])}"
    else:
        yield f".. {'autofunction' if callable(documented) else 'autodata'}:: {name}"


def _interface(name: str, interface: InterfaceClass) -> Iterator[str]:
    """Return what autodoc, which knows no interfaces, would return for one."""
    yield f".. py:class:: {name}"
    yield from (f"   {line}" for line in ["", *cleandoc(interface.__doc__).splitlines(), ""])
    for member, declared in interface.namesAndDescriptions():
        is_method = isinstance(declared, Method)
        signature = declared.getSignatureString() if is_method else ""
        yield f"   .. py:{'method' if is_method else 'attribute'}:: {member}{signature}"
        yield from (f"      {line}" for line in ["", *cleandoc(declared.__doc__).splitlines(), ""])


def _shorten(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, *signature: str | None
) -> tuple[str | None, ...]:
    """Write an interface in a signature by its name."""
    return tuple(each and re.sub(r"<InterfaceClass [\w.]+\.(\w+)>", r"\1", each) for each in signature)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _read)
    app.connect("autodoc-process-signature", _shorten)
