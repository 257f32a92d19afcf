"""Where a mechanism comes from: papers and their equations, declared beside the code."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Source:
    """A publication.

    `key` is the BibTeX key; `id` begins with "arXiv:" or "doi:".
    """

    key: str
    title: str
    authors: str
    venue: str
    year: int
    id: str

    @property
    def url(self) -> str:
        """Where the publication can be read."""
        kind, _, number = self.id.partition(":")
        return f"https://arxiv.org/abs/{number}" if kind == "arXiv" else f"https://doi.org/{number}"

    def bibtex(self) -> str:
        """One BibTeX entry."""
        kind, _, number = self.id.partition(":")
        place = (
            f"  eprint = {{{number}}},\n  archivePrefix = {{arXiv}},\n"
            if kind == "arXiv"
            else f"  doi = {{{number}}},\n"
        )
        return (
            f"@article{{{self.key},\n  title = {{{self.title}}},\n"
            f"  author = {{{self.authors}}},\n  journal = {{{self.venue}}},\n"
            f"  year = {{{self.year}}},\n{place}}}"
        )


@dataclass(frozen=True, kw_only=True)
class Equation:
    """One equation of a source, under the name by which the code refers to it.

    `where` is the section, and the printed number where it has been read in the paper itself.
    """

    name: str
    text: str
    source: Source
    where: str
    code: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """A published number: what its authors report, not what this library measured."""

    dataset: str
    metric: str
    value: float
    note: str = ""
