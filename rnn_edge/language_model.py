"""A language model on a device: single texts and batches of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Unpack

from rnn_edge.bundle import Bundle, open_bundle, require_task
from rnn_edge.errors import InvalidValueError, UnknownTokenError
from rnn_edge.generation import Generation
from rnn_edge.manifest import Manifest
from rnn_edge.placement import Threads, place
from rnn_edge.providers import Device
from rnn_edge.state import State, check_state
from rnn_edge.stepper import StepGraph
from rnn_edge.text_stream import TextKeywords, TextOptions, TextStream
from rnn_edge.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from rnn_edge.batch_generation import BatchGeneration


class LanguageModel:
    """A language model on a device: ``LanguageModel.load("shakespeare").generate("ROMEO:")``."""

    def __init__(self, bundle: Bundle, graph: StepGraph, tokenizer: Tokenizer) -> None:
        self.bundle = bundle
        self.graph = graph
        self.tokenizer = tokenizer

    @classmethod
    def load(
        cls, name_or_path: str | os.PathLike[str], *, device: Device = "auto", threads: Threads = None, streams: int = 1
    ) -> LanguageModel:
        """Open a bundle by name or folder, check its bytes, and load its graph.

        ``threads`` is the number of CPU threads, None for one; ``"auto"`` measures once and remembers (``placement``),
        for ``streams`` at once.

        Raises:
            BundleError: not found, damaged, not what its manifest says, or not a language model.
            DeviceError: CUDA is asked for and not available.
            MissingDependencyError: there is no ONNX Runtime.
        """
        bundle = open_bundle(name_or_path)
        require_task(bundle, "language-model")
        where = place(bundle, device, threads, streams)
        return cls(bundle, StepGraph(bundle, device=where.device, threads=where.threads), load_tokenizer(bundle))

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    def generate(
        self,
        prompt: str = "",
        *,
        state: State | None = None,
        stream: int | None = None,
        **keywords: Unpack[TextKeywords],
    ) -> Generation:
        """Continue ``prompt``.

        Args:
            prompt: the text before; empty starts from the vocabulary's start token, or from a random one.
            state: go on from where an earlier generation stopped, with its seed unless another is given.
            stream: another number draws another text from the same seed; None takes the state's, or 0.
            keywords: max_tokens, seed, temperature, top_k, top_p, min_p, repeat_penalty, repeat_window, stop, unknown,
                log_probabilities, as in ``TextOptions.of``.

        Raises:
            InvalidValueError: a value is out of its range.
            UnknownTokenError: the prompt has characters that the model has never seen.
            StateError: the state is of another model.
        """
        options = self._options(state, keywords)
        if stream is None:
            stream = state.continuation.stream if state else 0
        ids = self.tokenizer.encode(prompt, unknown=options.unknown)
        text = TextStream(self.tokenizer, ids, options, stream=stream, before=state.continuation if state else None)
        stepper = self.graph.stepper()
        if state:
            stepper.load(state)
        return Generation(self.graph, stepper, text, options)

    def generate_batch(
        self,
        prompts: Iterable[str],
        *,
        batch_size: int = 32,
        state: State | None = None,
        **keywords: Unpack[TextKeywords],
    ) -> BatchGeneration:
        """Continue each of ``prompts``, ``batch_size`` of them in one step.

        Text i is what ``generate(prompt_i, stream=i)`` gives with the same options and seed, up to choices between
        tokens whose logits are as close as rounding: a graph may add in another order for another batch.

        Prompts are taken one by one when there is room for them. If they have a method ``ready``, which says whether
        the next can be had without waiting, texts go on until it says so. An error in a prompt, or in taking it, is
        raised when the texts before it are finished.

        Args:
            prompts: any number of texts.
            batch_size: texts in the making at the same time.
            state: each text goes on from here.
            keywords: as for ``generate``.

        Raises:
            InvalidValueError: a value is out of its range, or memory does not hold the batch.
            UnknownTokenError: a prompt has characters that the model has never seen; it is named by its number.
            StateError: the state is of another model.
        """
        options = self._options(state, keywords)
        if isinstance(prompts, str):  # which would be a prompt for each of its characters
            raise InvalidValueError("prompts is one text", "give a list of texts, or use generate_samples")

        def texts() -> Iterator[TextStream]:
            for index, prompt in enumerate(prompts):
                try:
                    ids = self.tokenizer.encode(prompt, unknown=options.unknown)
                except UnknownTokenError as error:
                    raise UnknownTokenError(f"prompt {index + 1}: {error.message}", error.hint) from error
                before = state.continuation if state else None
                yield TextStream(self.tokenizer, ids, options, stream=index, before=before)

        ready: Callable[[], bool] = getattr(prompts, "ready", lambda: True)
        return self._batch(texts(), batch_size, state, [], options, ready)

    def generate_samples(
        self,
        prompt: str = "",
        samples: int = 8,
        *,
        batch_size: int = 32,
        state: State | None = None,
        **keywords: Unpack[TextKeywords],
    ) -> BatchGeneration:
        """Continue ``prompt`` in ``samples`` ways: it is read once, and its state copied.

        Sample i is what ``generate(prompt, stream=i)`` gives, as in ``generate_batch``.

        Raises:
            InvalidValueError: a value is out of its range, or memory does not hold the batch.
            UnknownTokenError: the prompt has characters that the model has never seen.
            StateError: the state is of another model.
        """
        options = self._options(state, keywords)
        if samples < 1:
            raise InvalidValueError(f"samples is {samples}", "use at least 1")
        ids = self.tokenizer.encode(prompt, unknown=options.unknown)
        before = state.continuation if state else None
        known = ids if before is None or before.pending is None else [before.pending, *ids]
        shared = known[:-1]

        def text(index: int) -> TextStream:
            new = TextStream(self.tokenizer, ids, options, stream=index, before=before)
            new.advance(len(shared))
            return new

        return self._batch(map(text, range(samples)), min(batch_size, samples), state, shared, options)

    def _options(self, state: State | None, keywords: TextKeywords) -> TextOptions:
        if state:
            check_state(state, self.manifest, "the state")
            if state.batch != 1:
                raise InvalidValueError(f"the state has {state.batch} streams, not 1", "take the row of one stream")
            if keywords.get("seed") is None:
                keywords = {**keywords, "seed": state.continuation.seed}
        return TextOptions.of(self.manifest, **keywords)

    def _batch(
        self,
        texts: Iterator[TextStream],
        batch_size: int,
        state: State | None,
        shared: list[int],
        options: TextOptions,
        ready: Callable[[], bool] = lambda: True,
    ) -> BatchGeneration:
        from rnn_edge.batch_generation import BatchGeneration

        return BatchGeneration(
            self.graph, texts, options, batch_size=batch_size, state=state, shared=shared, ready=ready
        )
