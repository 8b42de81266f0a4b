"""Arithmetic in a range, with the working shown; number stories; variables in small programs.

Range: a + b and a - b with 0 <= a, b <= 999 and no negative result; a * b with a up to 99 and b
up to 9, or both up to 12; exact a / b from that table.
"""
import world as w

ADD = ['What is {a} + {b}?', '{a} + {b} = ?', 'Add {a} and {b}.', 'What is the sum of {a} and {b}?',
       'How much is {a} plus {b}?', 'Please add {b} to {a}.', '{a} + {b}', 'Calculate {a} + {b}.',
       'What is {a} plus {b}?']
SUBTRACT = ['What is {a} - {b}?', '{a} - {b} = ?', 'Subtract {b} from {a}.', 'How much is {a} minus {b}?',
            'Take {b} away from {a}.', 'Calculate {a} - {b}.', '{a} - {b}', 'What is {a} minus {b}?']
MULTIPLY = ['What is {a} * {b}?', '{a} * {b} = ?', 'Multiply {a} by {b}.', 'How much is {a} times {b}?',
            'Calculate {a} * {b}.', '{a} * {b}', 'What is {a} times {b}?']
DIVIDE = ['What is {a} / {b}?', '{a} / {b} = ?', 'Divide {a} by {b}.', 'How much is {a} divided by {b}?',
          'Calculate {a} / {b}.', '{a} / {b}', 'What is {a} divided by {b}?']
PLACES = ['Ones', 'Tens', 'Hundreds', 'Thousands']


def add_steps(a, b):
    """Column addition from the right."""
    steps, carry, place = [], 0, 0
    while a or b or place == 0:
        x, y = a % 10, b % 10
        total = x + y + carry
        terms = f'{x} + {y}' + (f' + {carry}' if carry else '')
        carry = total // 10
        steps.append(f'{PLACES[place]}: {terms} = {total}, write {total % 10}, carry {carry}.')
        a, b, place = a // 10, b // 10, place + 1
    if carry:
        steps.append(f'{PLACES[place]}: write {carry}.')
    return ' '.join(steps)


def subtract_steps(a, b):
    """Column subtraction from the right; a >= b."""
    steps, borrow, place = [], 0, 0
    while a or place == 0:
        x, y = a % 10, b % 10
        terms = f'{x} - {y}' + (f' - {borrow}' if borrow else '')
        value = x - y - borrow
        if value < 0:
            steps.append(f'{PLACES[place]}: {terms} is below 0, so {x + 10}{terms[len(str(x)):]} = '
                         f'{value + 10}, write {value + 10}, borrow 1.')
        else:
            steps.append(f'{PLACES[place]}: {terms} = {value}, write {value}, borrow 0.')
        borrow = 1 if value < 0 else 0
        a, b, place = a // 10, b // 10, place + 1
    return ' '.join(steps)


def multiply_steps(a, b):
    if a <= 12 and b <= 12:
        return f'I know that {a} * {b} = {a * b}.'
    tens, ones = a // 10 * 10, a % 10
    if ones == 0:
        return f'{a // 10} * {b} = {a // 10 * b}. Then {tens} * {b} = {a * b}.'
    return (f'{tens} * {b} = {tens * b}. {ones} * {b} = {ones * b}. '
            f'I add {tens * b} + {ones * b}. {add_steps(tens * b, ones * b)}')


def number(r, most=999):
    return r.randint(0, r.choice((9, 20, 99, 99, most, most)))


def problem(r):
    """(kind, a, b, result, steps)"""
    kind = r.choice('++--*/')
    if kind == '+':
        a, b = number(r), number(r)
        return kind, a, b, a + b, add_steps(a, b)
    if kind == '-':
        a, b = number(r), number(r)
        a, b = max(a, b), min(a, b)
        return kind, a, b, a - b, subtract_steps(a, b)
    if kind == '*':
        a, b = (r.randint(0, 12), r.randint(0, 12)) if r.random() < 0.5 else (r.randint(10, 99), r.randint(2, 9))
        return kind, a, b, a * b, multiply_steps(a, b)
    a, b = r.randint(0, 12), r.randint(1, 12)
    return kind, a * b, b, a, f'I know that {b} * {a} = {a * b}.'


