"""The tables of a recipe: where the data are from, the network, the training. Each field has its range and its help."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeVar

from rnn_edge.errors import InvalidValueError
from rnn_edge.manifest import AttentionKind, Cell, TokenizerKind

T = TypeVar("T")
Of = Literal["input", "source", "target", "both"]


def option(default: T, help: str, *, minimum: float | None = None, below: float | None = None) -> T:  # noqa: A002
    """A field that is also a flag: its help, and the range ``minimum <= value < below``."""
    return field(default=default, metadata={"help": help, "minimum": minimum, "below": below})


def derived_width() -> int:
    """A field that no flag sets: the width of a table behind a projection, from the file of its vectors; 0 for none."""
    return field(default=0, metadata={"minimum": 0})


def probability(default: float, help: str) -> float:  # noqa: A002
    """A field in [0, 1)."""
    return option(default, help, minimum=0.0, below=1.0)


@dataclass(frozen=True)
class VectorFile:
    """A file of pretrained vectors by name and SHA-256, and whose they are: of the input, of one side, or of both."""

    of: Of
    name: str
    sha256: str


@dataclass(frozen=True)
class DataRecipe:
    """The corpus by title, public source, licence and hash. Its path is an argument, never part of a recipe.

    Hashes are of all files of a kind, one behind the other; ``valid_sha256`` and ``test_sha256`` are empty where a part
    of the corpus serves. ``longest`` is the longest source side that was trained on, in tokens; 0 for a language model.
    ``vectors`` are what embeddings began with; ``initial_sha256`` is that of the checkpoint that all weights began
    with, or empty, and ``frozen`` whose tables are kept as they are there.
    """

    title: str = ""
    source: str = ""
    licence: str = ""
    sha256: str = ""
    valid_sha256: str = ""
    test_sha256: str = ""
    longest: int = 0
    vectors: tuple[VectorFile, ...] = ()
    initial_sha256: str = ""
    frozen: tuple[Of, ...] = ()


@dataclass(frozen=True)
class LanguageModelSection:
    """Embedding → stacked recurrent layers → output layer."""

    cell: Cell = option("lstm", "Recurrent cell: lstm, gru or rnn (tanh).")
    embedding: int = option(128, "Width of the embedding.", minimum=1)
    hidden: int = option(256, "Width of each recurrent layer.", minimum=1)
    layers: int = option(2, "Number of recurrent layers.", minimum=1)
    last_hidden: int = option(0, "Width of the last recurrent layer; 0 for that of the others.", minimum=0)
    tie_weights: bool = option(
        False, "Use the embedding as output layer, behind a projection where the last layer has another width."
    )
    residual: bool = option(False, "Add each layer's input to its output, from the second on, where widths are equal.")
    layer_norm: bool = option(False, "Layer normalisation inside the cells (Ba et al. 2016); trains far slower.")
    embedding_dropout: float = probability(
        0.0, "Chance that a token's embedding is left out of a window whole (Gal & Ghahramani 2016)."
    )
    input_dropout: float = probability(0.0, "Dropout on the embedded input.")
    layer_dropout: float = probability(0.2, "Dropout between recurrent layers.")
    output_dropout: float = probability(0.2, "Dropout before the output layer.")
    locked_dropout: bool = option(True, "One dropout mask for all steps of a window (Gal & Ghahramani 2016).")
    weight_drop: float = probability(0.0, "DropConnect on the recurrent matrices (Merity et al. 2017).")
    freeze_embeddings: bool = option(False, "Keep the table of --embeddings as it is, also where it is tied.")
    vector_width: int = derived_width()

    @property
    def widths(self) -> list[int]:
        """Of the recurrent layers, from the bottom up."""
        return [self.hidden] * (self.layers - 1) + [self.last_hidden or self.hidden]

    def adds_input(self, layer: int) -> bool:
        """Whether a layer's output has its input added."""
        return self.residual and layer > 0 and self.widths[layer] == self.widths[layer - 1]

    def check(self) -> None:
        """Raises InvalidValueError for values that exclude each other."""
        if self.residual and not any(below == width for below, width in pairwise(self.widths)):
            raise InvalidValueError(
                f"--residual has nothing to add with recurrent layers of widths {self.widths}",
                "leave it out, or use two layers of the same width",
            )


