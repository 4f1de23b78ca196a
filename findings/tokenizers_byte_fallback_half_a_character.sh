#!/usr/bin/env bash
# tokenizers 0.23.3, the decoders ByteFallback and Fuse (tokenizers of Llama 2's and Gemma's kind).
#
# One would guess that of a row of byte tokens only what is no character becomes U+FFFD. ByteFallback
# takes a row as a whole: one byte too many at its end, as every streaming decoder sees it in the
# middle of a character, and the whole characters before it become U+FFFD too, one for each byte. Who
# streams text by decoding a window of tokens and taking the known part off loses the characters
# that were shown already; a window has to begin with a whole character and end with one.
#
# Seen 1 December 2026: the bytes of two characters give '日本'; the same without the last byte give
# five U+FFFD, and the ByteLevel decoder gives '日' and one U+FFFD for the same bytes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PY'
from tokenizers import decoders, pre_tokenizers

text = "日本"
raw = text.encode()
fallback = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
tokens = [f"<0x{byte:02X}>" for byte in raw]
level = list(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0])
found = {
    "ByteFallback, whole": fallback.decode(tokens),
    "ByteFallback, cut": fallback.decode(tokens[:-1]),
    "ByteLevel, whole": decoders.ByteLevel().decode(level),
    "ByteLevel, cut": decoders.ByteLevel().decode(level[:-1]),
}
for name, decoded in found.items():
    print(f"{name}: {decoded!r}")
bad = "\N{REPLACEMENT CHARACTER}"
assert found["ByteFallback, whole"] == found["ByteLevel, whole"] == text
assert found["ByteLevel, cut"] == text[0] + bad
assert found["ByteFallback, cut"] == bad * (len(raw) - 1), "a whole character is kept now"
PY
