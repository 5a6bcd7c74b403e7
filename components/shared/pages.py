"""Pages that show a summary, with plots and more below it, and need nothing else."""

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from yolo_distill.components.shared.summary import Summary

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#CC79A7")


def render_page(package: str, template: str, summary: Summary, **values: Any) -> str:
    """Render a page that extends ``page.html``.

    Args:
        package: The package that holds the template.
        template: The template's file name.
        summary: What comes first.
        **values: What else the template shows.

    Returns:
        A self-contained HTML page; texts in it are escaped.
    """
    # The packages of the import system, so that the templates are found in a wheel as in a checkout.
    loaders = [PackageLoader(name, ".") for name in (package, "yolo_distill.components.shared")]
    environment = Environment(loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(summary=summary, **values)
