"""Translation as a training task: batches of pairs, validation by loss and BLEU."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rnn_edge.evaluation import bleu
from rnn_edge.manifest import Metric
from rnn_edge.tokenizer import Tokenizer
from rnn_edge.translation import TranslationOptions
from rnn_edge_export.embedding import Embedding
from rnn_edge_export.pretrained import PretrainedVectors
from rnn_edge_export.recipe import TranslationRecipe
from rnn_edge_export.recipe_sections import Of
from rnn_edge_export.run import RECIPE, SOURCE_TOKENIZER, TOKENIZER, load_tokenizer
from rnn_edge_export.task import BatchLoss, Evaluation
from rnn_edge_export.translation.batches import IGNORE, Batch, PairBatches, pad, special_id
from rnn_edge_export.translation.data import PairCorpus
from rnn_edge_export.translation.modules import EncoderDecoder, Memory
from rnn_edge_export.translation.subwords import END, START

_VALIDATION_PAIRS = 2000  # of a larger set, only so many are translated while training
_AT_ONCE = 100
_SAMPLES = 3


class TranslationTask:
    """Teacher forcing on sentence pairs with label smoothing."""

    def __init__(
        self, recipe: TranslationRecipe, corpus: PairCorpus, vectors: Mapping[Of, PretrainedVectors] | None = None
    ) -> None:
        """A new network's embeddings begin with ``vectors``: of the source, of the target, or of both in one."""
        self.recipe, self.corpus, self.vectors = recipe, corpus, vectors or {}
        self._tokenizers = (corpus.source_tokenizer, corpus.target_tokenizer)
        self._batches = PairBatches(corpus.train, self._tokenizers, recipe.training)
        self.steps_per_epoch = self._batches.per_epoch

    def describe(self) -> list[str]:
        """Network and data."""
        model, data = self.recipe.model, self.corpus
        sizes = dict.fromkeys(str(tokenizer.vocabulary_size) for tokenizer in self._tokenizers)
        network = (
            f"{model.cell.upper()} encoder {model.encoder_layers} × 2 × {model.encoder_hidden}, "
            f"decoder {model.layers} × {model.hidden}, {model.attention} attention, embedding {model.embedding}"
        )
        return [
            f"{network}, vocabulary {' and '.join(sizes)}",
            f"{len(data.train):,} training pairs, {self.steps_per_epoch:,} batches; validation on {data.valid_source}",
        ]

    def new_model(self) -> EncoderDecoder:
        """The untrained network."""
        model = new_model(self.recipe, self._tokenizers)
        target = model.target_embedding
        tables: dict[Of, Embedding] = {"source": model.source_embedding, "target": target, "both": target}
        for of, vectors in self.vectors.items():
            vectors.write_into(tables[of])
        if self.recipe.model.freeze_embeddings:
            data = self.recipe.data
            for of in (*(file.of for file in data.vectors), *data.frozen):
                tables[of].weight.requires_grad_(False)
        return model

    def files(self) -> dict[str, bytes]:
        """One tokenizer, or one for each side."""
        files = {TOKENIZER: self.corpus.target_tokenizer.content}
        if self.corpus.source_tokenizer is not self.corpus.target_tokenizer:
            files[SOURCE_TOKENIZER] = self.corpus.source_tokenizer.content
        return files

    def batches(self, epoch: int, done: int) -> Iterator[Batch]:
        """Batches of an epoch after the first ``done``."""
        return islice(self._batches.epoch(epoch), done, None)

    def loss(self, model: EncoderDecoder, batch: Batch, device: torch.device) -> BatchLoss:
        """Mean cross-entropy, differentiated with label smoothing."""
        batch = batch.to(device)
        logits = model(batch.source, batch.lengths, batch.inputs)
        smoothing = self.recipe.training.label_smoothing
        scores, expected = logits.float().flatten(0, 1), batch.targets.flatten()
        loss = objective = F.cross_entropy(scores, expected, ignore_index=IGNORE, label_smoothing=smoothing)
        if smoothing > 0:
            with torch.no_grad():
                loss = F.cross_entropy(scores, expected, ignore_index=IGNORE)
        return BatchLoss(loss, objective, batch.source.numel() + batch.targets.numel())

    def rate(self, batch: Batch) -> float:
        """The same for all."""
        return 1.0

    def evaluate(self, model: EncoderDecoder, step: int) -> Evaluation:
        """Loss, and BLEU of greedy translations."""
        pairs = self.corpus.valid[:_VALIDATION_PAIRS]
        loss = reference_loss(model, pairs, self._tokenizers)
        translations = translate_greedily(model, [source for source, _ in pairs], self._tokenizers)
        score = bleu(translations, [target for _, target in pairs]).value
        # Other ones each time, the same for the same step.
        shown = np.random.default_rng(step).permutation(len(pairs))[:_SAMPLES]
        sample = "\n".join(f"{pairs[index][0]} → {translations[index]}" for index in shown)
        objective = loss if self.recipe.training.select_by == "loss" else 0.001 * loss - score  # ties go to the loss
        return Evaluation(loss, sample, objective, score)

    def scores(self, model: EncoderDecoder) -> tuple[Metric, ...]:
        """Loss and greedy BLEU on all validation pairs."""
        pairs = self.corpus.valid
        data, split = self.recipe.data.title, self.corpus.valid_source
        found = bleu(
            translate_greedily(model, [source for source, _ in pairs], self._tokenizers), [pair[1] for pair in pairs]
        )
        loss = reference_loss(model, pairs, self._tokenizers)
        return (
            Metric("loss", loss, "nats per token", data, split, "of the references, without smoothing"),
            Metric("BLEU", found.value, "", data, split, f"greedy, PyTorch, {found.signature}"),
        )

    def carried(self) -> dict[str, Tensor]:
        """Nothing is carried from batch to batch."""
        return {}

    def restore(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Nothing is carried."""


def new_model(recipe: TranslationRecipe, tokenizers: tuple[Tokenizer, Tokenizer]) -> EncoderDecoder:
    """The untrained network for source and target tokenizer."""
    source, target = tokenizers
    return EncoderDecoder(recipe.model, source.vocabulary_size, target.vocabulary_size, joint=source is target)


def run_tokenizers(run: Path) -> tuple[Tokenizer, Tokenizer]:
    """Source and target tokenizer of a run; one object where they share one.

    Raises:
        RunError: one is missing.
    """
    target = load_tokenizer(run / TOKENIZER)
    # By the recipe: what stands in the folder may be of a run that was replaced.
    shared = TranslationRecipe.from_toml(run / RECIPE).training.tokenizer == "subword"
    return (target if shared else load_tokenizer(run / SOURCE_TOKENIZER)), target


@torch.no_grad()
def reference_loss(
    model: EncoderDecoder, pairs: Sequence[tuple[str, str]], tokenizers: tuple[Tokenizer, Tokenizer]
) -> float:
    """Mean loss in nats per target token, the end token included."""
    device = model.output.weight.device
    start, end = special_id(tokenizers[1], START), special_id(tokenizers[1], END)
    total, count = 0.0, 0
    for some in _by_length([source for source, _ in pairs]):
        source, lengths = _source(tokenizers[0], [pairs[index][0] for index in some])
        rows = [np.array(ids) for ids in tokenizers[1].encode_batch([pairs[index][1] for index in some])]
        inputs = pad([np.insert(ids, 0, start) for ids in rows], end)
        targets = pad([np.append(ids, end) for ids in rows], IGNORE).to(device)
        logits = model(source.to(device), lengths.to(device), inputs.to(device)).float()
        total += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum").item()
        count += int((targets != IGNORE).sum())
    return total / count


@torch.no_grad()
def translate_greedily(
    model: EncoderDecoder, sentences: Sequence[str], tokenizers: tuple[Tokenizer, Tokenizer]
) -> list[str]:
    """The likeliest token at each step, at most as many as on a device: for validation while training."""
    device = model.output.weight.device
    start, end = special_id(tokenizers[1], START), special_id(tokenizers[1], END)
    results = [""] * len(sentences)
    for some in _by_length(sentences):
        source, lengths = _source(tokenizers[0], [sentences[index] for index in some])
        memory, state = model.encode(source.to(device), lengths.to(device))
        # Each to its own limit: a longer one beside it gives it no more.
        limits = [int(TranslationOptions.maximum_ratio * length) + 10 for length in lengths.tolist()]
        ids = greedy(model, memory, state, start, end, max(limits))
        for index, row, limit in zip(some, ids, limits, strict=True):
            results[index] = tokenizers[1].decode(row[:limit]).strip()
    return results


def greedy(
    model: EncoderDecoder, memory: Memory, state: list[Tensor], start: int, end: int, limit: int
) -> list[list[int]]:
    """Ids of each sentence of a batch, without the end token."""
    tokens = torch.full((1, len(memory.lengths)), start, device=memory.lengths.device)
    chosen: list[Tensor] = []
    finished = torch.zeros_like(tokens[0], dtype=torch.bool)
    while len(chosen) < limit and not finished.all():
        logits, _, state = model.decode(tokens, state, memory)
        tokens = logits.argmax(dim=2)
        finished |= tokens[0] == end
        chosen.append(tokens[0])
    rows = torch.stack(chosen, dim=1).tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


def _source(tokenizer: Tokenizer, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
    """source int64 [S, B], lengths [B]."""
    end = special_id(tokenizer, END)
    rows = [np.append(np.array(ids, dtype=np.int64), end) for ids in tokenizer.encode_batch(sentences)]
    return pad(rows, end), torch.tensor([len(row) for row in rows])


def _by_length(sources: Sequence[str]) -> list[list[int]]:
    """Indices of sentences in groups of about equal length."""
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    return [order[first : first + _AT_ONCE] for first in range(0, len(order), _AT_ONCE)]
