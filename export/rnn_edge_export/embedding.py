"""The embedding: a table of vectors, and a projection behind it where these have another width than the network's.

Symbols in shape comments: V vocabulary, E width of the embedding, W width of the table.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class Embedding(nn.Embedding):
    """Token ids [...] → [..., E]: rows of ``weight`` [V, W], projected where W is not E.

    Both are linear: what is exported is their product, one table [V, E].
    """

    def __init__(self, vocabulary_size: int, width: int, vector_width: int = 0) -> None:
        """``vector_width`` is W; 0 for a table without a projection."""
        super().__init__(vocabulary_size, vector_width or width)
        self.projection = nn.Linear(vector_width, width, bias=False) if vector_width else None

    def initialise(self, std: float) -> None:
        """Random rows of this spread in every element, also behind the projection."""
        nn.init.normal_(self.weight, std=std)
        if self.projection is not None:
            width, own = self.projection.weight.shape
            nn.init.orthogonal_(self.projection.weight, gain=max(1.0, (width / own) ** 0.5))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [...] → [..., E]."""
        rows = super().forward(tokens)
        return rows if self.projection is None else self.projection(rows)

    def back(self, x: Tensor) -> Tensor:
        """x [..., E] → [..., W], so that ``back(x) @ weight.T`` is ``x @ folded().T``: for a tied output layer."""
        return x if self.projection is None else F.linear(x, self.projection.weight.t())

    def folded(self) -> Tensor:
        """The one table [V, E] that both are."""
        return self.weight if self.projection is None else self.projection(self.weight)
