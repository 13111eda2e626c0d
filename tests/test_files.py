import json

import pytest

from janus_jax.errors import JanusError
from janus_jax.files import read_json, read_lines, read_text

MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"  # The byte order mark.


def test_byte_order_mark_is_removed(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(MARK + json.dumps({"a": 1}), encoding="utf-8")
    assert read_json(file) == {"a": 1}
    assert read_text(file) == '{"a": 1}'


def test_only_line_feeds_end_lines(tmp_path):
    file = tmp_path / "prompts.txt"
    lines = [f"a{separator}b" for separator in "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r"]
    file.write_bytes(f"{MARK}the start\n\n {lines[0]} \r\n".encode() + "\n".join(lines[1:]).encode())
    assert read_lines(file) == ["the start", *lines]


def test_text_in_another_encoding_is_reported(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("the sea", encoding="utf-16")
    message = r"prompts.txt is not UTF-8 text \(byte 0 is 0xff\); save it as UTF-8, or fetch it again"
    with pytest.raises(JanusError, match=message):
        read_lines(file)
