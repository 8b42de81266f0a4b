"""The demo model's tokenizer: byte-level BPE with M2's pre-tokeniser and M2's markers.

Digits never merge, so a number is read digit by digit.  The encoder here is for ASCII text,
which is all that the corpus has; model/tokenizer.c and Hugging Face's tokenizers read the same
tokenizer.json for any text.
"""
import collections
import heapq
import json
import re

PATTERN = ("[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
           "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+"
           "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|"
           "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")
ENDING = "(?:'[sStTmMdD]|'[rR][eE]|'[vV][eE]|'[lL][lL])?"
PIECE = re.compile('[^\\r\\nA-Za-z0-9]?[A-Z]*[a-z]+' + ENDING + '|[^\\r\\nA-Za-z0-9]?[A-Z]+[a-z]*' + ENDING +
                   '|[0-9]{1,3}| ?[^\\sA-Za-z0-9]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+')
ADDED = ''']!p~[ <fim_prefix> <fim_middle> <fim_suffix> <fim_pad> <reponame> <filename> <gh_stars> <issue_start>
<issue_comment> <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output> <empty_output>
<commit_before> <commit_msg> <commit_after> ]~b] [e~[ ]!d~[ <function_call> <code_interpreter> ]<]speech[>[ ]<]image[>[
]<]video[>[ ]<]start%of%speech[>[ ]<]end%of%speech[>[ ]<]start%of%image[>[ ]<]end%of%image[>[ ]<]start%of%video[>[
]<]end%of%video[>[ ]<]vision%pad[>[ ]~!b[ <jupyter_error> <add_file> <delete_file> <rename_file> <edit_file>
<commit_message> <empty_source_file> <repo_struct> <code_context> <file_content> <source_files> <pr_start>
<review_comment> <filepath> <file_sep> <think> </think> <minimax:tool_call> </minimax:tool_call>'''
ADDED = [text.replace('%', ' ') for text in ADDED.split()]
N_SPECIAL = 50  # the last four are added, but not special
MARKS = re.compile('(' + '|'.join(map(re.escape, sorted(ADDED, key=len, reverse=True))) + ')')


