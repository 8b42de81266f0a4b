"""Conversations with tools: choose one, call it with the right arguments, use its result.

A turn here is a list of messages in the order of the conversation; see chat_format.py.
"""
import json

import world as w


class Tool:
    """properties: {name: (type, what the value is)}; asks: forms with {name} of each property."""

    def __init__(self, name, description, properties, asks, result, answer, plan, required=None):
        self.name, self.description, self.properties = name, description, properties
        self.asks, self.result, self.answer, self.plan = asks, result, answer, plan
        self.required = list(properties) if required is None else required

    def schema(self):
        parameters = {'type': 'object', 'properties': {k: {'type': t} for k, (t, _) in self.properties.items()}}
        if self.required:
            parameters['required'] = self.required
        return {'type': 'function', 'function': {
            'name': self.name, 'description': self.description, 'parameters': parameters}}

    def arguments(self, r, held):
        return {k: make(r, held) for k, (_, make) in self.properties.items()}


def city(r, held):
    return w.cities(r, 1, held)[0]


def person(r, held):
    return w.people(r, 1, held)[0]


def expression(r, held):
    a, b = r.randint(10, 9999), r.randint(2, 999)
    return f'{a} {r.choice("+-*")} {b}'


def count(least, most):
    return lambda r, held: r.randint(least, most)


def one_of(words):
    return lambda r, held: r.choice(words)


def sum_of(r, arguments):
    a, sign, b = arguments['expression'].split()
    return str({'+': int(a) + int(b), '-': int(a) - int(b), '*': int(a) * int(b)}[sign])


def as_json(make):
    return lambda r, a: json.dumps(make(r, a))


def some_text(r, held):
    subject = w.people(r, 1, held)[0]
    return r.choice(['The train is late', 'Dinner is at seven', 'I will come on {d}', 'The meeting is on {d}',
                     'Please call {p}', '{p} is at home', 'Buy {f}', 'Meet me at the {h}', 'Bring the {o}']).format(
        d=r.choice(w.DAYS), p=subject, f=r.choice(w.FOODS), h=r.choice(w.ROOMS), o=r.choice(w.OBJECTS))


def text_type(make):
    return ('string', make)


def whole(make):
    return ('integer', make)


