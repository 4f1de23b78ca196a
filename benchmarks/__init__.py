"""Measurements that a person starts, each a command that prints a table or writes a page.

Run them from the repository's root: `python -m benchmarks.speed.backends …`. `import_parity.py`
runs in other projects' environments, as a script.

    comparisons    the paper's comparisons: models trained in a queue on one GPU
    corpus         the text that the shipped checkpoint was trained on
    peers          our bundles beside llama.cpp
    quantization   what recipes cost in quality, beside llama.cpp's and optimum's
    results        the committed figures: data, no code
    results_page   docs/results.md, from those figures
    speed          what a step, a prompt and a token cost
    training       tokens a second of training, on one GPU and on several
"""
