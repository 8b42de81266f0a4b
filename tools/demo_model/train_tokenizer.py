#!/usr/bin/env python3
"""Learns the demo model's tokenizer from the corpus.

  train_tokenizer.py --out models/demo/tokenizer.json
"""
import argparse
import json
import random

import corpus
import tokenizer


def texts(n, seed):
    r = random.Random(seed)
    for _ in range(n):
        yield ''.join(text for text, _ in corpus.segments(r))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', required=True, metavar='FILE')
    parser.add_argument('--vocab', type=int, default=4096, help='ids, markers included (default 4096)')
    parser.add_argument('--conversations', type=int, default=20000, help='to learn from (default 20000)')
    parser.add_argument('--seed', type=int, default=1, help='(default 1)')
    options = parser.parse_args()
    bytes_of, merges = tokenizer.learn(texts(options.conversations, options.seed), options.vocab)
    with open(options.out, 'w') as f:
        json.dump(tokenizer.as_json(bytes_of, merges, options.vocab), f, ensure_ascii=False, indent=0,
                  separators=(',', ':'))
        f.write('\n')
    sample = list(texts(300, options.seed + 1))
    used = tokenizer.Tokenizer(options.out)
    n_ids = sum(len(used.encode(t)) for t in sample)
    assert all(used.decode(used.encode(t)) == t for t in sample)
    print(f'{len(bytes_of)} tokens and {len(tokenizer.ADDED)} markers; '
          f'{sum(map(len, sample)) / n_ids:.2f} characters for each id')


if __name__ == '__main__':
    main()
