"""Following moves, handling lists, copying, and JSON from a description."""
import json

import world as w


# ----------------------------------------------------------------------------- following moves
PUT = ['{p} puts {o} in the {h}.', '{p} leaves {o} in the {h}.', '{p} brings {o} to the {h}.',
       '{p} hides {o} in the {h}.', '{p} moves {o} to the {h}.']
GO = ['{p} goes to the {h}.', '{p} walks to the {h}.', '{p} runs to the {h}.', '{p} is in the {h}.',
      '{p} moves to the {h}.']


def tracking(r, held=False):
    """People and things move about; where is one of them now?"""
    people = w.people(r, r.randint(1, 4), held)
    things = ['the ' + o for o in r.sample(w.OBJECTS, r.randint(1, 4))]
    rooms, holders = r.sample(w.ROOMS, r.randint(2, 5)), r.sample(w.HOLDERS, r.randint(0, 4))
    moves, trail = [], {}
    for _ in range(r.choice((2, 3, 4, 6, 8, 12))):
        who, place = r.choice(people), r.choice(rooms)
        if r.random() < 0.6:
            what, place = r.choice(things), r.choice(rooms + holders)
            text = w.pick(r, PUT).format(p=who, o=what, h=place)
        else:
            what = who
            text = w.pick(r, GO).format(p=who, h=place)
        if trail.get(what, [None])[-1] == place:
            continue
        trail.setdefault(what, []).append(place)
        moves.append(text)
    asked = r.choice(list(trail))
    seen = ', then '.join('the ' + p for p in trail[asked])
    question = w.pick(r, [f'Where is {asked} now?', f'Where is {asked}?', f'In which place is {asked} now?',
                          f'Where can I find {asked} now?'])
    big = asked[0].upper() + asked[1:]
    return [(r.choice((' ', '\n')).join(moves) + r.choice((' ', '\n', '\n\n')) + question,
             f'I follow {asked}: {seen}.', f'{big} is in the {trail[asked][-1]}.')]


# ----------------------------------------------------------------------------- lists
WORDS = sorted(set(w.OBJECTS + w.ANIMALS + w.COLOURS + w.FOODS + w.JOBS + w.ROOMS))
ORDINALS = 'first second third fourth fifth sixth seventh eighth'.split()


def some_words(r, held, least, most):
    n = r.randint(least, most)
    if r.random() < 0.7:
        return r.sample(WORDS, n)
    return w.people(r, n, held) if r.random() < 0.6 else w.distinct(n, lambda: w.invented(r, 1, 2))


def listed(words):
    return ', '.join(words)


def sort_numbers(r, held):
    numbers = r.sample(range(0, 100), r.randint(2, 7))
    down = r.random() < 0.3
    order = ' from large to small' if down else r.choice(('', ' from small to large'))
    question = w.pick(r, ['Sort these numbers{o}: {l}', 'Put these numbers in order{o}: {l}', 'Sort{o}: {l}',
                          'Please sort these numbers{o}: {l}']).format(o=order, l=listed(map(str, numbers)))
    result = sorted(numbers, reverse=down)
    word = 'largest' if down else 'smallest'
    return question, f'I take the {word} number again and again.', listed(map(str, result))


def sort_words(r, held):
    words = r.sample(WORDS, r.randint(2, 6))
    question = w.pick(r, ['Sort these words: {l}', 'Sort these words from A to Z: {l}',
                          'Put these words in alphabetical order: {l}', 'Sort alphabetically: {l}',
                          'Sort these words in alphabetical order: {l}']).format(l=listed(words))
    return question, 'I take the words from A to Z.', listed(sorted(words))


def reverse(r, held):
    words = some_words(r, held, 2, 7)
    question = w.pick(r, ['Reverse this list: {l}', 'Write this list backwards: {l}', 'Turn this list around: {l}',
                          'Write this list in reverse: {l}']).format(l=listed(words))
    return question, 'I start with the last word and go to the first.', listed(words[::-1])


def copy(r, held):
    words = some_words(r, held, 1, 12)
    text = r.choice((listed, ' '.join))(words)
    question = w.pick(r, ['Repeat: {l}', 'Say: {l}', 'Repeat after me: {l}', 'Copy this: {l}', 'Write: {l}',
                          'Please repeat: {l}']).format(l=text)
    return question, 'I copy the text.', text


