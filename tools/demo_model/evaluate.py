#!/usr/bin/env python3
"""Runs the held-out tasks through the demo model in PyTorch, greedily and in f32.

  evaluate.py [--model models/demo] [--transformers] [--trace FILE] [--out FILE]

Prints exact match for each task.  With --transformers, transformers' MiniMaxM2ForCausalLM reads the
same checkpoint and must choose the same tokens.  With --trace, writes which experts every
token of every task went to (see models/demo/README.md).
"""
import argparse
import gzip
import json
import os
import re
import sys

import torch

import checkpoint
import chat_format
import model as m
import tokenizer

MOST = 320  # tokens of one answer
HERE = os.path.dirname(os.path.abspath(__file__))
DEMO = os.path.join(HERE, '..', '..', 'models', 'demo')


# ----------------------------------------------------------------------------- items and answers
def internal(message):
    """A message as chat_format wants it, from one as a client sends it."""
    calls = [dict(name=c['function']['name'], arguments=json.loads(c['function']['arguments']))
             for c in message.get('tool_calls', ())]
    return dict(role=message['role'], content=message['content'], reasoning=message.get('reasoning_content', ''),
                calls=calls)


def items_of(folder, limit):
    items = []
    for name in sorted(os.listdir(folder)):
        if name.endswith('.jsonl'):
            with open(os.path.join(folder, name)) as f:
                items += [json.loads(line) for line in f][:limit]
    return items


def types_of(item):
    """{(tool, parameter): type}"""
    return {(t['function']['name'], key): p['type'] for t in item.get('tools', ())
            for key, p in t['function']['parameters']['properties'].items()}


def parsed(text, item):
    """What a server makes of the model's text: {content} or {tool_calls}; None if malformed."""
    if text is None or '</think>' not in text:
        return None
    said = text.split('</think>', 1)[1].strip('\n')
    content, mark, block = said.partition('<minimax:tool_call>')
    if not mark:
        return dict(content=content)
    if not block.endswith('</minimax:tool_call>'):
        return None
    types, calls = types_of(item), []
    for name, body in re.findall(r'<invoke name="([^"]*)">\n(.*?)</invoke>', block, re.S):
        arguments = {}
        for key, value in re.findall(r'<parameter name="([^"]*)">(.*?)</parameter>', body, re.S):
            whole = types.get((name, key)) == 'integer' and re.fullmatch(r'-?\d+', value)
            arguments[key] = int(value) if whole else value
        calls.append(dict(name=name, arguments=arguments))
    return dict(tool_calls=calls)


def batches_of(prompts):
    """Indices in batches of prompts of similar length that fit the GPU's memory."""
    order, at = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), 0
    while at < len(order):
        n = 1
        while at + n < len(order) and (n + 1) * len(prompts[order[at + n]]) ** 2 < 5e7 and n < 400:
            n += 1
        yield order[at:at + n]
        at += n


def answers_of(model, words, items):
    """(prompt ids, answer ids or None) of every item."""
    prompts = [words.encode(chat_format.prompt_text([internal(x) for x in item['messages']], item.get('tools')))
               for item in items]
    end, out = words.marks[chat_format.END], [None] * len(items)
    generator = m.Generator(model)
    for batch in batches_of(prompts):
        for i, ids in zip(batch, generator.answer([prompts[i] for i in batch], end, MOST)):
            out[i] = (prompts[i], ids)
    return out


def score(items, answers, words):
    """{task: [right, all]}, and a line for every wrong answer."""
    table, wrong = {}, []
    for item, (_, ids) in zip(items, answers):
        text = None if ids is None else words.decode(ids)
        right = parsed(text, item) == item['expect']
        row = table.setdefault(item['task'], [0, 0])
        row[0] += right
        row[1] += 1
        if not right:
            wrong.append(dict(task=item['task'], user=item['messages'][-1]['content'][-200:], text=text,
                              expect=item['expect']))
    return table, wrong


# ----------------------------------------------------------------------------- transformers
def transformers_model(folder):
    """transformers' own class with the checkpoint's weights, in f32."""
    sys.path.insert(0, os.path.join(HERE, '..', '..', 'tests', 'reference'))
    import make_reference
    g = checkpoint.geometry_of(folder)
    case = dict(weights='fp8', hidden=g['hidden'], layers=g['layers'], heads=g['heads'], kv_heads=g['kv_heads'],
                head_dim=g['head_dim'], rotary=g['rotary'], expert=g['expert'], experts=g['experts'],
                top_k=g['top_k'], vocab=g['vocab'], theta=g['theta'])
    theirs = make_reference.new_model(torch, case)
    make_reference.load_weights(torch, theirs, checkpoint.values_of(folder), case)
    return theirs


