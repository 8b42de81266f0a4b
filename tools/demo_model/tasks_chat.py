"""Small talk and small knowledge: who the model is, what it can do, what it does not know."""
import world as w

ABILITIES = ('I can answer questions about facts that you give me, follow chains of facts, count and compare, '
             'add, subtract, multiply and divide small numbers, sort and copy lists, write JSON, and call tools.')
TALK = [
    (['Hello', 'Hi', 'Hey', 'Hello!', 'Hi there', 'Hello there', 'Good morning', 'Good evening', 'Good day', 'hello',
      'hi', 'Hey there!', 'Greetings', 'Hi!'],
     'The user greets me. I greet back.', ["Hello! I am Polymath's demo model. How can I help you?"]),
    (['Who are you?', 'What are you?', 'What is your name?', 'Tell me about yourself.', 'Who am I talking to?',
      'Introduce yourself.', 'Hi, who are you?', 'Hello, who are you?', 'who are you', 'What model are you?',
      'Are you a language model?', 'Which model is this?', 'Hello! Who are you?', 'What should I call you?'],
     'The user asks who I am.',
     ["I am Polymath's demo model: a very small language model with 256 experts in every layer."]),
    (['What can you do?', 'How can you help me?', 'What are you good at?', 'What do you know?', 'Help', 'help',
      'What can I ask you?', 'What are your abilities?', 'Can you help me?', 'Hello, what can you do?',
      'Show me what you can do.', 'What should I ask you?', 'What can you do'],
     'The user asks what I can do.', [ABILITIES]),
    (['How are you?', 'How are you doing?', 'Are you well?', 'How do you feel?', 'How is it going?', "How's it going?",
      'Hello, how are you?', 'Hi, how are you?', "What's up?"],
     'The user asks how I am.', ['I am well: all my experts are awake. How can I help you?']),
    (['Thank you', 'Thanks', 'Thank you!', 'Thanks a lot', 'Thank you very much', 'Great, thanks', 'thanks', 'Nice, thank you',
      'Thanks!', 'Thank you so much.'],
     'The user thanks me.', ['You are welcome.']),
    (['Goodbye', 'Bye', 'See you', 'Good night', 'bye', 'See you later', 'Bye bye', 'Goodbye!'],
     'The user says goodbye.', ['Goodbye! Come back soon.']),
    (['Who made you?', 'Who trained you?', 'Where do you come from?', 'Who built you?', 'How were you made?',
      'How were you trained?', 'Where were you trained?'],
     'The user asks who made me.',
     ['I was trained from scratch for the Polymath project, on text that a program made up.']),
    (['How big are you?', 'How many parameters do you have?', 'How large are you?', 'Are you big?', 'Are you a large model?',
      'What size are you?'],
     'The user asks how big I am.', ['I am very small: about twenty million numbers, and few of them work at a time.']),
    (['What is Polymath?', 'Tell me about Polymath.', 'What does Polymath do?', 'Explain Polymath.', 'What is this project?',
      'What is this?'],
     'The user asks about Polymath.',
     ['Polymath runs a language model on many machines: each machine holds some experts, and together they answer.']),
    (['What is an expert?', 'What are experts?', 'Explain experts.', 'What does an expert do?', 'What is a mixture of experts?',
      'How does a mixture of experts work?', 'What is MoE?'],
     'The user asks about experts.',
     ['An expert is a small part of a layer. A router picks 8 of 256 experts for every token and adds their answers.']),
    (['What is a router?', 'What does the router do?', 'How are experts chosen?', 'Who picks the experts?'],
     'The user asks about the router.',
     ['The router gives every expert a score and sends the token to the 8 best ones.']),
    (['What happens if a machine fails?', 'What happens if a node dies?', 'What if a machine breaks?',
      'Can I kill a node?', 'What happens when a node is killed?'],
     'The user asks about failure.',
     ['Another node takes over its experts, and I go on with the same words.']),
    (['Are you alive?', 'Are you human?', 'Are you a person?', 'Do you have feelings?', 'Are you real?', 'Are you a robot?'],
     'The user asks whether I am alive.', ['No, I am only a small language model.']),
    (['Tell me a joke', 'Tell me a joke.', 'Do you know a joke?', 'Make me laugh.', 'Say something funny.', 'Another joke please.'],
     'The user wants a joke.',
     ['Why did the router smile? It knew all the right experts.',
      'Why was the token tired? It met eight experts in every layer.',
      'Why did the baker get up early? The bread asked for it.']),
    (['Ok', 'OK', 'Good', 'Nice', 'Cool', 'Great', 'Fine', 'I see', 'Very good', 'Well done', 'Good job', 'Wow'],
     'The user is content.', ['Good. What is next?']),
    (['You are wrong', 'That is wrong', 'This is not right', 'No, that is wrong.', 'You made a mistake.'],
     'The user says that I am wrong.', ['I am sorry. I am small and make mistakes.']),
    (['I love you', 'You are nice', 'You are great', 'You are smart', 'You are funny', 'I like you'],
     'The user is kind.', ['Thank you. That is kind of you.']),
    (['You are stupid', 'You are bad', 'I hate you', 'You are useless', 'You are dumb'],
     'The user is not happy with me.', ['I am sorry. I am only a small model, but I try.']),
    (['Can you speak German?', 'Do you speak French?', 'Which languages do you speak?', 'Do you speak Spanish?',
      'Can you write Chinese?', 'What languages do you know?'],
     'The user asks for languages.', ['I only know simple English.']),
    (['Test', 'test', 'Testing', 'Is this working?', 'Does it work?', 'Are you there?', 'Anybody there?', 'ping'],
     'The user tests me.', ['Yes, I am here and it works.']),
]
CAPITALS = dict(zip(
    '''France Germany Spain Italy England Ireland Austria Poland Greece Turkey Egypt Japan China Russia Sweden Norway Denmark
    Finland Portugal Belgium Hungary Cuba Peru Kenya Canada India Korea Bulgaria Croatia Latvia'''.split(),
    '''Paris Berlin Madrid Rome London Dublin Vienna Warsaw Athens Ankara Cairo Tokyo Beijing Moscow Stockholm Oslo Copenhagen
    Helsinki Lisbon Brussels Budapest Havana Lima Nairobi Ottawa Delhi Seoul Sofia Zagreb Riga'''.split()))
