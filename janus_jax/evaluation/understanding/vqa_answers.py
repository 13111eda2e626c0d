"""Comparison of short answers as in the official VQA scorer (https://visualqa.org/evaluation.html).

Where the scorer differs from its description, this module follows the scorer, which computed the published scores.
"""

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}}
_ARTICLES = frozenset({"a", "an", "the"})

# Words whose apostrophes are often omitted. "She'd" and "we'll" are excluded, because "shed" and "well" are words.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_APOSTROPHES_RESTORED = {
    word[:index] + word[index + 1 :]: word
    for word in _CONTRACTIONS.split()
    for index, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # The scorer has this error.

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The scorer means to keep decimal points only, but keeps every period before a digit.
_FULL_STOP = re.compile(r"\.(?!\d)")
_MAX_FULL_STOPS = int(re.UNICODE)  # The scorer passes this flag as the number of replacements.


def normalize(answer: str) -> str:
    """Returns an answer in lower case, without articles and punctuation, with digits and with restored apostrophes."""
    return _normalize_words(_remove_punctuation(_join_lines(answer)))


def soft_accuracy(answer: str, annotations: Sequence[str]) -> float:
    """Returns the annotators' agreement with an answer, from 0 to 1 (arXiv 1505.00468, §3).

    The agreement leaves out each annotator in turn, counts the matches among the others, and averages
    min(1, matches / 3). If all annotators gave the same answer, the scorer compares without normalization.
    """
    annotations, answer = [_join_lines(one) for one in annotations], _join_lines(answer)
    if len(set(annotations)) > 1:
        annotations, answer = [normalize(one) for one in annotations], normalize(answer)
    matches = annotations.count(answer)
    return sum(min(1.0, (matches - (one == answer)) / 3) for one in annotations) / len(annotations)


def _join_lines(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _remove_punctuation(answer: str) -> str:
    commas = _COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for sign in _PUNCTUATION:
        # A sign becomes a space. It is removed if it is next to a space anywhere, or if a number contains a comma.
        next_to_space = f"{sign} " in answer or f" {sign}" in answer
        text = text.replace(sign, "" if next_to_space or commas else " ")
    return _FULL_STOP.sub("", text, count=_MAX_FULL_STOPS)


def _normalize_words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_APOSTROPHES_RESTORED.get(word, word) for word in words if word not in _ARTICLES)
