"""Questions about facts in the prompt: recall, hops, counting, comparing, and missing facts.

A `World` is a random set of facts and the text that states them.  Each question gives
(question, reasoning, answer): the reasoning quotes facts in their canonical form, so that
looking up, following a chain and giving up are all visible steps.
"""
import json

import world as w


class World:
    """facts: (subject, key, value) in the order of the text; a subject's key has one value."""

    def __init__(self, r, held, n_facts):
        self.r, self.held = r, held
        self.people = w.people(r, max(2, min(24, 1 + n_facts // r.choice((1, 2, 3)))), held)
        self.cities = w.cities(r, r.randint(2, 8), held)
        self.objects = ['the ' + o for o in r.sample(w.OBJECTS, r.randint(1, 8))]
        self.facts, self.value = [], {}
        keys = r.sample(PERSON_KEYS, r.randint(1, 4 if n_facts < 30 else 8))
        for _ in range(4 * n_facts):  # a small world has room for few facts
            if len(self.facts) < n_facts:
                self.add_random(keys)
        while not self.facts:
            self.add_random(keys)

    def subjects(self, kind):
        return {'person': self.people, 'city': self.cities, 'object': self.objects}[kind]

    def add(self, subject, key, value):
        if (subject, key) in self.value or subject == value:
            return False
        self.value[subject, key] = value
        self.facts.append((subject, key, value))
        return True

    def new_value(self, key):
        if key == 'home':
            return self.r.choice(self.cities)
        if key in LINKS:
            return self.r.choice(self.people)
        return w.ATTRIBUTES[key].value(self.r)

    def add_random(self, keys):
        r = self.r
        pick = r.random()
        if pick < 0.68:
            self.add_of('person', r.choice(keys))
        elif pick < 0.80:
            self.add_of('person', r.choice(w.BONDS))
        elif pick < 0.90:
            self.add_of('object', r.choice(('price', 'place', 'owner')))
        else:
            self.add_of('city', r.choice(('train', 'famous', 'weather', 'region', 'mayor')))

    def add_of(self, kind, key):
        return self.add(self.r.choice(self.subjects(kind)), key, self.new_value(key))

    def sentence(self, fact):
        subject, key, value = fact
        text = w.pick(self.r, fact_forms(key))
        return capital(text.format(s=subject, v=value, b=key))

    def text(self):
        """All facts as prose, lines or a list."""
        r, lines = self.r, [self.sentence(f) for f in self.facts]
        if r.random() < 0.15:
            for _ in range(r.randint(1, 1 + len(lines) // 4)):
                lines.insert(r.randint(0, len(lines)), r.choice(w.FILLERS))
        style = r.random()
        if style < 0.6:
            return ' '.join(lines)
        if style < 0.8:
            return '\n'.join(lines)
        return '\n'.join('- ' + line for line in lines)


PERSON_KEYS = [k for k, a in w.ATTRIBUTES.items() if a.kind == 'person']
LINKS = set(w.BONDS) | {'owner', 'mayor'}


def capital(text):
    return text[0].upper() + text[1:]


def fact_forms(key):
    if key in w.ATTRIBUTES:
        return w.ATTRIBUTES[key].facts
    return {'mayor': w.MAYOR_FACTS, 'owner': w.OWNER_FACTS}.get(key, w.BOND_FACTS)


def says(fact):
    """The canonical sentence of a fact, without its stop and its capital."""
    subject, key, value = fact
    if key in w.ATTRIBUTES:
        return w.ATTRIBUTES[key].says.format(s=subject, v=value)
    return f'the {key} of {subject} is {value}'


def noun(key):
    return w.ATTRIBUTES[key].noun if key in w.ATTRIBUTES else key


def question_about(r, held, subject, key):
    forms = w.ATTRIBUTES[key].questions if key in w.ATTRIBUTES else w.BOND_QUESTIONS
    return w.pick(r, forms).format(s=subject, b=key)


def sentence(text):
    return capital(text) + '.'


# ----------------------------------------------------------------------------- questions
def recall(x):
    r = x.r
    fact = r.choice(x.facts)
    subject, key, _ = fact
    question = question_about(r, x.held, subject, key)
    think = f'I look for the {noun(key)} of {subject}. The text says that {says(fact)}.'
    return question, think, sentence(says(fact))


def reverse(x):
    """Who has this value?  Only for values that one subject has."""
    r = x.r
    for _ in range(8):
        fact = r.choice(x.facts)
        subject, key, value = fact
        forms = w.ATTRIBUTES[key].reverse if key in w.ATTRIBUTES else None
        same = [f for f in x.facts if f[1] == key and f[2] == value]
        if forms and len(same) == 1:
            question = w.pick(r, forms).format(v=value)
            think = f'I look for the {noun(key)} {value}. The text says that {says(fact)}.'
            return question, think, sentence(says(fact))
    return recall(x)


def missing(x):
    """Asks for a fact that is not there, about somebody who is or is not there."""
    r = x.r
    for _ in range(20):
        kind = r.choice(('person', 'person', 'person', 'city', 'object'))
        if r.random() < 0.5 and kind == 'person':
            subject = w.people(r, 1, x.held, x.people)[0]
        else:
            subject = r.choice(x.subjects(kind))
        used = [f[1] for f in x.facts]
        options = [k for k, a in w.ATTRIBUTES.items() if a.kind == kind]
        key = r.choice(used) if r.random() < 0.7 else r.choice(options)
        if key in w.BONDS and kind == 'person' or key in options:
            if (subject, key) not in x.value:
                question = question_about(r, x.held, subject, key)
                think = f'I look for the {noun(key)} of {subject}. The text does not say it.'
                return question, think, f'The text does not say the {noun(key)} of {subject}.'
    return recall(x)


STEP = {'home': 'the city where {s} lives', 'mayor': 'the mayor of {s}', 'owner': 'the owner of {s}'}


def walk(x, n_links):
    """A path of links through the world, its missing facts added; then an attribute."""
    r = x.r
    kind = r.choice(('person', 'person', 'person', 'object', 'city'))
    here = r.choice(x.subjects(kind))
    start, path, seen = here, [], {here}
    for i in range(n_links):
        if kind == 'person':
            key = r.choice(w.BONDS) if r.random() < 0.8 or i == n_links - 1 else 'home'
            if i == n_links - 1 and r.random() < 0.15:
                key = 'home'
        else:
            key = 'owner' if kind == 'object' else 'mayor'
        if (here, key) not in x.value:
            x.add(here, key, x.new_value(key))
        if (here, key) not in x.value or x.value[here, key] in seen:
            return None
        path.append((here, key, x.value[here, key]))
        here, kind = path[-1][2], 'city' if key == 'home' else 'person'
        seen.add(here)
    last = r.choice([k for k, a in w.ATTRIBUTES.items() if a.kind == kind])
    if (here, last) not in x.value:
        x.add(here, last, x.new_value(last))
    if (here, last) not in x.value:
        return None
    path.append((here, last, x.value[here, last]))
    return start, path


def hops(x, n_facts_on_path, path=None):
    r = x.r
    while path is None:
        path = walk(x, n_facts_on_path - 1)
    start, facts = path
    phrase = start
    for _, key, _ in facts[:-1]:
        phrase = STEP.get(key, 'the ' + key + ' of {s}').format(s=phrase)
    key = facts[-1][1]
    question = question_about(r, x.held, phrase, key)
    steps = ' '.join(sentence(says(f)) for f in facts)
    think = f'I look for the {noun(key)} of {phrase}. {steps}'
    return question, think, sentence(says(facts[-1]))


def count(x):
    """How many people share a value."""
    r = x.r
    keys = [f[1] for f in x.facts if f[1] in w.ATTRIBUTES and w.ATTRIBUTES[f[1]].whose]
    if not keys:
        return recall(x)
    key = r.choice(keys)
    value = r.choice([f[2] for f in x.facts if f[1] == key])
    found = [f[0] for f in x.facts if f[1] == key and f[2] == value]
    whose = w.ATTRIBUTES[key].whose.format(v=value)
    question = w.pick(r, [f'How many people {whose}?', f'Count the people who {whose}.',
                          f'What is the number of people who {whose}?',
                          f'How many of the people {whose}?'])
    names = ', '.join(f'{i + 1} {name}' for i, name in enumerate(found))
    return question, f'I count the people who {whose}: {names}.', f'The number is {len(found)}.'


def share_values(x):
    """Makes counting worth while: some people get one another's values."""
    r = x.r
    key = r.choice([k for k in PERSON_KEYS if w.ATTRIBUTES[k].whose])
    values = [x.new_value(key) for _ in range(r.randint(1, 3))]
    for person in x.people[:r.randint(2, 9)]:
        x.add(person, key, r.choice(values))
    r.shuffle(x.facts)


COMPARE = {
    'age': [('Who is older, {a} or {b}?', 'Who is the older one, {a} or {b}?',
             'Is {a} or {b} older?', 'Which of {a} and {b} is older?'), 'more', '{s} is older.'],
    'age ': [('Who is younger, {a} or {b}?', 'Who is the younger one, {a} or {b}?',
              'Is {a} or {b} younger?', 'Which of {a} and {b} is younger?'), 'less', '{s} is younger.'],
    'price': [('What costs more, {a} or {b}?', 'Which one costs more, {a} or {b}?',
               'Which of {a} and {b} costs more?'), 'more', '{s} costs more.'],
    'price ': [('What costs less, {a} or {b}?', 'Which is cheaper, {a} or {b}?',
                'Which of {a} and {b} costs less?'), 'less', '{s} costs less.'],
}


def compare(x):
    r = x.r
    name = r.choice(list(COMPARE))
    key, (forms, sign, answer) = name.strip(), COMPARE[name]
    subjects = x.people if key == 'age' else x.objects
    if len(subjects) < 2:
        return recall(x)
    a, b = r.sample(subjects, 2)
    for s in (a, b):
        x.add(s, key, x.new_value(key))  # keeps the value that is there
    first, second = int(x.value[a, key]), int(x.value[b, key])
    if first == second:
        return recall(x)
    best = a if (first > second) == (sign == 'more') else b
    high, low = (first, second) if (first > second) == (sign == 'more') else (second, first)
    question = w.pick(r, forms).format(a=a, b=b)
    steps = ' '.join(sentence(says((s, key, x.value[s, key]))) for s in (a, b))
    return question, f'{steps} {high} is {sign} than {low}.', capital(answer.format(s=best))


def table(r, held):
    """People and attributes as a table or JSON, and a question about one cell."""
    people = w.people(r, r.randint(2, 8), held)
    keys = r.sample([k for k in PERSON_KEYS if k not in ('job', 'pet')], r.randint(1, 4))
    places = w.cities(r, 4, held)
    rows = {p: {k: r.choice(places) if k == 'home' else w.ATTRIBUTES[k].value(r) for k in keys} for p in people}
    heads = [w.ATTRIBUTES[k].row for k in keys]
    if r.random() < 0.6:
        lines = ['Name | ' + ' | '.join(heads)]
        lines += [p + ' | ' + ' | '.join(row.values()) for p, row in rows.items()]
        text = '\n'.join(lines)
    else:
        text = json.dumps([dict(zip(['name'] + [h.lower() for h in heads], [p, *row.values()]))
                           for p, row in rows.items()])
    person, key = r.choice(people), r.choice(keys)
    fact = (person, key, rows[person][key])
    question = question_about(r, held, person, key)
    think = f'I look for the {noun(key)} of {person}. The text says that {says(fact)}.'
    return text, question, think, sentence(says(fact))


# ----------------------------------------------------------------------------- conversations
KINDS = {'recall': recall, 'reverse': reverse, 'missing': missing,
         'two_hops': lambda x: hops(x, 2), 'three_hops': lambda x: hops(x, 3),
         'four_hops': lambda x: hops(x, 4), 'count': count, 'compare': compare}
MIX = (['recall'] * 6 + ['reverse'] * 3 + ['missing'] * 4 + ['two_hops'] * 7 + ['three_hops'] * 3 +
       ['four_hops'] * 2 + ['count'] * 3 + ['compare'] * 3)
FRAMES = ['{t}\n\n{q}', '{t}\n\n{q}', '{t}\n{q}', '{t} {q}', 'Read this: {t}\n\n{q}', 'Here are some facts. {t}\n\n{q}',
          '{q}\n\n{t}', 'Facts:\n{t}\n\nQuestion: {q}', 'Read these facts: {t}\n\n{q}']
NOTED = 'I will remember that.'


def n_facts_for(r, longest):
    pick = r.random()
    if pick < 0.5:
        return r.randint(2, 10)
    if pick < 0.85:
        return r.randint(8, 30)
    return r.randint(30, longest)


def ask_world(r, held, kinds, n_facts):
    """A world and the questions of these kinds: [(question, think, answer)], and the text."""
    x = World(r, held, n_facts)
    if 'count' in kinds:
        share_values(x)
    made = [KINDS[k](x) for k in kinds]
    r.shuffle(x.facts)
    return x.text(), made, x


def final_missing_is_true(x, made):
    """Later questions may have added the fact whose absence an earlier answer states."""
    for _, think, answer in made:
        if answer.startswith('The text does not say'):
            for (subject, key) in x.value:
                if answer == f'The text does not say the {noun(key)} of {subject}.':
                    return False
    return True


def counts_are_true(x, kinds, made):
    if 'count' not in kinds:
        return True
    return kinds.index('count') == len(kinds) - 1 and kinds.count('count') == 1


def conversation(r, held=False, kinds=None, n_facts=None):
    """Turns [(user, think, answer)] about one world."""
    fixed = kinds is not None
    while True:
        if not fixed:
            kinds = [r.choice(MIX) for _ in range(r.choice((1, 1, 2, 3, 4, 6)))]
            kinds.sort(key=lambda k: k == 'count')
        size = n_facts or n_facts_for(r, 115)
        text, made, x = ask_world(r, held, kinds, size)
        if final_missing_is_true(x, made) and counts_are_true(x, kinds, made) and compare_unique(x, made):
            break
    asked = [(w.wrapped(r, q, held), t, a) for q, t, a in made]
    if r.random() < 0.15:
        opening = r.choice(['Remember this: ', 'Please remember: ', 'I tell you some facts. ', '']) + text
        return [(opening, 'The user tells me facts. I will need them later.', NOTED)] + asked
    first = r.choice(FRAMES).format(t=text, q=asked[0][0])
    return [(first, *asked[0][1:])] + asked[1:]


def compare_unique(x, made):
    """A question about "who has this value" must still have one answer in the end."""
    for _, think, _ in made:
        if think.startswith('I look for the ') and ' of ' not in think.split('.')[0]:
            hits = [f for f in x.facts if think.startswith(f'I look for the {noun(f[1])} {f[2]}. ')]
            if len(hits) != 1:
                return False
    return True


def table_conversation(r, held=False):
    text, question, think, answer = table(r, held)
    return [(r.choice(FRAMES[:3]).format(t=text, q=question), think, answer)]
