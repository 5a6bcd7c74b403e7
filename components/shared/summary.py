"""What a reader wants to know first, in words and rows: for a terminal, a Markdown file and a page alike."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """A table, what follows from it and what to be careful about.

    Attributes:
        title: Heading.
        columns: Headings of the table.
        text_columns: How many columns at the left are texts; the rest are numbers.
        rows: A text for each column.
        findings: What follows from the table, a sentence each.
        caveats: What a reader must know before trusting it, a sentence each.
    """

    title: str
    columns: tuple[str, ...]
    text_columns: int
    rows: list[tuple[str, ...]]
    findings: list[str]
    caveats: list[str]

    def markdown(self) -> str:
        """Return it as a Markdown document."""
        ruler = ["---"] * self.text_columns + ["---:"] * (len(self.columns) - self.text_columns)
        cells = [self.columns, ruler, *self.rows]
        lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in cells]
        notes = [f"- {text}" for text in (*self.findings, *self.caveats)]
        return "\n".join([f"# {self.title}", "", *lines, "", *notes, ""])
