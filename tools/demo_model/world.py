"""The closed world of the demo model: its words, its names, and what can be said of them.

A name is held out (seen in evaluation only) by a hash of its letters, so training and
evaluation agree without a list.  Every attribute has sentences that state it, questions that
ask for it, and one canonical sentence in which the model thinks and answers.
The framings of questions in HELD_WRAPPERS are held out too.
"""
import zlib

GIVEN = '''Ada Adam Agnes Alan Albert Alice Alma Amir Amy Ana Anders Andrea Anita Anna Anton Arthur
Astrid Aurora Ben Bella Bernard Beth Bianca Boris Brian Bruno Carl Carla Carmen Cecil Celia Chen Clara
Claude Conrad Cora Dahlia Daniel Daphne David Dawn Denis Diana Diego Dora Doris Dylan Edgar Edith
Edwin Elena Eli Elias Ella Elsa Emil Emily Emma Eric Erik Esther Ethan Eva Eve Felix Fiona Flora Frank
Frida Fred Gabriel Gemma George Gina Gloria Grace Greta Gustav Hannah Hans Harry Hassan Hazel Heidi
Helen Henry Hugo Ian Ida Igor Ines Ingrid Irene Iris Isaac Ivan Ivy Jack Jacob James Jan Jane Jasmin
Jean Jenny Joan Joel John Jonas Josef Joy Judith Julia Julian June Karen Karin Karl Kate Kenji Kevin
Kim Kira Kurt Lara Lars Laura Lea Leila Lena Leo Leon Lily Linda Lisa Liz Lola Louis Lucas Lucia Lucy
Luis Luke Luna Maja Malik Mara Marco Maria Mark Marta Martin Mary Max Maya Mei Mia Mila Milan Mina Mira
Mona Nadia Naomi Nick Nils Nina Noah Nora Olaf Oleg Olga Oliver Omar Oscar Otto Pablo Paul Paula Pedro
Peter Petra Philip Pia Quinn Rachel Ralph Ravi Rex Rita Robert Rosa Rose Ruby Rudolf Ruth Sam Samir
Sandra Sara Selma Simon Sofia Stella Sven Tara Theo Tina Tobias Tom Toni Uma Ursula Valentin Vera
Victor Viola Walter Wanda Wendy Yara Yusuf Zara Zoe'''.split()

CITIES = '''Aberdeen Amsterdam Antwerp Athens Barcelona Basel Belfast Berlin Bergen Bern Bilbao Bonn
Boston Bremen Bristol Brussels Budapest Cairo Calgary Cambridge Cardiff Chicago Cologne Cordoba Cork
Dallas Denver Dover Dresden Dublin Durham Edinburgh Essex Florence Geneva Genoa Ghent Glasgow Graz
Hamburg Hanover Helsinki Houston Innsbruck Istanbul Kyoto Leeds Leipzig Lima Linz Lisbon Liverpool
London Lyon Madrid Malmo Manila Marseille Melbourne Milton Montreal Moscow Munich Nairobi Naples Nice
Norwich Odessa Oslo Ottawa Oxford Palermo Paris Perth Plymouth Porto Prague Quebec Quito Reims Riga
Rome Rotterdam Salzburg Seattle Seoul Seville Sofia Stockholm Sydney Tampere Tokyo Toronto Trieste
Turin Utrecht Valencia Venice Vienna Warsaw Wells Winchester York Zagreb Zurich'''.split()

