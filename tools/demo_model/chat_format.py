"""MiniMax-M2's chat template: a conversation becomes text, with markers spelt out.

Messages are dicts: role, content; for an assistant also `reasoning` and `calls`
([{name, arguments}]).  The same rules as model/chat.c.
"""
import json

BEGIN, ROLE, END = ']~!b[', ']~b]', '[e~['
DEFAULT_SYSTEM = 'You are a helpful assistant.'


def dump(value):
    return json.dumps(value, ensure_ascii=False)


def tools_text(tools):
    if not tools:
        return ''
    lines = ''.join(f'<tool>{dump(t["function"])}</tool>\n' for t in tools)
    return ('\n\n# Tools\nYou may call one or more tools to assist with the user query.\n'
            'Here are the tools available in JSONSchema format:\n\n<tools>\n' + lines + '</tools>\n\n'
            'When making tool calls, use XML format to invoke tools and pass parameters:\n\n'
            '<minimax:tool_call>\n<invoke name="tool-name-1">\n'
            '<parameter name="param-key-1">param-value-1</parameter>\n'
            '<parameter name="param-key-2">param-value-2</parameter>\n...\n</invoke>\n</minimax:tool_call>')


def calls_text(calls):
    text = '\n<minimax:tool_call>\n'
    for call in calls:
        text += f'<invoke name="{call["name"]}">\n'
        for key, value in call['arguments'].items():
            shown = value if isinstance(value, str) else dump(value)
            text += f'<parameter name="{key}">{shown}</parameter>\n'
        text += '</invoke>\n'
    return text + '</minimax:tool_call>'


def spoken(message):
    """What follows the reasoning: content and calls."""
    return message['content'] + (calls_text(message['calls']) if message.get('calls') else '')


def segments(messages, tools=None, keep_reasoning=False, thinks=True):
    """The whole conversation as [(text, weight class)]: 0 context, 1 an earlier answer shown
    without its reasoning, 2 what the model is to say.

    thinks=False closes the reasoning of every shown answer at once.
    """
    out = []
    rest = list(messages)
    system = DEFAULT_SYSTEM
    if rest and rest[0]['role'] == 'system':
        system = rest.pop(0)['content'] or DEFAULT_SYSTEM
    last_user = max((i for i, m in enumerate(rest) if m['role'] == 'user'), default=-1)
    out.append((f'{BEGIN}{ROLE}system\n{system}{tools_text(tools)}{END}\n', 0))
    for i, m in enumerate(rest):
        if m['role'] == 'user':
            out.append((f'{ROLE}user\n{m["content"]}{END}\n', 0))
        elif m['role'] == 'tool':
            first = i == 0 or rest[i - 1]['role'] != 'tool'
            last = i + 1 == len(rest) or rest[i + 1]['role'] != 'tool'
            out.append(((f'{ROLE}tool' if first else '') + f'\n<response>{m["content"]}</response>' +
                        (f'{END}\n' if last else ''), 0))
        elif i > last_user or keep_reasoning:
            opening = f'{ROLE}ai\n<think>\n'
            if thinks:
                out += [(opening, 0), (f'{m["reasoning"]}\n</think>\n\n{spoken(m)}{END}', 2), ('\n', 0)]
            else:
                out += [(opening + '</think>\n\n', 0), (spoken(m) + END, 2), ('\n', 0)]
        else:
            out += [(f'{ROLE}ai\n', 0), (spoken(m) + END, 1), ('\n', 0)]
    return out


def prompt_text(messages, tools=None):
    """What the server gives the model: the conversation and the opening of the answer."""
    return ''.join(t for t, _ in segments(messages, tools)) + f'{ROLE}ai\n<think>\n'
