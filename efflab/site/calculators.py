"""The directive that puts a calculator on a page.

    ```{calculator} roofline-explorer
    :kernel: softmax
    :rows: 8192
    ```

Options are the calculator's inputs; numbers may have units.
"""

from __future__ import annotations

from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from efflab import calculators
from efflab.calculators import markup
from efflab.errors import EfflabError


class calculator(nodes.General, nodes.Element):
    """A calculator of a topic: `html` for a browser, `text` for everything else."""


class CalculatorDirective(SphinxDirective):
    """`{calculator} name`, with inputs as options."""

    required_arguments = 1
    has_content = False
    option_spec: ClassVar = {n: directives.unchanged_required for c in calculators.every().values() for n in c.table}

    def run(self) -> list[nodes.Node]:
        try:
            declared = calculators.get(self.arguments[0])
            taken = self.env.temp_data.setdefault("efflab_calculators", {})
            taken[declared.name] = taken.get(declared.name, 0) + 1
            name = declared.name if taken[declared.name] == 1 else f"{declared.name}-{taken[declared.name]}"
            node = calculator(
                topic=declared.topic,
                html=markup.html(declared, name, **self.options),
                text=markup.text(declared, **self.options),
            )
        except EfflabError as error:
            raise self.error(str(error)) from None
        self.set_source_info(node)
        return [node]


def _visit_html(self: Any, node: nodes.Element) -> None:
    self.body.append(node["html"])
    raise nodes.SkipNode


def _visit_other(self: Any, node: nodes.Element) -> None:
    text = nodes.literal_block(node["text"], node["text"])
    text.walkabout(self)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Add the directive and its node."""
    other = (_visit_other, None)
    app.add_node(calculator, html=(_visit_html, None), latex=other, text=other, man=other, texinfo=other)
    app.add_directive("calculator", CalculatorDirective)