JOBS = '''baker teacher doctor nurse farmer painter singer writer pilot sailor cook tailor judge
lawyer gardener carpenter plumber engineer driver dancer actor barber butcher clerk fisherman guard
hunter jeweller librarian mechanic miner musician photographer porter potter scientist soldier student
waiter weaver'''.split()
ANIMALS = '''cat dog horse goat sheep cow pig duck goose hen rabbit mouse parrot fox owl frog turtle
snake lizard donkey monkey pony hamster crow swan bear wolf deer'''.split()
COLOURS = 'red blue green yellow black white brown grey orange purple pink golden'.split()
FOODS = '''apples bread cheese soup rice pasta pizza fish cake honey plums pears cherries beans carrots
potatoes tomatoes onions eggs nuts grapes lemons noodles salad pancakes chocolate mushrooms olives
peaches biscuits'''.split()
INSTRUMENTS = '''violin piano guitar flute drum trumpet harp cello organ clarinet banjo horn lute
trombone'''.split()
LANGUAGES = '''English French German Spanish Italian Dutch Polish Greek Turkish Arabic Hindi Japanese
Korean Chinese Swedish Danish Finnish Russian Latin Portuguese'''.split()
HOBBIES = '''chess swimming reading cycling hiking painting fishing sailing dancing cooking climbing
running singing knitting skating rowing tennis football pottery gardening'''.split()
OBJECTS = '''lamp rope key book box chair table cup knife spoon plate mirror clock candle basket bottle
brush bag hat coat shirt ring coin map letter pen ball drum kite ladder hammer saw nail bucket broom
blanket pillow carpet vase jar kettle pan bell flag wheel cart boat drill shovel umbrella whistle
puzzle scarf belt boot glove watch camera radio stamp purse'''.split()
MATERIALS = 'brass wooden silver glass paper iron leather copper old new small large'.split()
ROOMS = '''kitchen garden cellar attic hall bathroom bedroom library garage office workshop barn
balcony tower school market church station harbour museum'''.split()
HOLDERS = '''box drawer bag basket cupboard chest pocket jar bucket suitcase desk wardrobe trunk
backpack crate'''.split()
MONTHS = '''January February March April May June July August September October November
December'''.split()
DAYS = 'Monday Tuesday Wednesday Thursday Friday Saturday Sunday'.split()
WEATHER = 'sunny rainy windy cloudy foggy snowy stormy warm cold'.split()
FAMOUS = '''bridge castle museum market harbour tower park theatre cathedral library zoo garden
fountain university lighthouse'''.split()
REGIONS = 'north south east west'.split()

ONSETS = 'b br c ch d dr f fl g gr h j k kl l m n p pr r s sh st t th tr v w y z'.split()
VOWELS = 'a e i o u a e i o ai ee ia oo'.split()
CODAS = ['', '', '', '', 'l', 'm', 'n', 'r', 's', 't', 'k', 'nd', 'rn', 'x']
CITY_ENDS = '''ton ham ford bury dale field wick burg stad mouth port haven wood well bridge minster
stead ville'''.split()


NOT_NAMES = set('She He The They Her His Him You Who Why For Are Not Her Our One Two Six Ten Sun Mon June Rose Ruby'.split())


def is_held(name):
    """Whether a name belongs to evaluation only."""
    return zlib.crc32(name.encode()) % 7 == 0


def invented(r, least=2, most=3):
    """A pronounceable word that means nothing."""
    choice = r.choice
    return ''.join(choice(ONSETS) + choice(VOWELS) + choice(CODAS)
                   for _ in range(r.randint(least, most)))


def changed(r, name):
    """A name with one or two letters changed, so that known names cannot be told by their start."""
    letters = list(name.lower())
    for _ in range(r.randint(1, 2)):
        i, way = r.randrange(len(letters)), r.random()
        if way < 0.5:
            letters[i] = r.choice('aeioulmnrstbdkvz')
        elif way < 0.75:
            letters.insert(i, r.choice('aeioulmnrst'))
        elif len(letters) > 3:
            del letters[i]
    return ''.join(letters).capitalize()


def one_name(r, known, ends, held):
    while True:
        way = r.random()
        if way < (0.6 if held else 0.3):
            name = r.choice(known)
        elif way < 0.6:
            name = changed(r, r.choice(known))
        elif ends and r.random() < 0.7:
            name = invented(r, 1, 2).capitalize() + r.choice(ends)
        else:
            name = invented(r, 1 if not ends else 2, 3).capitalize()
        if 2 < len(name) < 15 and name not in NOT_NAMES and is_held(name) == held:
            return name