@torch.no_grad()
def agreement(theirs, answers, end, device, limit):
    """(same, all): tokens of our answers that transformers' model chooses too, given those before."""
    theirs, same, total = theirs.to(device), 0, 0
    some = [(p, a + [end]) for p, a in answers if a is not None][::max(1, len(answers) // limit)]
    some.sort(key=lambda x: len(x[0]) + len(x[1]))
    for at in range(0, len(some), 8):
        group = some[at:at + 8]
        longest = max(len(p) + len(a) for p, a in group)
        ids = torch.zeros(len(group), longest, dtype=torch.long)
        for i, (p, a) in enumerate(group):
            ids[i, :len(p) + len(a)] = torch.tensor(p + a)
        best = theirs(input_ids=ids.to(device), use_cache=False).logits.argmax(-1).cpu()
        for i, (p, a) in enumerate(group):
            same += int((best[i, len(p) - 1:len(p) + len(a) - 1] == torch.tensor(a)).sum())
            total += len(a)
    return same, total


# ----------------------------------------------------------------------------- routing
@torch.no_grad()
def routing(model, answers, most_tokens):
    """uint8 [tokens, layers, top_k] of whole conversations, and their lengths."""
    generator, parts, lengths = m.Generator(model), [], []
    for prompt, answer in answers:
        ids = prompt + (answer or [])
        if sum(lengths) + len(ids) > most_tokens:
            continue
        generator.make_room(1, len(ids))
        place = torch.arange(len(ids), device=generator.device)[None]
        _, chosen = generator.step(torch.tensor([ids], device=generator.device), place)
        found = [c[0].topk(model.g['top_k'], dim=-1).indices.sort(-1).values for c in chosen]
        parts.append(torch.stack(found, 1).to(torch.uint8).cpu())
        lengths.append(len(ids))
    return torch.cat(parts), lengths


def write_trace(path, trace, lengths, g):
    head = dict(layers=g['layers'], experts=g['experts'], top_k=g['top_k'], conversations=lengths)
    with open(path, 'wb') as raw, gzip.GzipFile(fileobj=raw, mode='wb', mtime=0, compresslevel=9, filename='') as f:
        f.write(json.dumps(head).encode() + b'\n')
        f.write(bytes(trace.flatten().tolist()))


def describe_loads(trace, g):
    """Experts never used, and the busiest expert's load over the mean, for each layer."""
    out = []
    for layer in range(g['layers']):
        load = torch.bincount(trace[:, layer].flatten().long(), minlength=g['experts']).float()
        out.append(dict(layer=layer, unused=int((load == 0).sum()), busiest=round((load.max() / load.mean()).item(), 2),
                        idlest=round((load.min() / load.mean()).item(), 3)))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default=DEMO, metavar='FOLDER')
    parser.add_argument('--tokenizer', default=os.path.join(DEMO, 'tokenizer.json'), metavar='FILE')
    parser.add_argument('--tasks', default=os.path.join(DEMO, 'evaluation'), metavar='FOLDER')
    parser.add_argument('--limit', type=int, default=None, help='items of each task')
    parser.add_argument('--transformers', type=int, default=0, metavar='N', help='compare about N answers')
    parser.add_argument('--trace', metavar='FILE')
    parser.add_argument('--trace-tokens', type=int, default=20000)
    parser.add_argument('--out', metavar='FILE', help='results and wrong answers as JSON')
    o = parser.parse_args()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    words, items = tokenizer.Tokenizer(o.tokenizer), items_of(o.tasks, o.limit)
    model = checkpoint.load(o.model).to(device).eval()
    answers = answers_of(model, words, items)
    table, wrong = score(items, answers, words)
    for task, (right, total) in table.items():
        print(f'{task:16} {100 * right / total:6.1f} %   {right} of {total}')
    report = dict(table=table, wrong=wrong, torch=torch.__version__)
    report['answers'] = [ids for _, ids in answers]
    if o.trace:
        trace, lengths = routing(model, answers[::max(1, len(answers) // 150)], o.trace_tokens)
        write_trace(o.trace, trace, lengths, model.g)
        everything, _ = routing(model, answers[::3], 10 ** 9)
        report['loads'] = describe_loads(everything, model.g)
        print(*report['loads'], sep='\n')
    if o.transformers:
        import transformers
        theirs = transformers_model(o.model)
        same, total = agreement(theirs, answers, words.marks[chat_format.END], device, o.transformers)
        report['transformers'] = dict(version=transformers.__version__, same=same, all=total)
        print(f'transformers {transformers.__version__} chooses {same} of {total} tokens alike')
    if o.out:
        with open(o.out, 'w') as f:
            json.dump(report, f)


if __name__ == '__main__':
    main()