def position(r, held):
    words = some_words(r, held, 2, 8)
    i = r.randrange(len(words))
    name, steps = (ORDINALS[i], words[:i + 1])
    if i == len(words) - 1 and r.random() < 0.7:
        name = 'last'
    question = w.pick(r, ['What is the {n} word in this list? {l}', 'Which word is the {n} one? {l}',
                          'List: {l}\nWhat is the {n} word?', '{l}\nTell me the {n} word.',
                          'List: {l}\nTell me the {n} word.']).format(n=name, l=listed(words))
    shown = ', '.join(f'{k + 1} {word}' for k, word in enumerate(steps))
    return question, f'I count: {shown}.', f'The {name} word is {words[i]}.'


def length(r, held):
    words = some_words(r, held, 1, 9)
    question = w.pick(r, ['How many words are in this list? {l}', 'Count the words: {l}', 'How long is this list? {l}',
                          'Count the words in this list: {l}']).format(l=listed(words))
    shown = ', '.join(f'{k + 1} {word}' for k, word in enumerate(words))
    return question, f'I count: {shown}.', f'The number is {len(words)}.'


def member(r, held):
    words = some_words(r, held, 2, 9)
    yes = r.random() < 0.5
    word = r.choice(words) if yes else r.choice([x for x in WORDS if x not in words])
    question = w.pick(r, ['Is {w} in this list? {l}', 'List: {l}\nIs {w} in the list?', 'Does this list have {w}? {l}',
                          'List: {l}\nDoes the list have {w}?']).format(w=word, l=listed(words))
    if yes:
        return question, f'I look for {word} in the list. It is there.', f'Yes, {word} is in the list.'
    return question, f'I look for {word} in the list. It is not there.', f'No, {word} is not in the list.'


LISTS = {'sort': sort_numbers, 'alphabet': sort_words, 'reverse': reverse, 'copy': copy, 'position': position,
         'length': length, 'member': member}


def list_conversation(r, held=False):
    n = 1 if held else r.choice((1, 1, 2, 3))
    names = list(LISTS) + ['copy', 'copy']
    return [LISTS[r.choice(names)](r, held) for _ in range(n)]


# ----------------------------------------------------------------------------- JSON
FIELDS = {
    'age': lambda r: r.randint(5, 95), 'job': lambda r: r.choice(w.JOBS), 'food': lambda r: r.choice(w.FOODS),
    'language': lambda r: r.choice(w.LANGUAGES), 'colour': lambda r: r.choice(w.COLOURS),
    'month': lambda r: r.choice(w.MONTHS), 'instrument': lambda r: r.choice(w.INSTRUMENTS)}
FIELD_TEXT = {
    'city': ['{s} lives in {v}.', '{s} has a house in {v}.', 'You can find {s} in {v}.'],
    'age': ['{s} is {v} years old.', 'The age of {s} is {v}.', '{s} is {v}.'],
    'job': ['{s} works as a {v}.', '{s} has the job of a {v}.', 'The job of {s} is {v}.'],
    'food': ['{s} likes {v}.', '{s} loves to eat {v}.', 'The favourite food of {s} is {v}.'],
    'language': ['{s} speaks {v}.', 'The language of {s} is {v}.', '{s} speaks {v} at home.'],
    'colour': ['{s} likes the colour {v}.', 'The favourite colour of {s} is {v}.', '{s} always wears {v}.'],
    'month': ['{s} was born in {v}.', 'The birthday of {s} is in {v}.', '{s} has a birthday in {v}.'],
    'instrument': ['{s} plays the {v}.', '{s} practises the {v}.', 'The instrument of {s} is the {v}.']}


def to_json(r, held=False):
    name = w.people(r, 1, held)[0]
    keys = r.sample(list(FIELD_TEXT), r.randint(1, 5))
    value = {k: w.cities(r, 1, held)[0] if k == 'city' else FIELDS[k](r) for k in keys}
    text = [w.pick(r, FIELD_TEXT[k]).format(s=name, v=value[k]) for k in keys]
    wanted = keys if r.random() < 0.6 else r.sample(keys, r.randint(1, len(keys)))
    listing = w.join_names(['name'] + wanted)
    question = w.pick(r, ['Write this as JSON with {l}.', 'Give me JSON with {l}.', 'Make JSON with {l}.',
                          'Turn this into JSON with {l}.', 'Write JSON with {l}.']).format(l=listing)
    answer = json.dumps({'name': name, **{k: value[k] for k in wanted}})
    return [(' '.join(text) + r.choice((' ', '\n')) + question, f'The keys are {listing}.', answer)]
