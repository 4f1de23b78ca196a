"""Loads a tokenizer.json and uses it, as a process that is given up where that goes wrong.

Run as a script by `trial.py`; the file comes by standard input. It knows nothing but the tokenizers
library: what it costs to start is what a bundle with an unusual tokenizer waits for.
"""

import sys

LONG = 2_000
"""Characters of one kind in a row, which show a regular expression that takes its time."""
AT_ONCE = 1_000


def texts() -> list[str]:
    """Texts of every kind of character, alone, in long runs and mixed."""
    planes = [
        range(0x20),
        range(0x20, 0x3000, 3),
        range(0x3000, 0xD800, 61),
        range(0xE000, 0x10000, 19),
    ]
    every = [chr(code) for plane in (*planes, range(0x10000, 0x110000, 4_001)) for code in plane]
    runs = [
        one * LONG for one in ("a", "A", "1", " ", "\n", "\t", "!", "_", "é", "漢", "🙂", "\u0301")
    ]
    pairs = [two * LONG for two in ("aA", "a1", "a ", " \n", "a!", "\r\n", "é\u0301", "a漢")]
    return [
        "",
        " ",
        "Hello, world! It's 2,000 naïve cafés; isn't it? \n\n\tdef f(x): return x**2  # 漢字",
        "\U0001f642 \U0001f469\u200d\U0001f469\u200d\U0001f467 \u0e01\u0e33\u0301 \ufeff\u202e",
        *("".join(every[i::7]) for i in range(7)),
        *(" ".join(every[i::11]) for i in range(11)),
        *runs,
        *pairs,
        *(run + "!" for run in runs),
    ]


def main() -> None:
    """Ends with status 0 where all went well, and else says why."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(sys.stdin.buffer.read().decode())
    names = list(tokenizer.get_added_tokens_decoder().values())
    words = [name.content for name in names[:AT_ONCE]]
    for text in (*texts(), "".join(words), " ".join(words)):
        for special in (True, False):
            found = tokenizer.encode(text, add_special_tokens=special)
            assert len(found.offsets) == len(found.ids)
            tokenizer.decode(found.ids)
            tokenizer.decode(found.ids, skip_special_tokens=False)
    tokenizer.encode("a", "b")
    tokenizer.decode([])
    ids = sorted(tokenizer.get_vocab().values())
    for start in range(0, len(ids), AT_ONCE):
        tokenizer.decode(ids[start : start + AT_ONCE], skip_special_tokens=False)
    for token in (*ids[:: max(1, len(ids) // AT_ONCE)], *(ids[-1:])):
        tokenizer.decode([token], skip_special_tokens=False)
    tokenizer.encode_special_tokens = True
    tokenizer.encode(" ".join(words))


def limit(seconds: int, memory: int) -> None:
    """Bounds of this process: of computing, and of bytes of addresses. Not on Windows."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    limit(*map(int, sys.argv[1:]))
    try:
        main()
    except BaseException as error:  # the library's panics are no Exception
        sys.stdout.write(f"{error}")
        sys.stdout.flush()
        sys.exit(1)