TOOLS = [
    Tool('calculator', 'Calculate an arithmetic expression.', {'expression': text_type(expression)},
         ['What is {expression}?', 'Calculate {expression}.', 'How much is {expression}?', '{expression} = ?',
          'Please calculate {expression}.', 'Work out {expression}.', 'Please work out {expression}.'],
         sum_of, '{expression} = {r}.', 'I use the calculator for {expression}.'),
    Tool('clock', 'Tell the time in a city.', {'city': text_type(city)},
         ['What time is it in {city}?', 'Tell me the time in {city}.', 'How late is it in {city}?',
          'What is the time in {city}?', 'Which time is it in {city}?', 'Tell me what time it is in {city}.'],
         lambda r, a: w.clock_time(r), 'It is {r} in {city}.', 'I use the clock for {city}.'),
    Tool('lookup', 'Look up a field of a person.',
         {'name': text_type(person), 'field': text_type(one_of('age job city phone email birthday'.split()))},
         ['What is the {field} of {name}?', 'Look up the {field} of {name}.', 'Find the {field} of {name}.',
          'I need the {field} of {name}.', 'Please look up the {field} of {name}.'],
         lambda r, a: {'age': str(r.randint(5, 95)), 'job': r.choice(w.JOBS), 'city': city(r, False),
                       'phone': str(r.randint(10000, 99999)), 'email': w.invented(r) + '@mail.com',
                       'birthday': r.choice(w.MONTHS) + f' {r.randint(1, 28)}'}[a['field']],
         'The {field} of {name} is {r}.', 'I use lookup for the {field} of {name}.'),
    Tool('get_weather', 'Get the weather', {'city': text_type(city)},
         ['How is the weather in {city}?', 'What is the weather in {city}?', 'Weather in {city}?',
          'Tell me the weather in {city}.', 'What is the weather like in {city}?'],
         lambda r, a: r.choice(w.WEATHER), 'The weather in {city} is {r}.', 'I use get_weather for {city}.'),
    Tool('get_forecast', 'Get the forecast for some days', {'city': text_type(city), 'days': whole(count(2, 9))},
         ['Give me the forecast for {city} for {days} days.', 'What is the forecast for {days} days in {city}?',
          'I need a {days} day forecast for {city}.', 'Give me a {days} day forecast for {city}.'],
         lambda r, a: r.choice(w.WEATHER), 'The forecast for {city} is {r}.',
         'I use get_forecast for {city} and {days} days.'),
    Tool('get_price', 'Get the price of a thing in coins', {'item': text_type(one_of(w.OBJECTS))},
         ['What is the price of a {item}?', 'How much does a {item} cost?', 'Price of a {item}?',
          'Tell me the price of a {item}.', 'How many coins does a {item} cost?'],
         lambda r, a: str(r.randint(2, 99)), 'The {item} costs {r} coins.', 'I use get_price for {item}.'),
    Tool('set_timer', 'Start a timer', {'minutes': whole(count(1, 90))},
         ['Set a timer for {minutes} minutes.', 'Start a timer of {minutes} minutes.', 'Timer for {minutes} minutes!',
          'Please start a {minutes} minute timer.', 'Please set a timer for {minutes} minutes.'],
         lambda r, a: 'ok', 'The timer is set to {minutes} minutes.', 'I use set_timer with {minutes} minutes.'),
    Tool('set_alarm', 'Set an alarm', {'time': text_type(lambda r, held: w.clock_time(r))},
         ['Wake me at {time}.', 'Set an alarm for {time}.', 'I need an alarm at {time}.', 'Please wake me up at {time}.',
          'Please set an alarm for {time}.'],
         lambda r, a: 'ok', 'The alarm is set to {time}.', 'I use set_alarm with {time}.'),
    Tool('send_message', 'Send a message to a person', {'to': text_type(person), 'text': text_type(some_text)},
         ['Send {to} this message: {text}', 'Write to {to}: {text}', 'Tell {to} this: {text}',
          'Please send a message to {to}: {text}', 'Send a message to {to}: {text}'],
         lambda r, a: 'sent', 'The message to {to} is sent.', 'I use send_message to {to}.'),
    Tool('search', 'Search for a text', {'query': text_type(lambda r, held: ' '.join(
        r.sample(w.OBJECTS + w.FOODS + w.ANIMALS, r.randint(1, 3))))},
         ['Search for {query}.', 'Find something about {query}.', 'Please search for {query}.',
          'Search the web for {query}.', 'Please find something about {query}.'],
         lambda r, a: f'{r.randint(2, 900)} results', 'The search for {query} gives {r}.', 'I use search for {query}.'),
    Tool('add_to_list', 'Add a thing to the shopping list', {'item': text_type(one_of(w.FOODS)),
                                                             'amount': whole(count(1, 30))},
         ['Add {amount} {item} to my list.', 'Put {amount} {item} on the shopping list.', 'I need {amount} {item} on my list.',
          'Add {amount} {item} to the shopping list.'],
         lambda r, a: 'added', 'I added {amount} {item} to the list.', 'I use add_to_list with {amount} {item}.'),
    Tool('play_music', 'Play music of an instrument', {'instrument': text_type(one_of(w.INSTRUMENTS))},
         ['Play some {instrument} music.', 'I want to hear a {instrument}.', 'Please play the {instrument}.',
          'Please play some {instrument} music.'],
         lambda r, a: 'playing', 'Now you hear the {instrument}.', 'I use play_music with {instrument}.'),
    Tool('book_train', 'Book a train ticket', {'from': text_type(city), 'to': text_type(city),
                                               'day': text_type(one_of(w.DAYS))},
         ['Book a train from {from} to {to} on {day}.', 'I need a train ticket from {from} to {to} for {day}.',
          'On {day} I go from {from} to {to}. Book a train.', 'Please book a train from {from} to {to} on {day}.'],
         lambda r, a: f'ticket {r.randint(100, 999)}', 'Your train from {from} to {to} on {day} is booked: {r}.',
         'I use book_train from {from} to {to} on {day}.'),
    Tool('get_distance', 'Get the distance of two cities in km', {'from': text_type(city), 'to': text_type(city)},
         ['How far is it from {from} to {to}?', 'What is the distance from {from} to {to}?',
          'Distance from {from} to {to}?', 'Tell me the distance from {from} to {to}.'],
         lambda r, a: str(r.randint(10, 999)), 'It is {r} km from {from} to {to}.',
         'I use get_distance from {from} to {to}.'),
    Tool('translate', 'Translate a word', {'word': text_type(one_of(w.OBJECTS + w.FOODS)),
                                           'language': text_type(one_of(w.LANGUAGES))},
         ['What is {word} in {language}?', 'Translate {word} to {language}.', 'How do I say {word} in {language}?',
          'Please translate {word} to {language}.'],
         lambda r, a: w.invented(r, 1, 3), 'In {language}, {word} is {r}.', 'I use translate for {word} and {language}.'),
    Tool('today', 'Tell the day of the week', {},
         ['What day is it today?', 'Which day is today?', 'What day is today?', 'Which day is it today?'],
         lambda r, a: r.choice(w.DAYS), 'Today is {r}.', 'I use today.'),
]
FAILED = 'error: not found'