@dataclass(frozen=True)
class TranslationSection:
    """Bidirectional encoder → attention ← recurrent decoder → output layer tied to the target embedding."""

    cell: Literal["lstm", "gru"] = option("lstm", "Recurrent cell: lstm or gru.")
    embedding: int = option(256, "Width of the embeddings.", minimum=1)
    encoder_hidden: int = option(256, "Width of each direction of the encoder.", minimum=1)
    encoder_layers: int = option(2, "Bidirectional layers of the encoder.", minimum=1)
    hidden: int = option(512, "Width of each layer of the decoder.", minimum=1)
    layers: int = option(1, "Layers of the decoder.", minimum=1)
    attention: AttentionKind = option("general", "Score of the attention: dot or general (Luong), or bahdanau.")
    input_feeding: bool = option(False, "Feed the attention's result to the next step (Luong 2015); trains far slower.")
    share_embeddings: bool = option(True, "One embedding for source and target, where they share a vocabulary.")
    input_dropout: float = probability(0.3, "Dropout on the embedded tokens.")
    word_dropout: float = probability(0.0, "Chance that a token's embedding is left out whole.")
    layer_dropout: float = probability(0.3, "Dropout between layers.")
    output_dropout: float = probability(0.3, "Dropout before the output layer.")
    locked_dropout: bool = option(True, "One dropout mask for all steps of a sentence (Gal & Ghahramani 2016).")
    weight_drop: float = probability(0.0, "DropConnect on the recurrent matrices (Merity et al. 2017).")
    freeze_embeddings: bool = option(
        False, "Keep tables with pretrained vectors as they are; the target's is also the output layer."
    )
    source_vector_width: int = derived_width()
    target_vector_width: int = derived_width()

    def check(self) -> None:
        """Raises InvalidValueError for widths that exclude each other."""
        if self.attention == "dot" and self.hidden != 2 * self.encoder_hidden:
            raise InvalidValueError(
                f"dot attention needs a decoder twice as wide as one direction of the encoder, not --hidden "
                f"{self.hidden} and --encoder-hidden {self.encoder_hidden}",
                "make --hidden twice --encoder-hidden, or use --attention general",
            )


_MOST_DECAY = 0.01  # of the weights in a step


@dataclass(frozen=True)
class OptimisationSection:
    """What every training has."""

    epochs: float = option(20.0, "Passes over the training data.", minimum=0.001)
    optimizer: Literal["adamw", "sgd", "nt-asgd"] = option(
        "adamw",
        "adamw with warm-up and cosine; sgd whose learning rate is annealed; "
        "nt-asgd, sgd averaged from where validation stalls (Merity et al. 2017).",
    )
    learning_rate: float = option(0.002, "Peak learning rate; that of sgd and nt-asgd is some 20.", minimum=1e-8)
    annealing: float = option(4.0, "sgd divides the rate by this when validation is not better.", minimum=1.0)
    nonmonotone_interval: int = option(
        5, "nt-asgd averages when validation is worse than the best before its last so many.", minimum=1
    )
    accumulation: int = option(1, "Batches whose gradients make one step of the optimiser.", minimum=1)
    final_learning_rate: float = option(0.02, "Learning rate at the end, as a share of the peak.", minimum=0.0)
    warmup_steps: int = option(100, "Steps of linear warm-up before the cosine.", minimum=0)
    weight_decay: float = option(
        0.01, "Weight decay, decoupled with adamw; a new sgd or nt-asgd takes 1.2e-6 unless told.", minimum=0.0
    )
    clip_norm: float = option(1.0, "Largest norm of the gradient.", minimum=1e-8)
    average_decay: float = probability(
        0.998, "Decay of the averaged (EMA) weights; 0 turns averaging off. nt-asgd averages in its own way."
    )
    validation_interval: int = option(250, "Steps between validations.", minimum=1)
    patience: int = option(0, "Stop after so many validations without a better one; 0 never stops.", minimum=0)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "Arithmetic: auto takes bf16 where the hardware has matrix units for it."
    )
    seed: int = option(1, "Seed of everything random in training.", minimum=0, below=2**63)

    def check(self) -> None:
        """Raises InvalidValueError for a weight decay that leaves nothing of the weights."""
        shrinks = self.learning_rate * self.weight_decay
        if self.optimizer != "adamw" and shrinks > _MOST_DECAY:
            raise InvalidValueError(
                f"--weight-decay {self.weight_decay:g} at --learning-rate {self.learning_rate:g} "
                f"takes {shrinks:.0%} of all weights in each step of {self.optimizer}",
                "lower --weight-decay: AWD-LSTM has 1.2e-6",
            )


