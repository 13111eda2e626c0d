"""Special tokens, encoding, decoding in pieces, and training of tokenizers."""

import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.processing import StreamDecoder, Tokenizer, make_byte_level_tokenizer
from janus_jax.processing.tokenizer import (
    BEGIN_OF_GENERATION,
    BEGIN_OF_IMAGE,
    BEGIN_OF_SENTENCE,
    END_OF_SENTENCE,
    IMAGE_PLACEHOLDER,
    PAD,
)

TEXTS = [
    "",
    "Hello!",
    "  two  spaces \n\n",
    "晚上好 🙂 naïve",
    "\x00\x7f",
    "a\u0301\u200d\ufffd\U0001f468\u200d\U0001f469",
]


# A tokenizer that fails at the first character outside its vocabulary.
UNIGRAM_WITHOUT_UNKNOWN = b'{"version": "1.0", "model": {"type": "Unigram", "unk_id": null, "vocab": [["a", 0.0]]}}'


def without_token(name):
    def change(values):
        values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] != name]
        vocabulary = values["model"]["vocab"]
        # Later ids move down by one, so that the ids have no gap.
        removed = vocabulary.pop(name)
        values["model"]["vocab"] = {token: i - (i > removed) for token, i in vocabulary.items()}
        for token in values["added_tokens"]:
            token["id"] -= token["id"] > removed
        values["post_processor"] = None

    return change


def test_bos_comes_first_and_only_once(tokenizer):
    ids = tokenizer.encode("Hello")
    assert ids[0] == tokenizer.special.bos
    assert tokenizer.special.bos not in ids[1:]
    assert tokenizer.encode("Hello", add_bos=False) == ids[1:]


def test_bos_does_not_depend_on_the_post_processor(tokenizer, edited):
    plain = Tokenizer.from_directory(edited("tokenizer.json", lambda values: values.update(post_processor=None)))
    assert plain.encode("Hello") == tokenizer.encode("Hello")


def test_names_of_special_tokens_in_text_are_special_tokens(tokenizer):
    special = tokenizer.special
    ids = tokenizer.encode(f"a{IMAGE_PLACEHOLDER}{BEGIN_OF_SENTENCE}{END_OF_SENTENCE}", add_bos=False)
    assert ids[1:] == [special.image_placeholder, special.bos, special.eos]


def test_decoding_skips_special_tokens_by_default(tokenizer):
    ids = tokenizer.encode(f"Hi{END_OF_SENTENCE}")
    assert tokenizer.decode(ids) == "Hi"
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"{BEGIN_OF_SENTENCE}Hi{END_OF_SENTENCE}"


def test_decoding_skips_tokens_that_the_file_does_not_mark_as_special(edited):
    def change(values):
        for token in values["added_tokens"]:
            token["special"] = False

    tokenizer = Tokenizer.from_directory(edited("tokenizer.json", change))
    assert tokenizer.decode(tokenizer.encode(f"Hi{IMAGE_PLACEHOLDER}{END_OF_SENTENCE}")) == "Hi"


def test_unknown_ids_are_skipped(tokenizer):
    assert tokenizer.decode([*tokenizer.encode("Hi"), len(tokenizer) + 5]) == "Hi"


