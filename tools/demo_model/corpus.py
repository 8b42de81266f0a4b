#!/usr/bin/env python3
"""Makes conversations of the closed world, without end and always the same for a seed.

  corpus.py --show 5 [--seed N]                  print some training conversations
  corpus.py --evaluation models/demo/evaluation  write the held-out tasks

Evaluation uses names and framings of questions that training never sees.
"""
import argparse
import json
import os
import random

import chat_format
import tasks_chat
import tasks_facts
import tasks_lists
import tasks_numbers
import tasks_tools
import world as w

SYSTEMS = [chat_format.DEFAULT_SYSTEM] * 12 + [
    "You are Polymath's demo model.", 'Be brief.', 'You are a helpful assistant. Answer in short sentences.',
    'You are a friendly assistant.', 'Answer the question.',
    'You are a helpful assistant. Your name is Polymath.']
# (share of conversations, what makes the turns)
MIX = [
    (40, tasks_facts.conversation), (4, tasks_facts.table_conversation),
    (14, tasks_numbers.arithmetic_conversation), (3, tasks_numbers.number_story), (4, tasks_numbers.program),
    (1, tasks_numbers.larger), (6, tasks_lists.tracking), (9, tasks_lists.list_conversation),
    (3, tasks_lists.to_json), (8, tasks_chat.conversation)]
TOOL_SHARE = 0.16
FRAMED = (tasks_facts.conversation, tasks_chat.conversation)
MAKERS = [maker for share, maker in MIX for _ in range(share)]


def as_messages(turns):
    out = []
    for user, think, answer in turns:
        out += [{'role': 'user', 'content': user}, tasks_tools.answer_message(think, answer)]
    return out


def framed(r, maker, held):
    """Turns of a maker that does not frame its questions itself."""
    turns = maker(r, held)
    if maker in FRAMED:
        return turns
    return [(w.wrapped(r, user, held, True), think, answer) for user, think, answer in turns]


def plain(r):
    messages = as_messages(framed(r, r.choice(MAKERS), False))
    if r.random() < 0.08:
        messages = as_messages([tasks_chat.small_talk(r)]) + messages
    if r.random() < 0.05:
        messages += as_messages([tasks_chat.small_talk(r)])
    return messages


def facts_in_system(r):
    """The facts stand in the system message, the question comes alone."""
    text, made, _ = tasks_facts.ask_world(r, False, ['recall'], r.randint(1, 12))
    return [{'role': 'system', 'content': r.choice(SYSTEMS) + '\n' + text}] + as_messages(made)


def conversation(r):
    """One training conversation: (messages, tools, keep_reasoning, thinks)."""
    pick = r.random()
    tools = None
    if pick < TOOL_SHARE:
        messages, tools = tasks_tools.conversation(r)
    elif pick < TOOL_SHARE + 0.01:
        messages, tools = tasks_tools.no_tool_fits(r)
    elif pick < TOOL_SHARE + 0.03:
        messages, tools = plain(r), tasks_tools.offered(r, None)
        if any(m['role'] == 'user' and m['content'].startswith('What') for m in messages):
            tools = None  # tools that might answer must not be passed over
    elif pick < TOOL_SHARE + 0.05:
        messages = facts_in_system(r)
    else:
        messages = plain(r)
    if messages[0]['role'] != 'system' and r.random() < 0.4:
        messages = [{'role': 'system', 'content': r.choice(SYSTEMS)}] + messages
    return messages, tools, r.random() < 0.6, r.random() > 0.03


def segments(r):
    messages, tools, keep, thinks = conversation(r)
    return chat_format.segments(messages, tools, keep, thinks)


# ----------------------------------------------------------------------------- evaluation
def facts_task(kind, least, most):
    def make(r):
        turns = tasks_facts.conversation(r, True, [kind], r.randint(least, most))
        return as_messages([turns[-1]] if len(turns) == 1 else turns), None
    return make


def turns_task(maker):
    return lambda r: (as_messages(framed(r, maker, True)), None)


def refusal(r):
    while True:
        messages, _ = facts_task('missing', 3, 30)(r)
        if 'does not say' in messages[-1]['content']:
            return messages, None