def distinct(n, make, taken=()):
    found, seen = [], set(taken)
    while len(found) < n:
        name = make()
        if name not in seen:
            seen.add(name)
            found.append(name)
    return found


def people(r, n, held, taken=()):
    return distinct(n, lambda: one_name(r, GIVEN, None, held), taken)


def cities(r, n, held, taken=()):
    return distinct(n, lambda: one_name(r, CITIES, CITY_ENDS, held), taken)


def article(word):
    return ('an ' if word[0] in 'aeiou' else 'a ') + word


def join_names(words):
    if len(words) == 1:
        return words[0]
    return ', '.join(words[:-1]) + ' and ' + words[-1]


def pick(r, options):
    return options[int(r.random() * len(options))]


def wrapped(r, question, held, in_front=False):
    """A question in a framing; evaluation has framings of its own.  in_front: nothing may follow
    the question, since it ends with a text to be copied."""
    wrappers = HELD_WRAPPERS if held else WRAPPERS
    wrapper = pick(r, wrappers)
    while in_front and not wrapper.endswith('{q}'):
        wrapper = pick(r, wrappers)
    return wrapper.replace('{q}', question)


class Attribute:
    """Something that a subject has: {s} stands for the subject, {v} for the value."""

    def __init__(self, kind, noun, says, facts, questions, value, row, reverse=(), whose=''):
        self.kind, self.noun, self.says = kind, noun, says
        self.facts, self.questions, self.value = facts, questions, value
        self.row, self.reverse, self.whose = row, reverse, whose


def clock_time(r):
    return f'{r.randint(5, 22)}:{r.choice("012345")}{r.choice("05")}'