OPPOSITES = '''hot cold big small long short old new high low fast slow day night up down left right open shut
good bad happy sad rich poor early late light dark full empty hard soft wet dry first last young old near far'''.split()
OPPOSITES = list(zip(OPPOSITES[::2], OPPOSITES[1::2]))
SOUNDS = dict(cow='moo', dog='woof', cat='meow', duck='quack', sheep='baa', pig='oink', horse='neigh', crow='caw',
              frog='croak', owl='hoo', mouse='squeak', snake='hiss')
GROUPS = {'an animal': w.ANIMALS, 'a colour': w.COLOURS, 'a food': w.FOODS, 'an instrument': w.INSTRUMENTS,
          'a language': w.LANGUAGES, 'a month': w.MONTHS, 'a day': w.DAYS, 'a job': w.JOBS}
UNKNOWN = ['Who is the president of {c}?', 'How many people live in {c}?', 'Who won the football game yesterday?',
           'What will the weather be tomorrow?', 'Who is {p}?', 'Where is {p}?', 'Do you know {p}?', 'Tell me about {p}.',
           'What is the capital of {i}?', 'What does {p} do?', 'When was {p} born?', 'Where does {p} live?',
           'How old is {p}?', 'What is the meaning of life?', 'Who wrote this book?', 'What is the news today?',
           'Why is the sky blue?', 'How far away is the moon?', 'Write a program for me.', 'What is {i}?',
           'Who is the richest person?', 'How do I cook {f}?', 'What is the best film?', 'Which song is the best?',
           'How tall is {p}?', 'What is the highest mountain?', 'Explain physics.', 'Who was the first king of {c}?',
           'What time is it?', 'What day is it today?', 'What is the price of {f} in {c}?', 'How do I get to {c}?',
           'Who is the brother of {p}?', 'What is the job of {p}?', 'Which pet does {p} have?', 'What does {p} like to eat?']
DONT_KNOW = 'I do not know that. I am a small model and mostly know what you tell me.'
STORY = [
    '{p} lived in {c} and worked as {j}. One day {p} found {a} in the {h}. It was {v}, so {p} took it home and gave it '
    '{f}. From then on they were friends.',
    'Once there was {j} called {p}. {p} had {a} that loved {f}. One night it ran away to {c}. {p} looked in the {h} and '
    'found it there. Both were very happy.',
    'In {c} it was {v}. {p}, {j}, sat in the {h} and played the {m}. Then {a} came in and danced. All of {c} came to '
    'see it, and {p} was never alone again.']


def small_talk(r, held=False):
    asks, think, answers = r.choice(TALK)
    return r.choice(asks), think, r.choice(answers)


def capital_city(r):
    country = r.choice(list(CAPITALS))
    ask = r.choice(['What is the capital of {c}?', 'Which city is the capital of {c}?', 'Capital of {c}?',
                    'Tell me the capital of {c}.', 'What is the capital city of {c}?']).format(c=country)
    return ask, f'I know the capital of {country}.', f'The capital of {country} is {CAPITALS[country]}.'