def invented_tool(r, held):
    """A tool with a name and a parameter that mean nothing: only the schema tells of them."""
    action, key = w.invented(r, 1, 2), w.invented(r, 1, 2)
    name = r.choice((action, f'{r.choice(("get", "make", "run", "do", "find"))}_{action}'))
    maker = r.choice((person, city, one_of(w.OBJECTS), count(1, 999)))
    kind = 'integer' if isinstance(maker(r, held), int) else 'string'
    return Tool(name, f'Does the {action} of a {key}', {key: (kind, maker)},
                [f'Do the {action} of {{{key}}}.', f'Use {name} for {{{key}}}.', f'Make the {action} of {{{key}}}.',
                 f'Please use {name} for {{{key}}}.'],
                lambda r, a: w.invented(r), 'The result is {r}.', f'I use {name} for {{{key}}}.')


def offered(r, tool):
    """The tool among others, in a random order."""
    others = r.sample([t for t in TOOLS if t is not tool], r.choice((0, 1, 1, 2, 2, 3, 5)))
    tools = others + ([tool] if tool else [])
    r.shuffle(tools)
    return [t.schema() for t in tools]


def call_message(think, calls):
    return {'role': 'assistant', 'reasoning': think, 'content': '',
            'calls': [{'name': n, 'arguments': a} for n, a in calls]}


def answer_message(think, text):
    return {'role': 'assistant', 'reasoning': think, 'content': text}


def use(r, tool, held):
    """One question, one call, one answer."""
    arguments = tool.arguments(r, held)
    ask = w.pick(r, tool.asks).format(**arguments)
    messages = [{'role': 'user', 'content': w.wrapped(r, ask, held, True)},
                call_message(tool.plan.format(**arguments), [(tool.name, arguments)])]
    if r.random() < 0.06:
        messages.append({'role': 'tool', 'content': FAILED})
        messages.append(answer_message('The tool gives an error.', 'The tool gives an error: not found.'))
        return messages
    result = tool.result(r, arguments)
    messages.append({'role': 'tool', 'content': result})
    messages.append(answer_message(f'The tool says {result}.', tool.answer.format(r=result, **arguments)))
    return messages


PAIRS = {'clock': ('What time is it in {0} and in {1}?', 'Tell me the time in {0} and in {1}.', 'city'),
         'get_weather': ('How is the weather in {0} and in {1}?', 'What is the weather in {0} and in {1}?', 'city'),
         'get_price': ('What is the price of a {0} and of a {1}?', 'How much does a {0} cost, and a {1}?', 'item')}


def use_twice(r, held):
    """Two calls side by side."""
    tool = r.choice([t for t in TOOLS if t.name in PAIRS])
    *asks, key = PAIRS[tool.name]
    first, second = tool.arguments(r, held), tool.arguments(r, held)
    if first == second:
        return use(r, tool, held), tool
    results = [tool.result(r, first), tool.result(r, second)]
    plan = ' '.join(tool.plan.format(**a) for a in (first, second))
    answer = ' '.join(tool.answer.format(r=x, **a) for x, a in zip(results, (first, second)))
    return [{'role': 'user', 'content': r.choice(asks).format(first[key], second[key])},
            call_message(plan, [(tool.name, first), (tool.name, second)]),
            {'role': 'tool', 'content': results[0]}, {'role': 'tool', 'content': results[1]},
            answer_message(f'The tool says {results[0]} and {results[1]}.', answer)], tool


def conversation(r, held=False):
    """(messages, tools)"""
    pick = r.random()
    if pick < 0.12:
        messages, tool = use_twice(r, held)
        return messages, offered(r, tool)
    tool = TOOLS[0] if pick < 0.25 else invented_tool(r, held) if pick < 0.40 else r.choice(TOOLS)
    messages, tools = use(r, tool, held), offered(r, tool)
    names = {t['function']['name'] for t in tools}
    if not held and r.random() < 0.35:
        again = r.choice([t for t in TOOLS if t.name in names] or [tool])
        messages = messages + use(r, again, held)
    return messages, tools


def no_tool_fits(r, held=False):
    """The tool that is asked for is not there."""
    tool = r.choice([t for t in TOOLS if t.name not in ('calculator', 'search', 'lookup')])
    tools = [t for t in offered(r, None) if t['function']['name'] not in (tool.name, 'search')]
    ask = w.pick(r, tool.asks).format(**tool.arguments(r, held))
    return [{'role': 'user', 'content': ask},
            answer_message('No tool fits this.', 'I cannot do that: I have no tool for it.')], tools
