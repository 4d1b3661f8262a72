"""Where a model from elsewhere comes from, as its bundle says it."""

from dataclasses import dataclass
from typing import Any

import tomli_w

from rnn_edge.manifest import Metric, Provenance


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, for its model card and manifest; all of it may be left out.

    ``title`` is the model in a line, ``notes`` are Markdown for the model card, ``metrics`` what was measured. The data
    it was trained on have a title, a public source, a licence and a SHA-256; so has the checkpoint that was imported.
    """

    title: str = ""
    notes: str = ""
    metrics: tuple[Metric, ...] = ()
    data_title: str = ""
    data_source: str = ""
    data_licence: str = ""
    data_sha256: str = ""
    checkpoint_sha256: str = ""

    def provenance(self, source: str, **details: Any) -> Provenance:
        """What stands in the manifest; in place of a recipe, what was imported, with ``details``."""
        details |= {"sha256": self.checkpoint_sha256} if self.checkpoint_sha256 else {}
        recipe = tomli_w.dumps({"title": self.title, "imported": {"from": source, **details}})
        return Provenance(recipe, self.data_title, self.data_source, self.data_licence, self.data_sha256)
