"""Training rows: conversations packed into rows of 2,048 tokens by processes of their own.

Chunk k comes from process k % n with a seed of its own, and chunks are used in their order, so
what is trained on does not depend on timing.
"""
import array
import multiprocessing
import queue
import random
import threading

import chat_format
import corpus
import tokenizer

CONTEXT = 2048
OPEN_ROWS = 12


def encode(words, r):
    """ids and weight classes of one conversation."""
    ids, classes = array.array('H'), bytearray()
    for text, kind in corpus.segments(r):
        part = words.encode(text)
        ids.extend(part)
        classes.extend(bytes([kind + 1]) * len(part))
    return ids, classes


def pack(words, r, n_rows):
    """Conversations go into the first open row with room; none is cut.  Class 0 is padding."""
    out_ids, out_classes, open_rows, n_done = [], [], [], 0
    while n_done < n_rows:
        try:
            ids, classes = encode(words, r)
        except (KeyError, IndexError, ValueError) as e:  # must not end a run of minutes
            print(f'feed: left a conversation out: {type(e).__name__} {e}', flush=True)
            continue
        if len(ids) > CONTEXT:
            continue
        row = next((x for x in open_rows if len(x[0]) + len(ids) <= CONTEXT), None)
        if row is None:
            if len(open_rows) == OPEN_ROWS:
                full = max(open_rows, key=lambda x: len(x[0]))
                open_rows.remove(full)
                spare = CONTEXT - len(full[0])
                full[0].extend([0] * spare)
                out_ids.append(full[0].tobytes())
                out_classes.append(bytes(full[1]) + bytes(spare))
                n_done += 1
            row = (array.array('H'), bytearray())
            open_rows.append(row)
        row[0].extend(ids)
        row[1].extend(classes)
    return b''.join(out_ids), b''.join(out_classes)


def produce(out, tokenizer_path, seed, first, step, n_rows):
    words, k = tokenizer.Tokenizer(tokenizer_path), first
    while True:
        out.put(pack(words, random.Random(f'{seed} {k}'), n_rows))
        k += step


class Feed:
    """next() gives (ids, classes) as bytes; stop() ends the processes."""

    def __init__(self, tokenizer_path, seed, n_rows, n_processes):
        context = multiprocessing.get_context('fork')
        self.queues = [context.Queue(4) for _ in range(n_processes)]
        self.processes = [context.Process(target=produce, daemon=True,
                                          args=(q, tokenizer_path, seed, i, n_processes, n_rows))
                          for i, q in enumerate(self.queues)]
        for p in self.processes:
            p.start()
        self.n_given = 0

    def next(self):
        self.n_given += 1
        return self.queues[(self.n_given - 1) % len(self.queues)].get(timeout=120)

    def stop(self):
        for p in self.processes:
            p.terminate()


class Ahead:
    """Runs make() in a thread, a few results ahead."""

    def __init__(self, make, depth=4):
        self.results = queue.Queue(depth)

        def work():
            while True:
                self.results.put(make())
        threading.Thread(target=work, daemon=True).start()

    def next(self):
        return self.results.get(timeout=200)


def self_check(words):
    r = random.Random(0)
    ids, classes = pack(words, r, 4)
    assert len(ids) == 4 * CONTEXT * 2 and len(classes) == 4 * CONTEXT
    begin = words.marks[chat_format.BEGIN]
    assert int.from_bytes(ids[:2], 'little') == begin
