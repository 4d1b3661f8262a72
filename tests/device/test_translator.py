"""Texts in, translations out: whole, as a stream, in batches; and everything that may be asked for."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import rnn_edge
from rnn_edge import memory
from rnn_edge.bundle import open_bundle
from rnn_edge.errors import BundleError, InvalidValueError, UnknownTokenError
from rnn_edge.language_model import LanguageModel
from rnn_edge.sampling import SamplingOptions
from rnn_edge.translation import Sentence, TranslationEvent, TranslationOptions
from rnn_edge.translator import Translator
from tests.device.tiny import GRU, LSTM, TRANSLATOR, WORDS, copy_bundle

KNOWN = "The keeper sees a boat."
TEXTS = [
    KNOWN,
    "Marta paints the old house near the sea.",
    "My sister sells two red books, he said.",
    "She",
    "Tobias repairs the lighthouse in the morning, near the sea, in the old house.",
    "The keeper sees a boat. Marta sells the lighthouse! She?",
]
DRAWN = SamplingOptions(temperature=1.3)
OPTIONS = {
    "greedy": TranslationOptions(log_probabilities=True),
    "beam": TranslationOptions(beam=3),
    "drawn": TranslationOptions(sampling=DRAWN, seed=5, log_probabilities=True),
    "cut off": TranslationOptions(maximum_ratio=0),
    "unwrapped": TranslationOptions(unwrap=True),
    "replaced": TranslationOptions(replace_unknown=True, coverage_penalty=0.2),
    "prefixed": TranslationOptions(prefix="Le\n\r\ngardien\r", log_probabilities=True),
}
# Sentences, half sentences, and what stands between them; some are far longer than any that was trained on.
TEXT = st.lists(
    st.sampled_from(
        [
            *("The keeper sees a boat.", "Marta", " paints the lighthouse", ", he said", "Xylophone ", "Dr. "),
            *(". ", "! ", "? ", "; "),
            *("\n", "\n\n", "\r\n", "\r", "\u2028", " ", "   ", "\t", "- ", "> ", "1. ", "42", "…", "--"),
            *("日本。", "世界", "é", "e\u0301", "’", "😀", "\x00", "\x1b[31m", "two red books and " * 9),
        ]
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="session", params=["translator", "words"])
def model(request: pytest.FixtureRequest) -> Translator:
    loaded: Translator = request.getfixturevalue(request.param)
    return loaded


def joined(events: Sequence[TranslationEvent]) -> str:
    return "".join(event.text for event in events)


def texts_of(sentences: Sequence[Sentence]) -> list[str]:
    return [sentence.text for sentence in sentences]


# --- whole texts and streams


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@settings(max_examples=15)
@given(text=TEXT)
@example(text="")
@example(text="\n")
@example(text="42\n--\n")
@example(text="- The keeper sees a boat. Marta\n  paints it.\r\n\r\n1. 日本。世界。The boat.")
def test_a_stream_joined_is_the_translation(model: Translator, options: TranslationOptions, text: str) -> None:
    *events, last = model.stream(text, options)
    found = model.translate(text, options)
    assert joined([*events, last]) == found.text
    results = [event.result for event in events if event.result is not None]
    assert texts_of(results) == texts_of(found.sentences)
    assert all(event.finish_reason is None and event.timings is None for event in events)
    finished = all(sentence.candidates[0].finished for sentence in found.sentences)
    assert last.finish_reason == ("stop" if finished else "length")
    assert last.sentence == len(found.sentences)


@given(text=TEXT)
@settings(max_examples=30)
def test_what_stands_between_the_sentences_stays(model: Translator, text: str) -> None:
    found = model.translate(text)
    assert found.layout.join([sentence.source for sentence in found.sentences]) == text
    assert found.layout.join(texts_of(found.sentences)) == found.text
    assert len(found.text.split("\n")) == len(text.split("\n"))


@pytest.mark.parametrize("text", ["", "\n", " \t\n\n", "42", "1.5 – 2.5\n---\n", "…"])
def test_what_has_no_letter_stays_as_it_is(translator: Translator, text: str) -> None:
    assert translator.translate(text).text == text
    (only,) = translator.stream(text)
    assert (only.text, only.finish_reason) == (text, "stop")
    assert only.timings is not None
    assert (only.timings.prompt_tokens, only.timings.generated_tokens) == (0, 0)
    assert 0 <= only.timings.first_token_seconds < 60


def test_events(model: Translator) -> None:
    text = "The keeper sees a boat.  Marta paints the lighthouse."
    events = list(model.stream(text, model.options(log_probabilities=True)))
    first, second = ([event for event in events if event.sentence == number] for number in range(2))
    assert [first[0].text, second[0].text] == ["", "  "]  # what stands before the sentence
    for number, (begin, *tokens, end) in enumerate((first, second)):
        result = end.result
        assert result is not None
        assert begin.source == result.pieces
        best = result.candidates[0]
        assert tuple(event.piece for event in tokens) == best.pieces
        assert best.pieces[-1] == b""  # the end token
        assert (model.source_tokenizer.decode(model.sources([result.source])[0])).strip() == result.source
        for event, row in zip(tokens, best.attention, strict=True):
            assert event.attention is not None
            np.testing.assert_array_equal(event.attention, row)
            assert event.attention.sum() == pytest.approx(1, abs=1e-5)
            assert len(event.attention) == len(result.pieces)
        opinions = [event.log_probability for event in tokens if event.log_probability is not None]
        assert sum(opinions) == pytest.approx(best.log_probability)
        assert best.log_probability < 0
        assert joined([begin, *tokens, end]).strip() == best.text
        assert events.index(begin) == number * len(first)
    timings = events[-1].timings
    assert timings is not None
    assert timings.prompt_tokens == sum(len(ids) for ids in model.sources([KNOWN, "Marta paints the lighthouse."]))
    assert timings.generated_tokens == len(first) + len(second) - 4
    assert 0 < timings.prompt_seconds < 60
    assert 0 < timings.first_token_seconds < timings.prompt_seconds + timings.generation_seconds


def test_greedy_text_is_the_likeliest_token_each_time(model: Translator) -> None:
    start = model.manifest.special_ids.start
    assert start is not None
    for text in TEXTS[:4]:
        stepper = model.graphs.stepper(model.graphs.encode(model.sources([text])))
        ids = [start]
        while ids[-1] != model.end:
            ids.append(int(stepper.step(ids[-1])[0].argmax()))
        assert model.translate(text).text == model.tokenizer.decode(ids[1:]).strip()


def test_it_has_learnt_its_grammar(translator: Translator, words: Translator) -> None:
    """So that the texts of these tests are texts."""
    assert translator.translate(KNOWN).text == words.translate(KNOWN).text == "Le gardien voit un bateau."
    text = "My sister paints the old house.\nMarta sells a boat."
    assert words.translate(text).text == "Ma sœur peint la vieille maison.\nMarta vend un bateau."


def test_a_wrapped_paragraph(model: Translator) -> None:
    wrapped = "The keeper\nsees a boat.\n\nMarta sells\na boat.\n"
    plain = model.translate("The keeper sees a boat.\n\nMarta sells a boat.\n").text
    assert model.translate(wrapped, TranslationOptions(unwrap=True)).text == plain
    assert model.translate(wrapped).text != plain


def test_no_translation_brings_line_breaks(translator: Translator) -> None:
    options = TranslationOptions(prefix="Le\n\r\ngardien\r")
    found = translator.translate("Marta.\nThe keeper.", options)
    for sentence in found.sentences:
        assert b"\n" in sentence.candidates[0].pieces
        assert sentence.text.startswith("Le  gardien")
        assert len(sentence.text.splitlines()) == 1
    assert found.text.count("\n") == 1
    assert "\r" not in found.text


def test_long_sentences_are_translated_in_parts(model: Translator) -> None:
    longest = model.manifest.source.longest if model.manifest.source else 0
    long = "The keeper sees a boat, the old house, two red books and the lighthouse near the sea " * 2
    text = f"Marta sees a boat. {long}. Marta."
    found = model.translate(text)
    assert found.cut == 1
    assert len(found.sentences) > 4
    assert all(len(model.sources([sentence.source])[0]) <= longest + 1 for sentence in found.sentences)
    assert found.layout.join([sentence.source for sentence in found.sentences]) == text
    assert model.stream(text).cut == 1
    assert model.translate(KNOWN).cut == 0
    # As long as the longest of the training data, and still one.
    exact = {32: "My sister repairs two red books in the morning.", 10: "My sister sells two red books near the sea."}
    assert len(model.sources([exact[longest]])[0]) == longest + 1
    assert model.translate(exact[longest]).cut == 0


# --- many at once


@pytest.mark.parametrize("options", [OPTIONS["greedy"], OPTIONS["beam"]], ids=["greedy", "beam"])
def test_a_list_is_each_alone_in_their_order(model: Translator, options: TranslationOptions) -> None:
    together = model.translate([*TEXTS, "", TEXTS[0]], options)
    assert [found.text for found in together] == [
        model.translate(text, options).text for text in [*TEXTS, "", TEXTS[0]]
    ]
    for found, text in zip(together, TEXTS, strict=False):
        alone = model.translate(text, options)
        assert found.layout == alone.layout
        for one, other in zip(found.sentences, alone.sentences, strict=True):
            assert one.candidates[0].score == pytest.approx(other.candidates[0].score, abs=1e-4)
            np.testing.assert_allclose(one.candidates[0].attention, other.candidates[0].attention, atol=1e-4)
    assert model.translate(tuple(TEXTS[:2]), options) is not None
    assert model.translate([], options) == []


@pytest.mark.parametrize("name", ["greedy", "beam", "drawn", "prefixed"])
def test_the_batch_size_changes_nothing(model: Translator, name: str) -> None:
    options = [TranslationOptions(**{**vars(OPTIONS[name]), "batch_size": size}) for size in (1, 2, 5, 32)]
    first, *others = [model.translate_sentences([*TEXTS, *reversed(TEXTS)], item) for item in options]
    for found in others:
        assert texts_of(found) == texts_of(first)
        for one, other in zip(found, first, strict=True):
            assert one.source == other.source
            assert one.candidates[0].log_probability == pytest.approx(other.candidates[0].log_probability, abs=1e-4)
            np.testing.assert_allclose(one.candidates[0].attention, other.candidates[0].attention, atol=1e-4)


@pytest.mark.parametrize("name", ["greedy", "drawn", "prefixed"])
def test_without_log_probabilities_all_else_is_the_same(model: Translator, name: str) -> None:
    with_them = OPTIONS[name]
    without = replace(with_them, log_probabilities=False)
    for one, other in zip(*(model.translate_sentences(TEXTS, item) for item in (with_them, without)), strict=True):
        (found,), (expected,) = other.candidates, one.candidates
        assert (found.text, found.pieces, found.finished) == (expected.text, expected.pieces, expected.finished)
        np.testing.assert_array_equal(found.attention, expected.attention)
        assert np.isnan([found.score, found.log_probability]).all()
        assert np.isfinite([expected.score, expected.log_probability]).all()
    assert {event.log_probability for event in model.stream(TEXTS[0], without)} == {None}


def test_scores_are_the_same_in_batches_of_any_size(model: Translator) -> None:
    pairs = [(text, target) for text in TEXTS for target in ("Le gardien.", "Marta voit une maison près de la mer.")]
    first, *others = [np.array(model.score(pairs, size)) for size in (1, 5, 32)]
    for found in others:
        np.testing.assert_allclose(found, first, atol=1e-4)
    assert model.score([]) == []


@pytest.mark.parametrize("size", [0, -1, 5000])
def test_scores_in_batches_of_no_size(model: Translator, size: int) -> None:
    with pytest.raises(InvalidValueError, match=f"batch-size is {size}"):
        model.score([(KNOWN, "Le gardien.")], size)


def test_texts_in_parts_are_drawn_as_in_one(model: Translator) -> None:
    options = OPTIONS["drawn"]
    whole = [found.text for found in model.translate([KNOWN] * 5, options)]
    assert len(set(whole)) > 1
    parts = [model.translate([KNOWN] * count, options, first) for first, count in ((0, 2), (2, 3))]
    assert [found.text for part in parts for found in part] == whole
    assert [joined(list(model.stream(KNOWN, options, number))) for number in range(5)] == whole


def test_draws_are_a_function_of_the_seed_and_the_sentence_s_number(model: Translator) -> None:
    options = OPTIONS["drawn"]
    first = texts_of(model.translate_sentences([KNOWN] * 4, options))
    assert len(set(first)) > 1
    other = texts_of(model.translate_sentences([TEXTS[4], KNOWN, "She", KNOWN], options))
    assert [other[1], other[3]] == [first[1], first[3]]
    assert joined(list(model.stream(" ".join([KNOWN] * 4), options))) == " ".join(first)
    seeds = [TranslationOptions(sampling=DRAWN, seed=seed) for seed in (5, 6, 2**64 - 1)]
    assert len({model.translate(KNOWN, item).text for item in seeds}) == 3


def test_a_drawn_seed_gives_the_text_again(translator: Translator) -> None:
    stream = translator.stream(TEXTS[5], TranslationOptions(sampling=DRAWN))
    again = TranslationOptions(sampling=DRAWN, seed=stream.seed)
    assert joined(list(stream)) == translator.translate(TEXTS[5], again).text
    # Without a seed each call draws another one, and all sentences of a call share it.
    free = TranslationOptions(sampling=SamplingOptions(temperature=3))
    assert len({translator.translate(KNOWN, free).text for _ in range(4)}) > 1


def test_sampling_is_the_sampler_s(words: Translator) -> None:
    cold = TranslationOptions(sampling=SamplingOptions(temperature=0), seed=1)
    narrow = TranslationOptions(sampling=SamplingOptions(temperature=5, top_k=1), seed=1)
    for text in TEXTS:
        greedy = words.translate(text).text
        assert words.translate(text, cold).text == words.translate(text, narrow).text == greedy


def test_the_repeat_penalty_sees_what_was_drawn(translator: Translator) -> None:
    def tokens(penalty: float) -> list[int]:
        sampling = SamplingOptions(temperature=0, repeat_penalty=penalty)
        stream = translator.stream(KNOWN, TranslationOptions(sampling=sampling, maximum_ratio=0))
        return [event.token for event in stream if event.token is not None]

    assert len(set(tokens(1))) < len(tokens(1)) == 10
    assert len(set(tokens(100))) == len(tokens(100)) == 10  # nothing comes twice


# --- candidates


def test_candidates_are_different_texts_with_falling_scores(model: Translator) -> None:
    options = TranslationOptions(beam=6, n_best=6, length_penalty=0.7)
    for found in model.translate(TEXTS, options):
        for sentence in found.sentences:
            candidates = sentence.candidates
            assert 2 <= len(candidates) <= 6
            assert len({candidate.text for candidate in candidates}) == len(candidates)
            # What was cut off comes last, whatever its score.
            for better, worse in pairwise(candidates):
                assert better.finished >= worse.finished
                assert better.score >= worse.score or better.finished > worse.finished
            for candidate in candidates:
                assert candidate.attention.shape == (len(candidate.pieces), len(sentence.pieces))
                length = ((5 + len(candidate.pieces)) / 6) ** 0.7
                assert candidate.score == pytest.approx(candidate.log_probability / length, abs=1e-5)
                assert b"".join(candidate.pieces).decode(errors="replace").strip() == candidate.text.strip()
            assert sentence.text == candidates[0].text
    # The best of many is the only one of one.
    for text in TEXTS:
        many = model.translate(text, options)
        assert many.text == model.translate(text, TranslationOptions(beam=6, length_penalty=0.7)).text
        few = model.translate(text, TranslationOptions(beam=6, n_best=2, length_penalty=0.7))
        for one, other in zip(few.sentences, many.sentences, strict=True):
            assert [item.text for item in one.candidates] == [item.text for item in other.candidates[:2]]


def test_a_beam_is_no_worse_than_greedy(model: Translator) -> None:
    for text in TEXTS:
        options = TranslationOptions(beam=5, length_penalty=0)
        for one, other in zip(
            model.translate(text, options).sentences,
            model.translate(text, TranslationOptions(length_penalty=0, log_probabilities=True)).sentences,
            strict=True,
        ):
            assert one.candidates[0].score >= other.candidates[0].score - 1e-4


def test_score_is_the_log_probability_of_what_was_found(model: Translator) -> None:
    found = model.translate_sentences(TEXTS[:3], TranslationOptions(beam=4, n_best=4))
    pairs, expected = [], []
    for sentence in found:
        for candidate in sentence.candidates:
            ids = [*model.tokenizer.encode(candidate.text), model.end]
            if tuple(model.tokenizer.token_bytes[token] for token in ids) == candidate.pieces:  # no other spelling
                pairs.append((sentence.source, candidate.text))
                expected.append((candidate.log_probability, len(ids)))
    assert {source for source, _ in pairs} == set(TEXTS[:3])
    for batch_size in (1, 3, 32):
        scores = model.score(pairs, batch_size)
        assert [count for _, count in scores] == [count for _, count in expected]
        assert [value for value, _ in scores] == pytest.approx([value for value, _ in expected], abs=1e-3)
    assert model.score([]) == []


def test_score_of_any_pair_is_the_sum_over_its_tokens(translator: Translator) -> None:
    target = "Zut !"
    ids = [*translator.tokenizer.encode(target), translator.end]
    stepper = translator.graphs.stepper(translator.graphs.encode(translator.sources(["Hello"])))
    total = 0.0
    for token, following in zip([0, *ids], ids, strict=False):
        logits = stepper.step(token)[0].astype(np.float64)
        total += float(logits[following] - np.log(np.exp(logits).sum()))
    ((value, count),) = translator.score([("Hello", target)])
    assert value == pytest.approx(total, rel=1e-5)
    assert count == len(ids)
    ((_, empty),) = translator.score([("Hello", "")])
    assert empty == 1  # the end token alone


def test_texts_that_are_spelt_in_two_ways_count_once(words: Translator) -> None:
    """Of 64 hypotheses two are one text, of which the better one stays; others fill its place."""
    options = TranslationOptions(beam=64, n_best=60)
    candidates = words.translate("Tobias sells a boat.", options).sentences[0].candidates
    assert len({candidate.text for candidate in candidates}) == len(candidates) == 60
    every = TranslationOptions(beam=64, n_best=64)
    assert len(words.translate("Tobias sells a boat.", every).sentences[0].candidates) == 63


@pytest.mark.parametrize("beam", [1, 3])
def test_a_prefix_starts_each_sentence(model: Translator, beam: int) -> None:
    options = TranslationOptions(beam=beam, prefix="Marta répare", maximum_ratio=0)
    found = model.translate("The keeper sees a boat. She sells it.", options)
    prefix = len(model.tokenizer.encode("Marta répare"))
    for sentence in found.sentences:
        best = sentence.candidates[0]
        assert best.text.startswith("Marta répare ")
        assert best.finished or len(best.pieces) == 10 + prefix  # its tokens are given on top
    free, forced = (
        model.translate(KNOWN, TranslationOptions(prefix=text, log_probabilities=True)).sentences[0].candidates[0]
        for text in ("", "Marta")
    )
    assert forced.log_probability < free.log_probability  # by the model that was not asked


def test_the_maximum_ratio_bounds_the_length(translator: Translator) -> None:
    source = translator.sources([KNOWN])[0]
    for ratio in (0.0, 0.3):
        best = translator.translate(KNOWN, TranslationOptions(maximum_ratio=ratio)).sentences[0].candidates[0]
        assert len(best.pieces) == int(ratio * len(source)) + 10
        assert not best.finished
    assert translator.translate(KNOWN).sentences[0].candidates[0].finished


# --- unknown words


def test_unknown_words(words: Translator) -> None:
    sentence = "Tobias’ paints Zoë in\u00a0the morning!"
    plain = words.translate(sentence).sentences[0]
    replaced = words.translate(sentence, TranslationOptions(replace_unknown=True)).sentences[0]
    # The source's pieces are what stands in the text, known or not.
    pieces = [" Tobias", "’", " paints", " Zoë", " in", " the", " morning", "!", ""]
    assert plain.pieces == replaced.pieces == tuple(piece.encode() for piece in pieces)
    best, other = plain.candidates[0], replaced.candidates[0]
    assert "<unk>" in best.text
    assert "<unk>" not in other.text
    assert len(best.pieces) == len(other.pieces)
    for piece, instead, row in zip(best.pieces, other.pieces, other.attention, strict=True):
        if piece == b" <unk>":
            assert instead == plain.pieces[int(row[:-1].argmax())]  # never the end token
        else:
            assert instead == piece
    assert replaced.pieces[int(other.attention[0, :-1].argmax())].decode().strip() == other.text.split()[0]


def test_an_unknown_word_never_stands_for_the_end(words: Translator) -> None:
    options, source = TranslationOptions(replace_unknown=True), (b" a", b" b", b"")
    weights = np.array([0.1, 0.2, 0.7], np.float32)
    assert words.piece(0, weights, source, options) == b" b"
    assert words.piece(0, weights, source, TranslationOptions()) == b" <unk>"
    assert words.piece(0, weights[:1], (b"",), options) == b" <unk>"  # there is no word to take
    assert words.piece(5, weights, source, options) == words.tokenizer.token_bytes[5]


def test_a_subword_vocabulary_lacks_nothing(translator: Translator) -> None:
    text = "Żółw 日本 😀 <unk> </s>"
    assert translator.tokenizer.decode(translator.tokenizer.encode(text)).strip() == text
    options = TranslationOptions(replace_unknown=True)
    assert translator.translate(text, options).text == translator.translate(text).text


def test_surrogates_are_no_text(model: Translator) -> None:
    for text, options in (("ab\udcff", TranslationOptions()), ("ab", TranslationOptions(prefix="\udcff"))):
        with pytest.raises(UnknownTokenError, match=r"the text has '\\udcff', which is no character") as caught:
            model.translate(text, options)
        assert "UTF-8" in caught.value.hint


# --- ends


@pytest.mark.parametrize("after", [0, 1, 2, 5, 9])
def test_cancel(model: Translator, after: int) -> None:
    text = f"  {TEXTS[5]}"
    whole = model.translate(text).text
    stream = model.stream(text)
    begun = [next(stream) for _ in range(after)]
    stream.cancel()
    rest = list(stream)
    assert rest[-1].finish_reason == "interrupt"
    assert rest[-1].timings is not None
    assert sum(event.token is not None for event in rest) <= 1  # the token in the making
    assert whole.startswith(joined([*begun, *rest]))
    assert len(joined([*begun, *rest])) < len(whole)
    assert list(stream) == []


def test_cancel_a_beam(translator: Translator) -> None:
    stream = translator.stream(TEXTS[5], TranslationOptions(beam=3))
    next(stream)
    stream.cancel()
    rest = list(stream)
    assert rest[-1].finish_reason == "interrupt"
    assert joined(rest) == translator.translate(KNOWN, TranslationOptions(beam=3)).text


# --- options


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beam": 0}, "beam is 0"),
        ({"beam": 65}, "beam is 65"),
        ({"n_best": 0}, "n-best is 0"),
        ({"n_best": 2}, "n-best is 2, more than the beam of 1"),
        ({"beam": 4, "n_best": 5}, "n-best is 5, more than the beam of 4"),
        ({"length_penalty": -0.1}, "length-penalty is -0.1"),
        ({"length_penalty": 10.1}, "length-penalty is 10.1"),
        ({"length_penalty": math.nan}, "length-penalty is nan"),
        ({"coverage_penalty": -1.0}, "coverage-penalty is -1.0"),
        ({"coverage_penalty": math.nan}, "coverage-penalty is nan"),
        ({"maximum_ratio": math.nan}, "max-ratio is nan"),
        ({"maximum_ratio": math.inf}, "max-ratio is inf"),
        ({"maximum_ratio": -0.5}, "max-ratio is -0.5"),
        ({"batch_size": 0}, "batch-size is 0"),
        ({"batch_size": 4097}, "batch-size is 4097"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, f"seed is {2**64}"),
        ({"beam": 2, "sampling": SamplingOptions()}, "sampling and a beam exclude each other"),
    ],
    ids=str,
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        TranslationOptions(**values)
    assert caught.value.message == message
    assert caught.value.hint


def test_values_at_the_edge_of_their_range() -> None:
    TranslationOptions(beam=64, n_best=64, length_penalty=0, coverage_penalty=10, maximum_ratio=100, batch_size=4096)
    TranslationOptions(beam=1, length_penalty=10, maximum_ratio=0, seed=2**64 - 1, batch_size=1)


def test_the_hint_names_a_beam_that_is_wide_enough() -> None:
    for n_best, beam in ((5, 5), (100, 64)):
        with pytest.raises(InvalidValueError) as caught:
            TranslationOptions(beam=4, n_best=n_best)
        assert f"--beam {beam}" in caught.value.hint


def test_the_bundle_s_own_options_are_the_default(tmp_path: Path) -> None:
    def prefer(manifest: dict[str, Any]) -> None:
        manifest["decoding"] = {"beam": 4, "length_penalty": 0.3}

    model = Translator.load(copy_bundle(TRANSLATOR, tmp_path / "b", prefer))
    expected = TranslationOptions(beam=4, length_penalty=0.3)
    assert model.defaults == expected
    assert model.options(beam=None, n_best=None) == expected
    assert model.options(beam=2) == TranslationOptions(beam=2, length_penalty=0.3)
    found, given = model.translate(KNOWN), model.translate(KNOWN, expected)
    assert found.sentences[0].candidates[0].score == given.sentences[0].candidates[0].score
    assert sum(event.token is not None for event in model.stream(KNOWN)) == 0  # a beam's sentence comes whole
    with pytest.raises(InvalidValueError, match="n-best is 5, more than the beam of 4"):
        model.options(n_best=5)


# --- loading


def test_each_task_has_its_kind() -> None:
    assert isinstance(rnn_edge.load(str(TRANSLATOR), device="cpu"), rnn_edge.Translator)
    assert isinstance(rnn_edge.load(str(LSTM), device="cpu"), rnn_edge.LanguageModel)
    with pytest.raises(BundleError) as caught:
        LanguageModel.load(TRANSLATOR)
    assert caught.value.message == f"{TRANSLATOR} is a translator, not a language model"
    assert caught.value.hint == f"use rnn-edge translate {TRANSLATOR}"
    with pytest.raises(BundleError) as caught:
        Translator.load(GRU)
    assert caught.value.message == f"{GRU} is a language model, not a translator"
    assert caught.value.hint == f"use rnn-edge generate {GRU}"


def test_load_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_EDGE_MODELS", str(TRANSLATOR.parent))
    model = Translator.load("translator-word", device="auto", threads=1)
    assert model.bundle.path == WORDS
    assert model.manifest == open_bundle(WORDS).manifest
    assert model.source_tokenizer.vocabulary_size == 30
    assert model.tokenizer.vocabulary_size == 32
    shared = Translator.load(TRANSLATOR)
    assert shared.source_tokenizer is shared.tokenizer


def test_a_tokenizer_of_another_size(tmp_path: Path) -> None:
    def lie(manifest: dict[str, Any]) -> None:
        manifest["source"]["tokenizer"]["vocabulary_size"] = 31

    with pytest.raises(BundleError, match="the tokenizer has 30 tokens, the manifest says 31"):
        Translator.load(copy_bundle(WORDS, tmp_path / "b", lie))


def test_a_batch_that_memory_does_not_hold(model: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in sentences, each with a row for each of its beams; a file of fewer needs no more than it has."""
    source = len(model.sources([KNOWN])[0])
    one = memory.stream_bytes(model.graphs.manifest, source)
    monkeypatch.setattr(memory, "available_memory", lambda: 12 * one + 1)
    model.translate([KNOWN] * 100, TranslationOptions(batch_size=12))
    model.translate([KNOWN] * 12, TranslationOptions(batch_size=4096))
    model.translate([KNOWN] * 100, TranslationOptions(batch_size=4, beam=3))
    with pytest.raises(InvalidValueError, match=r"a batch of 13 with .* needs \d+ MB, and \d+ MB are free"):
        model.translate([KNOWN] * 13, TranslationOptions(batch_size=32))
    with pytest.raises(InvalidValueError, match="a batch of 32") as caught:
        model.translate([KNOWN] * 100, TranslationOptions(beam=3))
    assert caught.value.hint == "use at most 4"