ATTRIBUTES = {
    'home': Attribute(
        'person', 'home', '{s} lives in {v}',
        ['{s} lives in {v}.', '{s} has a house in {v}.', 'The home of {s} is in {v}.',
         'You can find {s} in {v}.', '{s} moved to {v} and lives there.', 'The house of {s} is in {v}.'],
        ['Where does {s} live?', 'In which city does {s} live?', 'Where is the home of {s}?',
         'What is the home city of {s}?', 'Which city does {s} live in?', 'In which city is the home of {s}?'],
        None, 'City', ['Who lives in {v}?', 'Which person lives in {v}?', 'Who has a home in {v}?'], 'live in {v}'),
    'job': Attribute(
        'person', 'job', '{s} works as {v}',
        ['{s} works as {v}.', '{s} is {v}.', 'The job of {s} is to be {v}.', '{s} became {v}.',
         '{s} earns money as {v}.', '{s} has work as {v}.'],
        ['What is the job of {s}?', 'What does {s} do for a living?', 'Which job does {s} have?',
         'What work does {s} do?', 'As what does {s} work?', 'What job does {s} have?'],
        lambda r: article(r.choice(JOBS)), 'Job',
        ['Who works as {v}?', 'Who is {v}?', 'Which person works as {v}?'], 'work as {v}'),
    'age': Attribute(
        'person', 'age', '{s} is {v} years old',
        ['{s} is {v} years old.', 'The age of {s} is {v}.', '{s} is {v}.', '{s} turned {v} this year.',
         'At {v} years, {s} feels fine.', '{s} is now {v} years old.'],
        ['How old is {s}?', 'What is the age of {s}?', 'How many years old is {s}?',
         'What age is {s}?', 'Which age does {s} have?', 'What age does {s} have?'],
        lambda r: str(r.randint(5, 95)), 'Age',
        ['Who is {v} years old?', 'Which person is {v} years old?', 'Whose age is {v}?'], ''),
    'pet': Attribute(
        'person', 'pet', '{s} has {v}',
        ['{s} has {v}.', 'The pet of {s} is {v}.', '{s} keeps {v}.', 'At home {s} has {v}.',
         '{s} looks after {v}.', '{s} has {v} at home.'],
        ['Which pet does {s} have?', 'What pet does {s} have?', 'What is the pet of {s}?',
         'What kind of pet does {s} keep?', 'Which animal does {s} have?', 'Which pet does {s} keep?'],
        lambda r: article(r.choice(COLOURS) + ' ' + r.choice(ANIMALS)), 'Pet',
        ['Who has {v}?', 'Which person has {v}?', 'Who keeps {v}?'], 'have {v}'),
    'food': Attribute(
        'person', 'favourite food', '{s} likes {v}',
        ['{s} likes {v}.', '{s} loves to eat {v}.', 'The favourite food of {s} is {v}.',
         '{s} eats {v} every day.', '{s} enjoys {v}.', '{s} likes to eat {v}.'],
        ['What does {s} like to eat?', 'What is the favourite food of {s}?', 'Which food does {s} like?',
         'What food does {s} enjoy?', 'What does {s} love to eat?', 'Which food does {s} love?'],
        lambda r: r.choice(FOODS), 'Food',
        ['Who likes {v}?', 'Which person likes {v}?', 'Who likes to eat {v}?'], 'like {v}'),
    'instrument': Attribute(
        'person', 'instrument', '{s} plays the {v}',
        ['{s} plays the {v}.', '{s} is learning the {v}.', '{s} practises the {v}.',
         'The instrument of {s} is the {v}.', '{s} plays music on the {v}.', '{s} makes music on the {v}.'],
        ['Which instrument does {s} play?', 'What instrument does {s} play?',
         'What does {s} play?', 'What is the instrument of {s}?', 'On which instrument does {s} play?',
         'What is the instrument that {s} plays?'],
        lambda r: r.choice(INSTRUMENTS), 'Instrument',
        ['Who plays the {v}?', 'Which person plays the {v}?', 'Who is it that plays the {v}?'], 'play the {v}'),
    'colour': Attribute(
        'person', 'favourite colour', 'the favourite colour of {s} is {v}',
        ['The favourite colour of {s} is {v}.', '{s} likes the colour {v}.', '{s} always wears {v}.',
         '{s} loves the colour {v}.', 'The best colour for {s} is {v}.', '{s} loves {v} as a colour.'],
        ['What is the favourite colour of {s}?', 'Which colour does {s} like?', 'What colour does {s} like?',
         'Which colour does {s} love?', 'What colour does {s} love?'],
        lambda r: r.choice(COLOURS), 'Colour', [], ''),
    'birth': Attribute(
        'person', 'birth month', '{s} was born in {v}',
        ['{s} was born in {v}.', 'The birthday of {s} is in {v}.', '{s} has a birthday in {v}.',
         'In {v}, {s} was born.', 'The birth month of {s} is {v}.'],
        ['In which month was {s} born?', 'When was {s} born?', 'When is the birthday of {s}?',
         'What is the birth month of {s}?', 'Which month was {s} born in?'],
        lambda r: r.choice(MONTHS), 'Birth',
        ['Who was born in {v}?', 'Who has a birthday in {v}?', 'Which person was born in {v}?'], 'were born in {v}'),
    'code': Attribute(
        'person', 'locker number', 'the locker number of {s} is {v}',
        ['The locker number of {s} is {v}.', '{s} uses locker number {v}.', '{s} has locker {v}.',
         'Locker {v} belongs to {s}.', '{s} has locker number {v}.'],
        ['What is the locker number of {s}?', 'Which locker does {s} have?', 'Which locker does {s} use?',
         'What locker number does {s} have?', 'Which locker number does {s} have?'],
        lambda r: str(r.randint(100, 9999)), 'Locker',
        ['Whose locker number is {v}?', 'Who uses locker {v}?', 'Who has locker number {v}?'], ''),
    'language': Attribute(
        'person', 'language', '{s} speaks {v}',
        ['{s} speaks {v}.', '{s} talks in {v}.', 'The language of {s} is {v}.', '{s} learned {v}.',
         '{s} speaks {v} at home.'],
        ['Which language does {s} speak?', 'What language does {s} speak?', 'What does {s} speak?',
         'What is the language of {s}?', 'In which language does {s} speak?'],
        lambda r: r.choice(LANGUAGES), 'Language',
        ['Who speaks {v}?', 'Which person speaks {v}?', 'Who is it that speaks {v}?'], 'speak {v}'),
    'hobby': Attribute(
        'person', 'hobby', 'the hobby of {s} is {v}',
        ['The hobby of {s} is {v}.', 'In the evening {s} enjoys {v}.', '{s} spends free time on {v}.',
         'On Sundays {s} goes for {v}.', '{s} has {v} as a hobby.'],
        ['What is the hobby of {s}?', 'Which hobby does {s} have?', 'What hobby does {s} have?',
         'What does {s} do in free time?', 'Which hobby does {s} enjoy?'],
        lambda r: r.choice(HOBBIES), 'Hobby', [], ''),
    'wakes': Attribute(
        'person', 'time to get up', '{s} gets up at {v}',
        ['{s} gets up at {v}.', '{s} wakes up at {v}.', 'The day of {s} starts at {v}.',
         'The alarm of {s} rings at {v}.', '{s} gets up at {v} every day.'],
        ['When does {s} get up?', 'At what time does {s} get up?', 'When does {s} wake up?',
         'What time does {s} get up?', 'At what time does {s} wake up?'],
        clock_time, 'Gets up', [], ''),
    'price': Attribute(
        'object', 'price', '{s} costs {v} coins',
        ['{s} costs {v} coins.', 'The price of {s} is {v} coins.', 'You pay {v} coins for {s}.',
         '{s} is sold for {v} coins.', 'For {v} coins you can buy {s}.'],
        ['How much does {s} cost?', 'What is the price of {s}?', 'How many coins does {s} cost?',
         'What does {s} cost?', 'How many coins do I pay for {s}?'],
        lambda r: str(r.randint(2, 99)), 'Price',
        ['What costs {v} coins?', 'Which thing costs {v} coins?', 'What can I buy for {v} coins?'], ''),
    'place': Attribute(
        'object', 'place', '{s} is in the {v}',
        ['{s} is in the {v}.', '{s} lies in the {v}.', 'You will find {s} in the {v}.',
         'Someone left {s} in the {v}.', 'You can find {s} in the {v}.'],
        ['Where is {s}?', 'In which place is {s}?', 'Where can I find {s}?', 'Where does {s} lie?',
         'In which place can I find {s}?'],
        lambda r: r.choice(ROOMS + HOLDERS), 'Place',
        ['What is in the {v}?', 'Which thing is in the {v}?', 'What lies in the {v}?'], ''),
    'train': Attribute(
        'city', 'train time', 'the train to {s} leaves at {v}',
        ['The train to {s} leaves at {v}.', 'At {v} a train goes to {s}.', 'There is a train to {s} at {v}.',
         'The train for {s} departs at {v}.', 'A train to {s} leaves at {v}.'],
        ['When does the train to {s} leave?', 'At what time does the train to {s} leave?',
         'What time is the train to {s}?', 'When is the train to {s}?', 'At what time is the train to {s}?'],
        clock_time, 'Train', [], ''),
    'famous': Attribute(
        'city', 'sight', '{s} is famous for its {v}',
        ['{s} is famous for its {v}.', '{s} is known for its {v}.', 'People visit {s} to see its {v}.',
         'The best sight of {s} is its {v}.', '{s} is well known for its {v}.'],
        ['What is {s} famous for?', 'What is {s} known for?', 'What is the best sight of {s}?',
         'For what is {s} famous?', 'For what is {s} known?'],
        lambda r: r.choice(FAMOUS), 'Sight',
        ['Which city is famous for its {v}?', 'Which city is known for its {v}?', 'What city is famous for its {v}?'],
        ''),
    'weather': Attribute(
        'city', 'weather', 'the weather in {s} is {v}',
        ['The weather in {s} is {v}.', 'It is {v} in {s}.', 'In {s} the weather is {v}.',
         'Today it is {v} in {s}.', 'In {s} it is {v}.'],
        ['How is the weather in {s}?', 'What is the weather in {s}?', 'What is the weather like in {s}?',
         'How is the weather today in {s}?', 'What is the weather in {s} today?'],
        lambda r: r.choice(WEATHER), 'Weather', [], ''),
    'region': Attribute(
        'city', 'region', '{s} is in the {v}',
        ['{s} is in the {v}.', '{s} lies in the {v} of the country.', 'In the {v} there is {s}.',
         'The city of {s} lies in the {v}.', '{s} lies in the {v}.'],
        ['In which region is {s}?', 'In which part of the country is {s}?', 'Where in the country is {s}?',
         'Which region is {s} in?', 'In which part of the country does {s} lie?'],
        lambda r: r.choice(REGIONS), 'Region', [], ''),
}

