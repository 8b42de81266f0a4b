#!/usr/bin/env python3
"""Trains the demo model on one GPU.

  train.py --out FOLDER --steps 4800 [--seconds 560] [--resume FOLDER]

Writes FOLDER/{config.json, generation_config.json, model.safetensors} and FOLDER/loss.csv.
The learning rate warms up, stays, and falls to zero over the last part.  The selection bias of the
router moves towards experts with less than the mean load after every step; there is no
auxiliary loss.
"""
import argparse
import csv
import json
import os
import platform
import time

import torch
import torch.nn.functional as F

import checkpoint
import chat_format
import feed
import model as m
import tokenizer

CLASS_WEIGHTS = [0.0, 0.1, 0.3, 1.0]  # padding, context, earlier answers, what the model says


# ----------------------------------------------------------------------------- optimizer
def orthogonal(x):
    """Newton-Schulz iterations: x [n, rows, columns], rows <= columns, towards orthonormal rows."""
    x = x.to(torch.bfloat16)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.transpose(-1, -2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.float()


class Muon:
    """Momentum whose update of every matrix is made orthogonal; experts are matrices of their own."""

    def __init__(self, parameters, momentum, decay):
        self.momentum, self.decay, self.groups = momentum, decay, {}
        for p in parameters:
            rows, columns = p.shape[-2:]
            self.groups.setdefault((min(rows, columns), max(rows, columns)), []).append(p)
        self.state = {p: torch.zeros_like(p) for p in parameters}
        self.orthogonal = torch.compile(orthogonal)

    @torch.no_grad()
    def step(self, rate):
        for (rows, columns), parameters in self.groups.items():
            gradients = [p.grad for p in parameters]
            states = [self.state[p] for p in parameters]
            torch._foreach_lerp_(states, gradients, 1 - self.momentum)
            updates = torch._foreach_lerp(gradients, states, self.momentum)
            wide = [(u if u.shape[-2] == rows else u.transpose(-1, -2)).reshape(-1, rows, columns)
                    for u in updates]
            made = self.orthogonal(torch.cat(wide)) * (0.2 * columns ** 0.5)
            torch._foreach_mul_(parameters, 1 - rate * self.decay)
            for p, u in zip(parameters, made.split([w.shape[0] for w in wide])):
                u = u if p.shape[-2] == rows else u.transpose(-1, -2)
                p.sub_(u.reshape(p.shape), alpha=rate)
            for p in parameters:
                p.grad = None


class Optimizer:
    """Muon for the matrices of the layers, AdamW for embedding, head, norms and routers."""

    def __init__(self, model, o):
        matrices, others = [], []
        for name, p in model.named_parameters():
            is_matrix = name.startswith('layers.') and p.ndim >= 2 and not name.endswith('gate')
            (matrices if is_matrix else others).append(p)
        self.o = o
        self.muon = Muon(matrices, 0.95, o.decay)
        self.adam = torch.optim.AdamW(others, lr=o.rate, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=True)

    def step(self, factor):
        for group in self.adam.param_groups:
            group['lr'] = self.o.rate * factor
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.muon.step(self.o.matrix_rate * factor)


def factor_of(done, o):
    """The learning rate's factor when this share of the run is done."""
    if done < o.warm:
        return max(done / o.warm, 1e-3)
    return min(1.0, (1.0 - done) / o.fall)


# ----------------------------------------------------------------------------- one step
def losses(model, ids, classes, mask):
    """Weighted loss to train on; sums per class of loss, right tokens, tokens; routing."""
    with torch.autocast('cuda', torch.bfloat16):
        logits, selected = model(ids, mask)
    target, kind = ids[:, 1:].flatten(), classes[:, 1:].flatten()
    flat = logits[:, :-1].flatten(0, 1)
    each = F.cross_entropy(flat.float(), target, reduction='none')
    weight = torch.tensor(CLASS_WEIGHTS, device=ids.device)[kind]
    with torch.no_grad():
        said, told = (kind == 3).float(), (kind == 1).float()
        right = (flat.argmax(-1) == target).float() * said
        notes = torch.stack([(each * said).sum(), right.sum(), said.sum(), (each * told).sum(), told.sum()])
    return (each * weight).sum() / weight.sum(), notes, selected


class Trainer:
    def __init__(self, o):
        self.o, self.device = o, 'cuda'
        self.words = tokenizer.Tokenizer(o.tokenizer)
        feed.self_check(self.words)
        self.feed = feed.Feed(o.tokenizer, o.seed, o.rows, o.processes)  # before CUDA starts: it forks
        torch.manual_seed(o.seed)
        torch.set_float32_matmul_precision('high')
        g = dict(m.GEOMETRY, vocab=self.words.size)
        self.model = m.Model(g, rounds=True).to(self.device)
        self.optimizer = Optimizer(self.model, o)
        self.begin = self.words.marks[chat_format.BEGIN]
        if o.resume:
            self.model.load_state_dict(checkpoint.load(o.resume, rounds=True).state_dict())
        self.losses = torch.compile(losses)
        self.batches = feed.Ahead(self.batch)
        self.rows_of_csv = []

    def batch(self):
        ids, classes = self.feed.next()
        ids = torch.frombuffer(bytearray(ids), dtype=torch.uint16).view(-1, feed.CONTEXT)
        classes = torch.frombuffer(bytearray(classes), dtype=torch.uint8).view(-1, feed.CONTEXT)
        return (ids.to(torch.int32).pin_memory().to(self.device, non_blocking=True).long(),
                classes.pin_memory().to(self.device, non_blocking=True).long())

    def step(self, factor):
        ids, classes = self.batches.next()
        loss, notes, selected = self.losses(self.model, ids, classes, m.conversation_mask(ids, self.begin))
        loss.backward()
        self.optimizer.step(factor)
        loads = torch.stack([s.sum((0, 1)) for s in selected])
        self.balance(loads, factor)
        return notes, loads

    @torch.no_grad()
    def balance(self, loads, factor):
        """Experts with too little load become easier to select."""
        rate = self.o.bias_rate * max(factor, 0.1)
        for layer, load in zip(self.model.layers, loads):
            layer.bias += rate * (1 - load / load.mean()).clamp(-1, 1)

    def note(self, step, elapsed, factor, notes, loads):
        said_loss, right, said, told_loss, told = notes.tolist()
        load = (loads.max(1).values / loads.mean(1)).max().item()
        unused = int((loads == 0).sum())
        if bool((loads.sum(1) != self.o.rows * feed.CONTEXT * self.model.g['top_k']).any()):
            print('train: the loads do not add up', loads.sum(1).tolist(), flush=True)
        row = [step, step * self.o.rows * feed.CONTEXT, round(elapsed, 1), round(said_loss / said, 5),
               round(right / said, 5), round(told_loss / told, 4), round(factor, 4), round(load, 3), unused]
        self.rows_of_csv.append(row)
        print(' '.join(map(str, row)), flush=True)

    def run(self):
        o, notes, step = self.o, 0, 0
        while True:
            if step <= 1:
                torch.cuda.synchronize()
                begun = time.time()  # the first step compiles
            elapsed = time.time() - begun
            done = max(step / o.steps, elapsed / o.seconds)
            if done >= 1:
                break
            new, loads = self.step(factor_of(done, o))
            notes, step = notes + new, step + 1
            if step % o.every == 0:
                self.note(step, elapsed, factor_of(done, o), notes, loads)
                notes = 0
        torch.cuda.synchronize()
        print(f'{step} steps in {time.time() - begun:.1f} s, smallest load {loads.min().item()}', flush=True)

    def save(self):
        checkpoint.save(self.model, self.o.out, self.words.size - len(tokenizer.ADDED))
        with open(os.path.join(self.o.out, 'loss.csv'), 'w') as f:
            writer = csv.writer(f, lineterminator='\n')
            writer.writerow('step tokens seconds loss accuracy context_loss rate_factor busiest_over_mean unused'.split())
            writer.writerows(self.rows_of_csv)
        with open(os.path.join(self.o.out, 'run.json'), 'w') as f:
            json.dump(dict(settings=vars(self.o), geometry=self.model.g, torch=torch.__version__,
                           python=platform.python_version(), gpu=torch.cuda.get_device_name(),
                           parameters=sum(p.numel() for p in self.model.parameters())), f, indent=1)


def options_of():
    here = os.path.dirname(os.path.abspath(__file__))
    words = os.path.join(here, '..', '..', 'models', 'demo', 'tokenizer.json')
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', required=True, metavar='FOLDER')
    p.add_argument('--tokenizer', default=words, metavar='FILE')
    p.add_argument('--steps', type=int, default=4800)
    p.add_argument('--seconds', type=float, default=1e9, help='the schedule ends then at the latest')
    p.add_argument('--rows', type=int, default=64, help='of 2,048 tokens in a step (default 64)')
    p.add_argument('--rate', type=float, default=3e-3, help='of AdamW (default 3e-3)')
    p.add_argument('--matrix-rate', type=float, default=6e-3, help='of Muon (default 6e-3)')
    p.add_argument('--decay', type=float, default=0.05, help='weight decay of Muon (default 0.05)')
    p.add_argument('--bias-rate', type=float, default=4e-3, help='of the selection bias (default 4e-3)')
    p.add_argument('--warm', type=float, default=0.02, help='share of the run that warms up')
    p.add_argument('--fall', type=float, default=0.5, help='share of the run that cools down')
    p.add_argument('--seed', type=int, default=7)
    p.add_argument('--processes', type=int, default=12, help='that make training data')
    p.add_argument('--every', type=int, default=50, help='steps between lines of the loss curve')
    p.add_argument('--resume', metavar='FOLDER', help='start from the weights of this checkpoint')
    return p.parse_args()


def main():
    trainer = Trainer(options_of())
    trainer.run()
    trainer.save()
    trainer.feed.stop()


if __name__ == '__main__':
    main()