def arithmetic(r, held=False):
    kind, a, b, result, steps = problem(r)
    forms = {'+': ADD, '-': SUBTRACT, '*': MULTIPLY, '/': DIVIDE}[kind]
    question = w.pick(r, forms).format(a=a, b=b)
    return question, f'{a} {kind} {b}. {steps}', f'{a} {kind} {b} = {result}.'


def arithmetic_conversation(r, held=False):
    n = 1 if held else r.choice((1, 1, 2, 4, 8))
    return [arithmetic(r, held) for _ in range(n)]


GAIN = ['gets {n} more', 'finds {n} more', 'buys {n} more', 'wins {n} more', 'receives {n} more', 'picks up {n} more']
LOSE = ['gives {n} away', 'loses {n}', 'sells {n}', 'eats {n}', 'drops {n}', 'breaks {n}']
THINGS = 'apples eggs coins nuts pears books stamps balls cups plums cards pens'.split()


def number_story(r, held=False):
    """Somebody has things, gets and loses some: how many in the end?"""
    name = w.people(r, 1, held)[0]
    other = w.people(r, 1, held, [name])[0]
    thing, have = r.choice(THINGS), r.randint(1, 30)
    text, steps = [f'{name} has {have} {thing}.'], []
    if r.random() < 0.4:
        text.append(f'{other} has {r.randint(1, 30)} {thing}.')
    for _ in range(r.randint(1, 3)):
        n = r.randint(1, 20)
        gain = have < 3 or r.random() < 0.5
        if not gain:
            n = min(n, have)
        after = have + n if gain else have - n
        text.append(f'{name} ' + w.pick(r, GAIN if gain else LOSE).format(n=n) + '.')
        steps.append(f'{have} {"+" if gain else "-"} {n} = {after}.')
        have = after
    question = w.pick(r, [f'How many {thing} does {name} have now?', f'How many {thing} does {name} have?',
                          f'How many {thing} has {name} now?',
                          f'How many {thing} does {name} have in the end?'])
    start = f'{name} starts with {text[0].split()[-2]}. '
    return [(' '.join(text) + ' ' + question, start + ' '.join(steps), f'{name} has {have} {thing}.')]


def program(r, held=False):
    """Assignments in order; the value of one variable at the end."""
    names = r.sample('abcdefghkmnpqrstuvwxyz', r.randint(1, 4))
    value, lines, notes = {}, [], []
    for i in range(r.randint(2, 7)):
        name = names[i] if i < len(names) else r.choice(names)
        if not value or r.random() < 0.3:
            value[name] = r.randint(0, 20)
            lines.append(f'{name} = {value[name]}')
            notes.append(lines[-1] + '.')
            continue
        source, n = r.choice(list(value)), r.randint(1, 9)
        sign = '+' if r.random() < 0.6 or value[source] < n else '-'
        result = value[source] + n if sign == '+' else value[source] - n
        lines.append(f'{name} = {source} {sign} {n}')
        notes.append(f'{name} = {value[source]} {sign} {n} = {result}.')
        value[name] = result
    asked = r.choice(list(value))
    question = w.pick(r, [f'What is {asked}?', f'What is the value of {asked}?', f'Which value has {asked} now?',
                          f'What is the value of {asked} now?'])
    return [('\n'.join(lines) + '\n' + question, ' '.join(notes), f'{asked} = {value[asked]}.')]


def larger(r, held=False):
    a, b = number(r), number(r)
    if a == b:
        b = a + 1
    more = r.random() < 0.5
    word = 'larger' if more else 'smaller'
    question = w.pick(r, [f'Which number is {word}, {a} or {b}?', f'What is {word}, {a} or {b}?',
                          f'Is {a} or {b} {word}?', f'Which is {word}, {a} or {b}?'])
    best = max(a, b) if more else min(a, b)
    worst = a + b - best
    return [(question, f'{best} is {"more" if more else "less"} than {worst}.', f'{best} is {word}.')]