BONDS = 'brother sister mother father teacher neighbour boss cousin doctor friend partner coach guest'.split()
BOND_FACTS = ['The {b} of {s} is {v}.', '{v} is the {b} of {s}.', '{s} has a {b} called {v}.',
              '{s} has a {b}, whose name is {v}.', '{s} calls {v} a good {b}.', 'The name of the {b} of {s} is {v}.']
BOND_QUESTIONS = ['Who is the {b} of {s}?', 'What is the name of the {b} of {s}?', 'What is the {b} of {s} called?',
                  'Which person is the {b} of {s}?', 'Who is called the {b} of {s}?']
MAYOR_FACTS = ['The mayor of {s} is {v}.', '{v} is the mayor of {s}.', '{s} has a mayor called {v}.',
               'The people of {s} made {v} their mayor.', 'The name of the mayor of {s} is {v}.']
OWNER_FACTS = ['The owner of {s} is {v}.', '{v} is the owner of {s}.', '{s} belongs to {v}.',
               '{v} owns {s}.', '{s} is owned by {v}.']
WRAPPERS = ['{q}'] * 14 + [
    'Please tell me: {q}', 'Tell me: {q}', 'Question: {q}', 'I have a question. {q}', 'Can you help me? {q}',
    'Now: {q}', 'And one more thing: {q}', 'Quick question: {q}', '{q} Please answer.', 'Hello. {q}',
    '{q} Thank you.', 'I would like to know: {q}', 'Now please help me. {q}', 'One question: {q}', 'Hi! {q}',
    'Good morning. {q}', '{q} Please help me.', 'Please answer this: {q}', 'Here is a question: {q}',
    'Now I want to know something. {q}', 'Hello, can you tell me this? {q}', '{q} I want to know.', 'Next: {q}']
HELD_WRAPPERS = ['{q}', 'I want to know this: {q}', 'Tell me this, please: {q}', 'Here is one more question: {q}',
                 'Hello. I have a question: {q}', 'Please help me. {q}', '{q} Please tell me.', 'Now tell me: {q}']
FILLERS = '''The morning was quiet and the streets were empty.
A cold wind came from the sea.
Nobody knew what the day would bring.
The old clock in the hall was slow again.
It was a long year for everyone.
The market opened early, and people talked about the news.
In the evening there was music in the park.
Some birds sat on the roof of the station.
The children played near the river until it was dark.
There was a smell of fresh bread in the air.
A letter lay on the table, but nobody opened it.
Later it rained, and all went home.
The road to the village was closed for a week.
Many visitors came in the summer.
The lights in the windows went out one after another.'''.split('\n')
