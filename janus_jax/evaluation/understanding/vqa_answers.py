"""VQA's own way to compare short answers, as https://visualqa.org/evaluation.html defines it and its scorer does it.

Where the scorer differs from its description, the scorer is followed: published figures are its.
"""

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}}
_ARTICLES = frozenset({"a", "an", "the"})

# Apostrophes that people leave out, one at a time. "Shed" or "well" are words of their own, and are not among them.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_SPELLED_OUT = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # The scorer's own slip.

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# Meant to spare decimal points, this spares every full stop that a digit follows.
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = int(re.UNICODE)  # The scorer gives the flag where the number of replacements goes.


def normalised(answer: str) -> str:
    """An answer in lower case, without articles and punctuation, its numbers in digits and its apostrophes in place."""
    return _words(_without_punctuation(_one_line(answer)))


def soft_accuracy(answer: str, people: Sequence[str]) -> float:
    """How far people agree with an answer, 0..1: three who say the same make it right (arXiv 1505.00468, §3).

    The mean over all choices of leaving one person out. Where all people say the same, the scorer compares answers as
    they stand.
    """
    people, answer = [_one_line(said) for said in people], _one_line(answer)
    if len(set(people)) > 1:
        people, answer = [normalised(said) for said in people], normalised(answer)
    agreeing = people.count(answer)
    # Left out is one who agrees, or one who does not.
    left_out = [agreeing - (said == answer) for said in people]
    return sum(min(1.0, others / 3) for others in left_out) / len(people)


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(answer: str) -> str:
    commas = _COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for sign in _PUNCTUATION:
        # Between two words it parts them; beside a space it only goes.
        beside_space = f"{sign} " in answer or f" {sign}" in answer
        text = text.replace(sign, "" if beside_space or commas else " ")
    return _FULL_STOP.sub("", text, count=_MOST_FULL_STOPS)


def _words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_SPELLED_OUT.get(word, word) for word in words if word not in _ARTICLES)