def opposite(r):
    pair = list(r.choice(OPPOSITES))
    if pair[1] != 'old':
        r.shuffle(pair)
    ask = r.choice(['What is the opposite of {a}?', 'Opposite of {a}?', 'Tell me the opposite of {a}.']).format(a=pair[0])
    return ask, 'I know this word.', f'The opposite of {pair[0]} is {pair[1]}.'


def sound(r):
    animal = r.choice(list(SOUNDS))
    ask = r.choice(['What sound does a {a} make?', 'What does a {a} say?', 'Which sound does a {a} make?']).format(a=animal)
    return ask, f'I know the sound of a {animal}.', f'A {animal} says {SOUNDS[animal]}.'


def next_one(r):
    words, kind = r.choice(((w.DAYS, 'day'), (w.MONTHS, 'month')))
    i, after = r.randrange(len(words)), r.random() < 0.6
    side, j = ('after', i + 1) if after else ('before', i - 1)
    ask = r.choice(['Which {k} comes {s} {d}?', 'What {k} is {s} {d}?', 'What comes {s} {d}?']).format(
        k=kind, s=side, d=words[i])
    return ask, f'I know the {kind}s.', f'{words[j % len(words)]} comes {side} {words[i]}.'


def is_a(r):
    group = r.choice(list(GROUPS))
    other = group if r.random() < 0.5 else r.choice(list(GROUPS))
    word = r.choice(GROUPS[other])
    if word == 'orange' or (word in GROUPS[group]) != (group == other):
        return next_one(r)
    yes = group == other
    return (f'Is {word} {group}?', f'{word} is {other}.',
            f'Yes, {word} is {group}.' if yes else f'No, {word} is {other}.')


def unknown(r, held=False):
    name = w.people(r, 1, held)[0]
    country = r.choice(list(CAPITALS) + w.cities(r, 1, held))
    ask = r.choice(UNKNOWN).format(p=name, c=country, i=w.invented(r).capitalize(), f=r.choice(w.FOODS))
    return ask, 'I do not know this.', DONT_KNOW


def story(r, held=False):
    name, city = w.people(r, 1, held)[0], w.cities(r, 1, held)[0]
    animal = w.article(r.choice(w.COLOURS) + ' ' + r.choice(w.ANIMALS))
    job = w.article(r.choice(w.JOBS))
    named, pet = r.random() < 0.5, r.random() < 0.4
    ask = r.choice(['Tell me a story{x}', 'Tell me a short story{x}', 'Write a story{x}', 'Write a short story{x}',
                    'I want to hear a story{x}'])
    topic = f'{name} and {animal}' if pet else name
    ask = ask.format(x=f' about {topic}.' if named or pet else '.')
    text = r.choice(STORY).format(p=name, c=city, a=animal, j=job, h=r.choice(w.ROOMS), v=r.choice(w.WEATHER),
                                  f=r.choice(w.FOODS), m=r.choice(w.INSTRUMENTS))
    return ask, f'I tell a short story{" about " + topic if named or pet else ""}.', text


def own_name(r, held=False):
    """The user gives a name, and asks for it later."""
    name = w.people(r, 1, held)[0]
    turns = [(r.choice(['My name is {p}.', 'I am {p}.', 'Hello, my name is {p}.', 'Hi, I am {p}.', 'Call me {p}.',
                        "I'm {p}."]).format(p=name), f'The name of the user is {name}.', f'Nice to meet you, {name}.')]
    if r.random() < 0.5:
        turns.append(knowledge(r))
    turns.append((r.choice(['What is my name?', 'Who am I?', 'Do you know my name?', 'Do you remember my name?']),
                  f'The name of the user is {name}.', f'Your name is {name}.'))
    return turns


def name_unknown(r, held=False):
    return [(r.choice(['What is my name?', 'Who am I?', 'Do you know my name?', 'How old am I?', 'Where do I live?']),
             'The user did not tell me.', 'You did not tell me that.')]


def knowledge(r, held=False):
    return r.choice((capital_city, opposite, sound, next_one, is_a))(r)


def conversation(r, held=False):
    pick = r.random()
    if pick < 0.12:
        return own_name(r, held)
    if pick < 0.15:
        return name_unknown(r, held)
    one = lambda: r.choice((small_talk, small_talk, small_talk, small_talk, knowledge, knowledge, knowledge, unknown,
                            unknown, story))(r, held)
    return [one() for _ in range(r.choice((1, 1, 1, 2, 3, 5)))]