def test_truncation_and_padding_settings_are_ignored(tokenizer, edited):
    def change(values):
        values["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
        values["padding"] = {
            "strategy": {"Fixed": 9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": PAD,
        }

    limited = Tokenizer.from_directory(edited("tokenizer.json", change))
    for text in ("a", "a red square above a blue circle"):
        assert limited.encode(text) == tokenizer.encode(text)


def test_missing_pad_token_gets_the_next_id(tokenizer, edited):
    tokenizer_without = Tokenizer.from_directory(edited("tokenizer.json", without_token(PAD)))
    assert tokenizer_without.added == (PAD,)
    assert tokenizer_without.special.pad == len(tokenizer) - 1
    assert tokenizer_without.encode(PAD, add_bos=False) == [len(tokenizer) - 1]
    tokenizer_without.check_vocabulary(len(tokenizer))


def test_added_token_beyond_the_vocabulary_is_reported(tokenizer, edited):
    tokenizer_without = Tokenizer.from_directory(edited("tokenizer.json", without_token(BEGIN_OF_IMAGE)))
    with pytest.raises(JanusError, match=f"lacks the special token {BEGIN_OF_IMAGE}.*id {len(tokenizer) - 1}"):
        tokenizer_without.check_vocabulary(len(tokenizer) - 1)


def test_tokenizer_larger_than_the_model_is_reported(tokenizer):
    with pytest.raises(JanusError, match="beyond the model's vocabulary of 300"):
        tokenizer.check_vocabulary(300)


def test_begin_of_generation_is_optional(tokenizer, edited):
    def change(values):
        token = dict(values["added_tokens"][0], content=BEGIN_OF_GENERATION, id=len(tokenizer))
        values["added_tokens"].append(token)

    assert tokenizer.special.begin_of_generation is None
    flow = Tokenizer.from_directory(edited("tokenizer.json", change))
    assert flow.special.begin_of_generation == len(tokenizer)


def test_missing_file_is_reported_by_name(tmp_path):
    with pytest.raises(JanusError, match=r"tokenizer\.json is missing; copy it"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"model": ', b"\xff\xfe", UNIGRAM_WITHOUT_UNKNOWN])
def test_corrupt_file_is_reported_by_name(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(JanusError, match=r"tokenizer\.json .*copy it from the released checkpoint again"):
        Tokenizer.from_directory(tmp_path)


def test_half_a_surrogate_pair_is_reported(tokenizer):
    with pytest.raises(JanusError, match="not valid Unicode"):
        tokenizer.encode("a\ud800b")


def test_spans_cover_the_text(tokenizer):
    text = "🙂 red square"
    ids, spans = tokenizer.encode_with_spans(text)
    assert spans[0] == (0, 0)
    assert len(ids) == len(spans)
    covered = {index for start, end in spans for index in range(start, end)}
    assert covered == set(range(len(text)))


@pytest.mark.parametrize("text", TEXTS)
def test_streaming_gives_whole_characters(tokenizer, text):
    decoder = StreamDecoder(tokenizer)
    decoded = ""
    for token_id in tokenizer.encode(text):
        decoded += decoder.push(token_id)
        assert text.startswith(decoded)
    assert decoded + decoder.finish() == text


def test_streaming_arbitrary_ids_equals_decoding(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(len(tokenizer), size=12).tolist()
        decoder = StreamDecoder(tokenizer)
        pieces = [decoder.push(token_id) for token_id in ids]
        assert "".join(pieces) + decoder.finish() == tokenizer.decode(ids)
        assert not any(piece.endswith("\ufffd") for piece in pieces)


def test_training_is_deterministic(tmp_path):
    for name in ("a", "b"):
        make_byte_level_tokenizer(tmp_path / name, ["some text " * 9], 300, "janus")
    first, second = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("a", "b"))
    assert first == second


def test_role_strings_of_janus_pro_are_tokens(tmp_path):
    pro = make_byte_level_tokenizer(tmp_path, [], 300, "janus_pro")
    assert len(pro.encode("<|User|><|Assistant|>", add_bos=False)) == 2


def test_vocabulary_too_small_for_bytes_is_reported(tmp_path):
    with pytest.raises(JanusError, match="at least 264"):
        make_byte_level_tokenizer(tmp_path, [], 263, "janus_pro")


@pytest.mark.parametrize("text", TEXTS)
def test_transformers_reads_a_trained_tokenizer(released, tokenizer, text):
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(str(released))
    assert reference(text).input_ids == tokenizer.encode(text)
    special = tokenizer.special
    ids = reference.bos_token_id, reference.eos_token_id, reference.pad_token_id
    assert ids == (special.bos, special.eos, special.pad)