@dataclass(frozen=True)
class StreamSection(OptimisationSection):
    """Truncated back-propagation through time over streams of text."""

    batch_size: int = option(64, "Parallel streams of text.", minimum=1)
    sequence_length: int = option(128, "Steps that gradients flow back through.", minimum=1)
    tokenizer: TokenizerKind = option(
        "character", "What a token is: character, byte, word or subword (byte-level BPE)."
    )
    vocabulary_size: int = option(8000, "Tokens of a vocabulary of words or subwords, at most.", minimum=3)
    minimum_count: int = option(1, "Words that occur less often become <unk>.", minimum=1)
    words: Literal["text", "spaces"] = option(
        "text", "Words and punctuation marks of plain text, or what stands between spaces in tokenised text."
    )
    random_lengths: bool = option(
        False, "Draw the lengths of windows around --sequence-length, and the rate with them (Merity et al. 2017)."
    )
    label_smoothing: float = probability(0.0, "Probability spread over all tokens (Szegedy et al. 2016).")
    activation_regularisation: float = option(
        0.0, "Weight of the squares of the last layer's outputs in the loss (AR, Merity et al. 2017).", minimum=0.0
    )
    temporal_regularisation: float = option(
        0.0, "Weight of the squares of their changes from step to step (TAR).", minimum=0.0
    )
    reset_probability: float = probability(0.0, "Chance that a stream starts a window from a zero state.")
    validation_fraction: float = probability(0.1, "Last part of the corpus kept for validation without --valid.")
    test_fraction: float = probability(0.0, "Part of the corpus after that, kept for the test without --test.")

    def check(self) -> None:
        """Raises InvalidValueError for values that exclude each other."""
        super().check()
        if self.validation_fraction + self.test_fraction >= 1:
            raise InvalidValueError(
                "--validation-fraction and --test-fraction leave nothing to train on", "let them sum to less than 1"
            )
        if self.tokenizer == "subword" and self.vocabulary_size < 256:
            raise InvalidValueError(
                f"--vocabulary-size is {self.vocabulary_size}", "subwords have 256 bytes among them: use at least 256"
            )


@dataclass(frozen=True)
class PairSection(OptimisationSection):
    """Batches of sentence pairs."""

    learning_rate: float = option(0.001, "Peak learning rate; that of sgd and nt-asgd is far larger.", minimum=1e-8)
    tokenizer: Literal["subword", "word"] = option(
        "subword", "One byte-level BPE for both sides, or a vocabulary of words for each side."
    )
    vocabulary_size: int = option(8000, "Tokens of the vocabulary; of each, for words.", minimum=260)
    bpe_dropout: float = probability(0.0, "Chance that a merge is left out (Provilkov et al. 2020).")
    lowercase: bool = option(False, "Put everything in lower case.")
    source_language: str = option("en", "Code of the source's language, for splitting texts into sentences.")
    batch_tokens: int = option(4096, "Source and target tokens of a batch, padding included.", minimum=16)
    maximum_length: int = option(100, "Leave out pairs with more tokens on a side.", minimum=1)
    maximum_ratio: float = option(4.0, "Leave out pairs with so many times more tokens on a side.", minimum=1.0)
    label_smoothing: float = probability(0.1, "Probability spread over all tokens (Szegedy et al. 2016).")
    validation_pairs: int = option(1000, "Pairs kept for validation without --valid.", minimum=1)
    select_by: Literal["bleu", "loss"] = option("bleu", "What the best weights are best at, on the validation pairs.")


ModelSection = LanguageModelSection | TranslationSection