def byte_characters():
    """The printable character that stands for each byte in tokenizer.json."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, spare = {b: chr(b) for b in plain}, 256
    for b in range(256):
        if b not in table:
            table[b], spare = chr(spare), spare + 1
    return table


# ----------------------------------------------------------------------------- learning
def count_pieces(texts):
    pieces = collections.Counter()
    for text in texts:
        for part in MARKS.split(text):
            if part and part not in ADDED:
                pieces.update(PIECE.findall(part))
    return {p: n for p, n in pieces.items() if not p.isdigit()}


class Learner:
    """Merges the most frequent pair again and again; counts are kept up to date piece by piece."""

    def __init__(self, pieces):
        self.words = [list(p.encode()) for p in sorted(pieces)]
        self.counts = [pieces[p] for p in sorted(pieces)]
        self.bytes_of = [bytes([b]) for b in range(256)]
        self.known = set(self.bytes_of)
        self.merges = []
        self.pairs, self.where = collections.Counter(), collections.defaultdict(set)
        for i, word in enumerate(self.words):
            for pair in zip(word, word[1:]):
                self.pairs[pair] += self.counts[i]
                self.where[pair].add(i)
        self.heap = [(-n, pair) for pair, n in self.pairs.items()]
        heapq.heapify(self.heap)

    def best(self):
        while self.heap:
            n, pair = heapq.heappop(self.heap)
            if self.pairs[pair] != -n:
                continue  # an old count; the present one is in the heap too
            if self.bytes_of[pair[0]] + self.bytes_of[pair[1]] not in self.known:
                return pair
        return None

    def merge(self, pair):
        new = len(self.bytes_of)
        self.bytes_of.append(self.bytes_of[pair[0]] + self.bytes_of[pair[1]])
        self.known.add(self.bytes_of[new])
        self.merges.append(pair)
        changed = set()
        for i in self.where.pop(pair):
            word, n, out = self.words[i], self.counts[i], []
            for p in zip(word, word[1:]):
                self.pairs[p] -= n
                changed.add(p)
            k = 0
            while k < len(word):
                if k + 1 < len(word) and (word[k], word[k + 1]) == pair:
                    out.append(new)
                    k += 2
                else:
                    out.append(word[k])
                    k += 1
            self.words[i] = out
            for p in zip(out, out[1:]):
                self.pairs[p] += n
                self.where[p].add(i)
                changed.add(p)
        for p in changed:
            if self.pairs[p] > 0:
                heapq.heappush(self.heap, (-self.pairs[p], p))


def learn(texts, vocab_size):
    learner = Learner(count_pieces(texts))
    while len(learner.bytes_of) < vocab_size - len(ADDED):
        pair = learner.best()
        if pair is None:
            break
        learner.merge(pair)
    return learner.bytes_of, learner.merges


def as_json(bytes_of, merges, vocab_size):
    shown = byte_characters()
    text = [''.join(shown[b] for b in token) for token in bytes_of]
    first = vocab_size - len(ADDED)
    vocab = {t: i for i, t in enumerate(text)}
    vocab.update((t, first + i) for i, t in enumerate(ADDED))
    added = [dict(id=first + i, content=t, single_word=False, lstrip=False, rstrip=False, normalized=False,
                  special=i < N_SPECIAL) for i, t in enumerate(ADDED)]
    byte_level = dict(type='ByteLevel', add_prefix_space=False, trim_offsets=True, use_regex=False)
    return dict(
        version='1.0', truncation=None, padding=None, added_tokens=added, normalizer=None,
        pre_tokenizer=dict(type='Sequence', pretokenizers=[
            dict(type='Split', pattern=dict(Regex=PATTERN), behavior='Isolated', invert=False), byte_level]),
        post_processor=None, decoder=byte_level,
        model=dict(type='BPE', dropout=None, unk_token=None, continuing_subword_prefix=None,
                   end_of_word_suffix=None, fuse_unk=False, byte_fallback=False, ignore_merges=False,
                   vocab=vocab, merges=[[text[a], text[b]] for a, b in merges]))


# ----------------------------------------------------------------------------- use
class Tokenizer:
    def __init__(self, path):
        with open(path) as f:
            root = json.load(f)
        vocab = root['model']['vocab']
        self.marks = {t['content']: t['id'] for t in root['added_tokens']}
        self.ranks = {tuple(m): i for i, m in enumerate(root['model']['merges'])}
        self.vocab, self.shown, self.cache = vocab, byte_characters(), {}
        self.size = max(vocab.values()) + 1
        back = {c: b for b, c in self.shown.items()}
        self.bytes_of = {i: bytes(back[c] for c in t) for t, i in vocab.items() if t not in self.marks}
        self.bytes_of.update((i, t.encode()) for t, i in self.marks.items())

    def piece(self, piece):
        parts = [self.shown[b] for b in piece.encode()]
        while len(parts) > 1:
            rank, at = min((self.ranks.get(p, 1 << 30), i) for i, p in enumerate(zip(parts, parts[1:])))
            if rank == 1 << 30:
                break
            parts[at:at + 2] = [parts[at] + parts[at + 1]]
        ids = tuple(self.vocab[p] for p in parts)
        if len(self.cache) < 1000000:
            self.cache[piece] = ids
        return ids

    def encode(self, text):
        ids, cache, marks = [], self.cache, self.marks
        for part in MARKS.split(text):
            if part in marks:
                ids.append(marks[part])
                continue
            for piece in PIECE.findall(part):
                ids.extend(cache.get(piece) or self.piece(piece))
        return ids

    def decode(self, ids):
        return b''.join(self.bytes_of[i] for i in ids).decode(errors='replace')
