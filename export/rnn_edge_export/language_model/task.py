"""Language modelling as a training task: streams of text, the state carried from window to window."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rnn_edge.errors import InvalidValueError
from rnn_edge.manifest import Metric
from rnn_edge.sampling import Sampler, SamplingOptions, bar
from rnn_edge_export.distributed import World
from rnn_edge_export.language_model.data import Corpus, Window, random_lengths, windows, windows_per_epoch
from rnn_edge_export.language_model.modules import RecurrentLanguageModel, State, detach
from rnn_edge_export.language_model.scoring import carried_loss, cold_block_loss
from rnn_edge_export.layers import state_names
from rnn_edge_export.pretrained import PretrainedVectors
from rnn_edge_export.recipe import LanguageModelRecipe
from rnn_edge_export.run import TOKENIZER
from rnn_edge_export.task import BatchLoss, Evaluation
from rnn_edge_export.vocabularies import UNKNOWN

_SAMPLE_TOKENS = 200


class LanguageModelTask:
    """Truncated back-propagation through time over parallel streams."""

    def __init__(
        self,
        recipe: LanguageModelRecipe,
        corpus: Corpus,
        world: World = World(),  # noqa: B008  # frozen
        vectors: PretrainedVectors | None = None,
    ) -> None:
        """Of ``world``'s streams this process reads its share. A new network's embedding begins with ``vectors``.

        Raises:
            InvalidValueError: the streams cannot be shared out evenly.
        """
        self.recipe, self.corpus, self.world, self.vectors = recipe, corpus, world, vectors
        training = recipe.training
        if training.batch_size % world.size:
            raise InvalidValueError(
                f"--batch-size is {training.batch_size}, which {world.size} processes cannot share evenly",
                f"use a multiple of {world.size}",
            )
        self._rows = world.rows(training.batch_size)
        self._streams = training.batch_size // world.size
        self.steps_per_epoch = windows_per_epoch(
            len(corpus.train.tokens), training.batch_size, training.sequence_length
        )
        self.state: State | None = None  # zeros

    def describe(self) -> list[str]:
        """Network and data."""
        model, data = self.recipe.model, self.corpus
        size = data.tokenizer.vocabulary_size
        return [
            f"{model.cell.upper()} {model.layers} × {model.hidden}, embedding {model.embedding}, vocabulary {size}",
            f"{len(data.train.tokens):,} training tokens",
            f"validation on {data.valid.source} ({len(data.valid.tokens):,} tokens)",
        ]

    def new_model(self) -> RecurrentLanguageModel:
        """The untrained network."""
        model = RecurrentLanguageModel(self.recipe.model, self.corpus.tokenizer.vocabulary_size)
        if self.vectors is not None:
            self.vectors.write_into(model.embedding)
        model.embedding.weight.requires_grad_(not self.recipe.model.freeze_embeddings)
        return model

    def files(self) -> dict[str, bytes]:
        """The tokenizer."""
        return {TOKENIZER: self.corpus.tokenizer.content}

    def batches(self, epoch: int, done: int) -> Iterator[Window]:
        """Windows: inputs and targets, each [T, B]. The text is read from another offset each epoch."""
        training = self.recipe.training
        tokens = self.corpus.train.tokens
        offset = int(np.random.default_rng((training.seed, epoch)).integers(len(tokens)))
        length: int | list[int] = training.sequence_length
        if training.random_lengths:
            span = (len(tokens) - 1) // training.batch_size
            length = random_lengths(span, training.sequence_length, np.random.default_rng((training.seed, epoch, 1)))
        if done == 0:
            self.state = None
        yield from windows(tokens, training.batch_size, length, offset, done, self._rows)

    def loss(self, model: RecurrentLanguageModel, batch: Window, device: torch.device) -> BatchLoss:
        """One window of truncated back-propagation."""
        inputs, targets = batch
        training = self.recipe.training
        state = model.zero_state(self._streams) if self.state is None else self.state
        if training.reset_probability > 0:
            keep = (torch.rand(self._streams, 1) >= training.reset_probability).to(device)
            state = [tuple(tensor * keep.to(tensor.dtype) for tensor in layer) for layer in state]
        features = model.features(inputs.to(device), state)
        self.state = detach(features.state)
        logits, expected = model.logits(features.dropped).float().flatten(0, 1), targets.to(device).flatten()
        loss = objective = F.cross_entropy(logits, expected)
        if training.label_smoothing > 0:
            objective = F.cross_entropy(logits, expected, label_smoothing=training.label_smoothing)
        if training.activation_regularisation > 0:
            objective = objective + training.activation_regularisation * features.dropped.float().square().mean()
        if training.temporal_regularisation > 0 and len(inputs) > 1:
            change = features.raw[1:].float() - features.raw[:-1].float()
            objective = objective + training.temporal_regularisation * change.square().mean()
        return BatchLoss(loss, objective, targets.numel())

    def rate(self, batch: Window) -> float:
        """In proportion to the window's length where that is drawn: short windows would count for too much."""
        training = self.recipe.training
        return len(batch[0]) / training.sequence_length if training.random_lengths else 1.0

    def evaluate(self, model: RecurrentLanguageModel, step: int) -> Evaluation:
        """Loss over a few parallel streams, which is faster; each one's zero start costs little where it is long."""
        tokens = self.corpus.valid.tokens
        length = len(tokens)
        streams = max(1, min(16, (length - 1) // 100), min(256, length // 10_000))
        loss = carried_loss(model, tokens, streams)
        return Evaluation(loss, write_sample(model, self.corpus, seed=step), objective=loss)

    def scores(self, model: RecurrentLanguageModel) -> tuple[Metric, ...]:
        """The loss of one stream with the state carried, and of cold blocks, on validation and test."""
        title, found = self.recipe.data.title, []
        for part in filter(None, (self.corpus.valid, self.corpus.test)):
            carried = carried_loss(model, part.tokens)
            method = "state carried from a zero start"
            found.append(Metric("loss", carried, "nats per token", title, part.source, method))
            bits = carried / math.log(2) * (len(part.tokens) - 1) / part.characters
            if self.recipe.training.tokenizer != "character":
                found.append(Metric("loss", bits, "bits per character", title, part.source, method))
            if len(part.tokens) > 256:
                cold = cold_block_loss(model, part.tokens)
                method = "consecutive blocks of 256 from a zero state"
                found.append(Metric("loss", cold, "nats per token", title, part.source, method))
        return tuple(found)

    def carried(self) -> dict[str, Tensor]:
        """The state: state.h0, state.c0, state.h1, …"""
        if self.state is None:
            return {}
        return dict(zip(self._state_names(), (tensor for layer in self.state for tensor in layer), strict=True))

    def restore(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """The inverse of ``carried``."""
        flat = [tensors[name][self._rows].to(device) for name in self._state_names()]
        kinds = len(flat) // self.recipe.model.layers
        self.state = [tuple(flat[first : first + kinds]) for first in range(0, len(flat), kinds)]

    def _state_names(self) -> list[str]:
        return [f"state.{name}" for name in state_names(self.recipe.model.cell, self.recipe.model.layers)]


@torch.no_grad()
def write_sample(model: RecurrentLanguageModel, corpus: Corpus, *, seed: int) -> str:
    """Some text by the model. Its noise is keyed by ``seed``, so it never disturbs the training's random numbers."""
    sampler = Sampler(SamplingOptions(temperature=0.8), corpus.tokenizer.vocabulary_size, seed=seed)
    device = model.output.weight.device
    token, state = int(corpus.valid.tokens[0]), model.zero_state(1)
    unknown = corpus.tokenizer.id_of(UNKNOWN)
    ids: list[int] = []
    for _ in range(_SAMPLE_TOKENS):
        logits, state = model(torch.tensor([[token]], device=device), state)
        scores = logits[0, 0].float().cpu().numpy()
        token = sampler.choose(scores if unknown is None else bar(scores, unknown))
        ids.append(token)
    return corpus.tokenizer.decode(ids)