def talk(r):
    """Small talk with one right answer, in words that training has seen."""
    if r.random() < 0.4:
        return as_messages([tasks_chat.knowledge(r)]), None
    asks, think, answers = r.choice([t for t in tasks_chat.TALK if len(t[2]) == 1])
    return as_messages([(r.choice(asks), think, answers[0])]), None


TASKS = {
    'recall': (200, facts_task('recall', 3, 30)), 'reverse_recall': (100, facts_task('reverse', 3, 30)),
    'long_recall': (60, facts_task('recall', 90, 110)), 'two_hops': (200, facts_task('two_hops', 3, 30)),
    'three_hops': (100, facts_task('three_hops', 3, 30)), 'four_hops': (100, facts_task('four_hops', 3, 30)),
    'count': (100, facts_task('count', 3, 20)), 'compare': (100, facts_task('compare', 3, 20)),
    'refusal': (100, refusal), 'table': (100, turns_task(tasks_facts.table_conversation)),
    'arithmetic': (200, turns_task(tasks_numbers.arithmetic_conversation)),
    'number_story': (100, turns_task(tasks_numbers.number_story)),
    'program': (100, turns_task(tasks_numbers.program)), 'tracking': (100, turns_task(tasks_lists.tracking)),
    'lists': (100, turns_task(tasks_lists.list_conversation)), 'json': (100, turns_task(tasks_lists.to_json)),
    'tools': (200, lambda r: tasks_tools.conversation(r, True)), 'talk': (60, talk)}


def api_message(m):
    """A message as an OpenAI client sends it."""
    if m['role'] != 'assistant' or not m.get('calls'):
        extra = {'reasoning_content': m['reasoning']} if m.get('reasoning') else {}
        return {'role': m['role'], 'content': m['content'], **extra}
    calls = [{'id': f'call_{i}', 'type': 'function', 'function': {
        'name': c['name'], 'arguments': json.dumps(c['arguments'])}} for i, c in enumerate(m['calls'])]
    return {'role': 'assistant', 'content': m['content'], 'reasoning_content': m['reasoning'], 'tool_calls': calls}


def expectation(m):
    return {'tool_calls': m['calls']} if m.get('calls') else {'content': m['content']}


def items_of(name, messages, tools):
    """Every answer after the last user message is one item (a tool loop gives two)."""
    last_user = max(i for i, m in enumerate(messages) if m['role'] == 'user')
    for i, m in enumerate(messages):
        if m['role'] == 'assistant' and i > last_user:
            history = []
            for k, old in enumerate(messages[:i]):
                shown = api_message(old)
                if old['role'] == 'tool':
                    before = k - 1 - sum(1 for x in messages[:k][::-1] if x['role'] == 'tool') \
                        if messages[k - 1]['role'] == 'tool' else k - 1
                    shown['tool_call_id'] = f'call_{k - 1 - before}'
                history.append(shown)
            item = {'task': name, 'messages': history, 'expect': expectation(m)}
            if tools:
                item['tools'] = tools
            yield item


def write_evaluation(folder, seed):
    os.makedirs(folder, exist_ok=True)
    for name, (n, maker) in TASKS.items():
        r = random.Random(f'{seed} {name}')
        items, seen = [], set()
        while len(items) < n:
            for item in items_of(name, *maker(r)):
                line = json.dumps(item)
                if line not in seen and len(items) < n:
                    seen.add(line)
                    items.append(line)
        with open(os.path.join(folder, name + '.jsonl'), 'w') as f:
            f.write('\n'.join(items) + '\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--show', type=int, default=0, metavar='N', help='print N training conversations')
    parser.add_argument('--evaluation', metavar='FOLDER', help='write the held-out tasks there')
    parser.add_argument('--seed', type=int, default=20261122, help='(default 20261122)')
    options = parser.parse_args()
    r = random.Random(options.seed)
    for _ in range(options.show):
        print(''.join(text for text, _ in segments(r)), end='')
        print('-' * 80)
    if options.evaluation:
        write_evaluation(options.evaluation, options.seed)


if __name__ == '__main__':
    main()
